"""Portfolios of plans: who is chosen together, that no step makes one worse, and how plans come by copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from agents.training.portfolio import (
    COPYING,
    PLACING,
    Member,
    Portfolio,
    best_costs,
    choose_greedily,
    fold,
    value,
    with_copies,
    without_least,
)
from dysharp_env.schedules import ScheduleSpec, load_schedule

INF = float("inf")
COUNTED = ("launch", "fused_start", "count_exchange")


def member(name: str, *costs: float) -> Member:
    return Member({"name": name}, np.array(costs))


def names(members: Sequence[Member]) -> list[str]:
    return [each.changes["name"] for each in members]


def test_who_is_chosen_helps_those_chosen_before() -> None:
    # Alone "even" is best. With it "one" is at 0.1 / 3 and "two" at 0.2 / 3, though both are as good as each other
    # alone; all three are at 0, and "near" would help nobody.
    pool = [
        member("two", 0.0, 0.6, 0.0),
        member("near", 0.3, 0.3, 0.3),
        member("even", 0.1, 0.1, 0.1),
        member("one", 0.6, 0.0, 0.0),
    ]
    assert names(choose_greedily(pool, 1)) == ["even"]
    # Both leave one workload at 0.1: the earlier of equals.
    assert names(choose_greedily(pool, 2)) == ["even", "two"]
    assert names(choose_greedily(pool, 4)) == ["even", "two", "one"]


def test_a_plan_that_cannot_run_somewhere_is_chosen_for_where_it_can() -> None:
    pool = [member("fast", -1.0, INF), member("slow", 0.5, 0.5)]
    assert names(choose_greedily(pool, 2)) == ["slow", "fast"]
    assert value(np.array([INF, -1.0])) == (10 - 1) / 2
    assert best_costs(pool).tolist() == [-1.0, 0.5]


def test_whoever_is_missed_least_leaves() -> None:
    # Without "a" the first workload is 0.3 worse, without "b" the second 0.1, without "c" the third 0.2.
    kept = [member("a", 0.0, 0.5, 0.5), member("b", 0.3, 0.0, 0.2), member("c", 0.4, 0.1, 0.0)]
    assert names(without_least(kept)) == ["a", "c"]


class MadeUp:
    """Costs that are known: how far a plan's chunks are, in doublings, from those that each workload wants."""

    def __init__(self, wanted: Sequence[int]) -> None:
        self.wanted, self.played = np.log2(wanted), 0

    def __call__(self, schedules: Sequence[ScheduleSpec], places: Sequence[int]) -> np.ndarray:
        self.played += len(schedules) * len(places)
        given = np.log2([[schedule.chunk_tokens] for schedule in schedules])
        return np.abs(given - self.wanted[list(places)])


@pytest.mark.parametrize("wanted", [(4, 64), (4, 4, 4, 8, 8, 8, 16, 16, 16, 64, 64, 64)])
def test_a_step_never_makes_it_worse_and_steps_find_the_best(wanted: tuple[int, ...]) -> None:
    costs = MadeUp(wanted)
    search = Portfolio(load_schedule("dysharp"), costs, len(wanted), count=3, seed=0)
    search.start([{"chunk_tokens": 16}, {"chunk_tokens": 32}])
    before, first = value(search.best), value(search.best)
    for _ in range(400):
        better = search.step()
        now = value(search.best)
        assert now < before if better else now == before
        assert len(search.members) <= 3 and search.episodes == costs.played
        before = now
    # Three plans can be no closer: a workload of four wants chunks between those of two plans, or has its own.
    best = min(
        np.abs(np.log2(plans)[:, None] - costs.wanted).min(axis=0).mean()
        for plans in ((4, 16, 64), (4, 8, 64), (8, 16, 64), (4, 8, 16), (4, 32, 64))
    )
    assert before == pytest.approx(best) and before < first


def test_a_search_is_the_same_again() -> None:
    found: list[list[Any]] = []
    for _ in range(2):
        search = Portfolio(load_schedule("dysharp"), MadeUp((4, 8, 64)), 3, count=2, seed=5)
        search.start([{"chunk_tokens": 16}])
        found.append([(search.step(), [each.changes for each in search.members]) for _ in range(20)])
    assert found[0] == found[1]


@pytest.mark.parametrize("way", COPYING, ids=lambda way: f"{way['when']}-{way['weights']}")
def test_copies_are_added_with_what_they_pay_and_taken_away_again(way: dict[str, Any]) -> None:
    plan = {"chunk_tokens": 4, "pays.dispatch": COUNTED}
    copying = with_copies(plan, way)
    assert copying == {"chunk_tokens": 4, "pays.dispatch": [*COUNTED, "plan"], "replicate": way}
    assert load_schedule("dysharp").with_changes(copying).replicate.makes_copies
    assert with_copies(copying, COPYING[0])["pays.dispatch"] == [*COUNTED, "plan"]  # planning is paid once
    assert with_copies(copying, None) == {"chunk_tokens": 4, "pays.dispatch": [*COUNTED]}
    assert plan == {"chunk_tokens": 4, "pays.dispatch": COUNTED}


def test_replicas_placed_before_pay_nothing() -> None:
    plan = {"chunk_tokens": 4, "pays.dispatch": ("launch", "fused_start"), "token_order": "natural"}
    placing = with_copies(plan, PLACING)
    assert placing == {**plan, "replicate": PLACING}
    assert not load_schedule("dysharp").with_changes(placing).replicate.makes_copies
    copying = with_copies({**plan, "pays.dispatch": COUNTED}, COPYING[0])
    assert with_copies(copying, PLACING) == {**plan, "pays.dispatch": [*COUNTED], "replicate": PLACING}
    assert with_copies(placing, None) == plan


@pytest.mark.parametrize("plan", [{}, {"pays.dispatch": ("launch", "fused_start")}])
def test_without_counts_there_are_no_copies(plan: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="without counts there can be no copies"):
        with_copies(plan, COPYING[0])


def test_sections_hold_what_is_given_after_them() -> None:
    given = {"sms": {"dispatch": 4, "combine": 8, "in_gemm": True}, "chunk_tokens": 4, "sms.combine": 28}
    assert fold(given) == {"sms": {"dispatch": 4, "combine": 28, "in_gemm": True}, "chunk_tokens": 4}
    assert fold({"pays.dispatch": COUNTED}) == {"pays.dispatch": COUNTED}
    dysharp = load_schedule("dysharp")
    assert dysharp.with_changes(fold(given)) == dysharp.with_changes(given)


def test_steps_change_a_section_and_leave_the_rest_of_it() -> None:
    class Better(MadeUp):
        """Whatever changes is better than what there was."""

        def __call__(self, schedules: Sequence[ScheduleSpec], places: Sequence[int]) -> np.ndarray:
            self.played += len(schedules) * len(places)
            return np.full((len(schedules), len(places)), -float(self.played))

    search = Portfolio(load_schedule("dysharp"), Better((4,)), 1, count=1, seed=0)
    stores = {"dispatch": "unicast", "combine": "unicast"}
    search.start([{**stores, "sms": {"dispatch": 4, "combine": 8, "in_gemm": True}}])
    sizes, families = set(), set()
    for _ in range(200):
        search.step()
        (only,) = search.members
        assert only.changes["sms"]["in_gemm"] is True and "sms.dispatch" not in only.changes
        sizes.add(only.changes["sms"]["dispatch"])
        families.add(only.changes.get("families", {}).get("dispatch"))
    assert len(sizes) > 3 and len(families) > 1
