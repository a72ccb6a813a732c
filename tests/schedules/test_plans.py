"""The list ``plans`` of a schedule: what its entries may be, what becomes of them, and mistakes in one line."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from dysharp_env.config import ConfigError
from dysharp_env.schedules import ScheduleSpec, load_schedule

BASE = "fused-unicast"


def planning(*plans: Any) -> ScheduleSpec:
    return load_schedule(BASE).with_changes({"name": "planning", "plans": plans})


def test_entries_are_other_schedules_and_changes_of_this_one_or_another() -> None:
    changed = {"chunk_tokens": 32, "sms.dispatch": 3}
    named, own, other, again, called = planning(
        "dysharp", changed, {"schedule": "mega-moe", "chunk_tokens": 4}, {}, {"name": "mine", "hold": True}
    ).options
    assert named == load_schedule("dysharp")
    assert own == load_schedule(BASE).with_changes({**changed, "name": "planning[1]"})
    assert other == load_schedule("mega-moe").with_changes({"chunk_tokens": 4, "name": "planning[2]"})
    assert again == load_schedule(BASE).with_changes({"name": "planning[3]"})
    assert called.name == "mine" and called.hold
    assert all(option.plans == () for option in (named, own, other, again, called))


def test_without_plans_a_schedule_is_its_only_one() -> None:
    schedule = load_schedule(BASE)
    assert schedule.options == (schedule,)
    # Neither asking for them nor comparing may run in circles.
    assert schedule == load_schedule(BASE) and copy.deepcopy(schedule) == pickle.loads(pickle.dumps(schedule))


def test_two_that_list_the_same_are_the_same() -> None:
    one, other = planning("dysharp", {"chunk_tokens": 4}), planning("dysharp", {"chunk_tokens": 4})
    assert one == other and one.options == other.options
    assert one != planning("dysharp", {"chunk_tokens": 8})
    assert pickle.loads(pickle.dumps(one)).options == one.options


def test_a_change_of_the_schedule_changes_the_plans_that_are_made_of_it() -> None:
    changed = planning({"hold": True}, "dysharp").with_changes({"chunk_tokens": 2})
    assert [option.chunk_tokens for option in changed.options] == [2, load_schedule("dysharp").chunk_tokens]


def test_a_plan_leaves_no_variant_to_choose() -> None:
    """Of a preset with ``best_of`` it is what the first says: who chooses plans would have to run all to know more."""
    tutel = load_schedule("tutel")
    first, second = tutel.variants()[:2]
    named, second_named = planning("tutel", {"schedule": "tutel", **second.best_of[0]}).options
    assert tutel.best_of and named.best_of == second_named.best_of == ()
    assert named.variants() == (named,)
    assert named == first.with_changes({"best_of": ()})
    assert second_named == second.with_changes({"best_of": (), "name": "planning[1]"})


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("dysharpp", "plans[1]: schedule='dysharpp' is unknown; choose from ["),
        ({"schedule": "dysharpp"}, "plans[1]: schedule='dysharpp' is unknown; choose from ["),
        ({"aliases": ["x"]}, "plans[1]: 'aliases' is not a setting to choose"),
        ({"plans": ["dysharp"]}, "plans[1]: 'plans' is not a setting to choose"),
        ({"best_of": [{"chunk_tokens": 4}]}, "plans[1]: 'best_of' is not a setting to choose"),
        ({"chunk_token": 4}, "plans[1]: unknown key 'chunk_token' (did you mean 'chunk_tokens'?)"),
        ({"sms.dispach.x": 4}, "plans[1]: 'sms.dispach.x' is not a setting of ScheduleSpec (did you mean 'sms.dispatc"),
        ({"chunk_tokens": 0}, "plans[1]: chunk_tokens=0: "),
        ("planning", "plans[1]: 'planning' cannot be a plan of its own"),
        ({"schedule": 7}, "plans[1]: schedule=7 must be a schedule's name"),
        ({"token_order": "expert_waves", "pays.dispatch": ["launch"]}, "plans[1]: token_order=expert_waves needs"),
        (7, "plans.1"),
    ],
)
def test_a_mistake_in_a_plan_is_one_line_with_its_place(plan: Any, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        planning("dysharp", plan)
    assert said in str(raised.value) and "\n" not in str(raised.value)
