"""A portfolio of plans: few ways to run layers, of which some one suits each workload well.

A search keeps at most so many plans, as good as possible together: what counts is the mean over workloads of the log
makespan of the best plan on each. It begins with the best of a pool, chosen greedily, then changes members one after
the other: settings by a step, rules by noise. A change is played first where its parent is near the best, and on all
workloads only if it helps there. If with it the portfolio is better it joins, and whoever is missed least leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.schedules import Exposure, Problem, ScheduleSpec
from dysharp_env.schedules.replication import replicate_defaults

from ..opponents.rollouts import play
from ..policies.linear import FEATURES_OF_KIND

Changes = dict[str, Any]
Costs = Callable[[Sequence[ScheduleSpec], Sequence[int]], np.ndarray]
"""(schedule, workload) log makespans over a reference's, of the workloads at some places; inf where one cannot run."""

_NEAR = 0.05  # a plan is near the best of a workload if it takes at most that much longer, in logs
_LEAST = 8  # workloads that a change is played on first, at least
_MOST_ENGINES = 16  # in memory at a time
_SIGMA = 0.3  # of noise in a rule's weights, whose largest is about 1
_SMS = (1, 2, 4, 6, 8, 11, 16, 22, 28, 36, 48, 64)
_SETTINGS: dict[str, tuple[Any, ...]] = {
    "chunk_tokens": (4, 8, 16, 32, 64),
    "prefetch": ("none", "ahead", "early"),
    "partial_tiles": (False, True),
    "min_partial_tokens": (8, 16, 32, 64, 96),
    "hold": (False, True),
    "families.dispatch": ("", "bulk", "warp_direct", "warp_low_latency", "warp_queue"),
    "families.combine": ("", "bulk", "warp_direct", "warp_low_latency", "warp_queue"),
}
# How the weights of copies travel, as dysharp-copies' do.
COPYING: tuple[Changes, ...] = tuple(
    {"planner": "rule", "slots": "any", "family": "bulk", "sms": 16, "when": when, "weights": weights}
    for when in ("behind", "beside")
    for weights in ("multicast", "relay", "pull")
)
# Replicas that lie there before: what eplb keeps, beside whatever moves tokens.
PLACING: Changes = replicate_defaults("eplb")
_RULED = ("dispatch", "prefetch", "gemm", "combine")
# Of the best of a workload that no plan can run on: any plan is better than none.
_NOTHING = 10.0


@dataclass
class Member:
    """A plan and what it takes.

    Attributes:
        changes: Its settings, over those of the base schedule.
        costs: (workload,) log makespans over the reference's; inf where it cannot run.
    """

    changes: Changes
    costs: np.ndarray = field(repr=False)


class Proposal(NamedTuple):
    """A change to be tried.

    Attributes:
        changes: The plan's settings.
        schedule: It.
        near: Places of the workloads that it is played on first: those that its parent is good on.
    """

    changes: Changes
    schedule: ScheduleSpec
    near: np.ndarray


def fold(changes: Mapping[str, Any]) -> Changes:
    """Returns changes in which a section that is given as a whole holds the single settings that are given after it."""
    folded: Changes = {}
    for key, setting in changes.items():
        section, _, entry = key.partition(".")
        if entry and section in folded:
            folded[section] = {**folded[section], entry: setting}
        else:
            folded[key] = setting
    return folded


def with_copies(changes: Mapping[str, Any], copying: Changes | None) -> Changes:
    """Returns a plan's changes with replicas of experts, made in some way or placed before, or without; what that pays.

    Raises:
        ValueError: The plan exchanges no counts, without which nobody can plan copies.
    """
    bare = {key: value for key, value in changes.items() if key != "replicate"}
    paid = bare.get("pays.dispatch", ())
    if "plan" in paid:
        bare["pays.dispatch"] = [cost for cost in paid if cost != "plan"]
    if copying is None:
        return bare
    if copying == PLACING:
        return {**bare, "replicate": copying}
    if "count_exchange" not in paid:
        raise ValueError("without counts there can be no copies")
    return {**bare, "pays.dispatch": [*bare["pays.dispatch"], "plan"], "replicate": copying}


def log_makespans(schedules: Sequence[ScheduleSpec], problem: Problem) -> np.ndarray:
    """Returns the (schedule,) log makespans of a problem; inf under those that it cannot run."""
    logs = np.full(len(schedules), np.inf)
    engines = {}
    for place, schedule in enumerate(schedules):
        with suppress(ConfigError):
            engines[place] = problem.engine(schedule)
        if len(engines) == _MOST_ENGINES or (engines and place == len(schedules) - 1):
            logs[[*engines]] = np.log(play([*engines.values()], Exposure().max_candidates))
            engines = {}
    return logs


def best_costs(members: Iterable[Member]) -> np.ndarray:
    """Returns the (workload,) costs of the best of some plans on each workload."""
    return np.min([member.costs for member in members], axis=0)


def value(costs: np.ndarray) -> float:
    """Returns what is made small: the mean of (workload,) costs of the best plans."""
    return float(np.minimum(costs, _NOTHING).mean())


def choose_greedily(pool: Sequence[Member], count: int) -> list[Member]:
    """Returns the members of a pool that together are best, added one after the other, as long as one helps."""
    chosen: list[Member] = []
    best = np.full(len(pool[0].costs), _NOTHING)
    while len(chosen) < count:
        values = [value(np.minimum(best, member.costs)) for member in pool]
        place = int(np.argmin(values))
        if values[place] >= value(best) - 1e-6:
            break
        chosen.append(pool[place])
        best = np.minimum(best, pool[place].costs)
    return chosen


def without_least(members: Sequence[Member]) -> list[Member]:
    """Returns all members but the one that is missed least."""
    values = [value(best_costs([*members[:place], *members[place + 1 :]])) for place in range(len(members))]
    place = int(np.argmin(values))
    return [*members[:place], *members[place + 1 :]]


class Portfolio:
    """A search under way.

    Attributes:
        members: The plans, at most ``count``.
        episodes: Layers played.
    """

    def __init__(
        self, base: ScheduleSpec, costs: Costs, num_workloads: int, count: int, seed: int, least: int = _LEAST
    ) -> None:
        """Begins without plans; ``start`` plays a pool.

        Args:
            base: What plans are changes of.
            costs: Plays them.
            num_workloads: How many workloads there are.
            count: Plans at most.
            seed: Of the search.
            least: Workloads that a change is played on first, at least.
        """
        self.base, self._costs, self._num, self.count = base, costs, num_workloads, count
        self._least = min(least, num_workloads)
        self.members: list[Member] = []
        self.episodes = 0
        self._rng = np.random.default_rng(seed)

    @property
    def best(self) -> np.ndarray:
        """(workload,) costs of the best plan of each."""
        return best_costs(self.members)

    def start(self, pool: Sequence[Changes]) -> None:
        """Plays a pool of plans and keeps the best of them, together."""
        folded = [*map(fold, pool)]
        schedules = [self.base.with_changes(changes) for changes in folded]
        costs = self._play(schedules, range(self._num))
        played = [Member(changes, row) for changes, row in zip(folded, costs, strict=True)]
        self.members = choose_greedily([*self.members, *played], self.count)

    def step(self) -> bool:
        """Tries a change of a member; returns whether the portfolio is better with it."""
        proposal = self.propose()
        return proposal is not None and self.consider(proposal)

    def propose(self) -> Proposal | None:
        """Returns a change of a member that nobody has played; None if it is no schedule."""
        best = self.best
        parent = self.members[self._draw_parent(best)]
        changes = self._changed(parent.changes)
        try:
            schedule = self.base.with_changes(changes)
        except ConfigError:
            return None
        behind = parent.costs - best
        near = np.flatnonzero(behind <= max(_NEAR, float(np.partition(behind, self._least - 1)[self._least - 1])))
        return Proposal(changes, schedule, near)

    def consider(self, proposal: Proposal) -> bool:
        """Plays a proposal and keeps it if the portfolio is better with it, which it returns."""
        near, best = proposal.near, self.best
        first = self._play([proposal.schedule], near.tolist())[0]
        gain = np.maximum(best[near] - first, 0).sum() / self._num
        if gain <= 0:
            return False
        rest = np.setdiff1d(np.arange(self._num), near)
        costs = np.empty(self._num)
        costs[near] = first
        costs[rest] = self._play([proposal.schedule], rest.tolist())[0]
        before = value(best)
        grown = [*self.members, Member(proposal.changes, costs)]
        kept = grown if len(grown) <= self.count else without_least(grown)
        if value(best_costs(kept)) >= before - 1e-7:
            return False
        self.members = kept
        return True

    def _play(self, schedules: Sequence[ScheduleSpec], places: Sequence[int]) -> np.ndarray:
        self.episodes += len(schedules) * len(places)
        return self._costs(schedules, places)

    def _draw_parent(self, best: np.ndarray) -> int:
        """Returns the place of a member, more often of one that is best on many workloads."""
        wins = np.array([(member.costs <= best + 1e-9).sum() + 1.0 for member in self.members])
        return int(self._rng.choice(len(wins), p=wins / wins.sum()))

    def _changed(self, changes: Mapping[str, Any]) -> Changes:
        """Returns a plan's changes with one or two more: of a setting, or of a rule."""
        changed = dict(changes)
        for _ in range(int(self._rng.integers(1, 3))):
            drawn = self._rng.random()
            if drawn < 0.1:
                counts = "count_exchange" in changed.get("pays.dispatch", ())
                ways = [None, PLACING, *(COPYING if counts else ())]
                changed = with_copies(changed, ways[self._rng.integers(len(ways))])
            elif drawn < 0.5:
                self._change_rule(changed)
            else:
                self._change_setting(changed)
        return changed

    def _change_setting(self, changed: Changes) -> None:
        keys = [*_SETTINGS, *["sms.dispatch", "sms.combine"] * 2]
        if "pays" in changed:  # as its family of kernels starts; another would start for less
            keys = [key for key in keys if not key.startswith("families.")]
        key = keys[self._rng.integers(len(keys))]
        options = _SETTINGS.get(key, _SMS)
        section, _, entry = key.rpartition(".")
        given = changed.get(section, {}) if section else changed
        now = given.get(entry, self._of_base(key))
        if all(type(option) is int for option in options):
            size = options[-1] if isinstance(now, str) else now  # of SM groups that have all
            place = int(np.argmin([abs(option - size) for option in options])) + int(self._rng.choice((-2, -1, 1, 2)))
            option = options[min(max(place, 0), len(options) - 1)]
        else:  # no order in which to step
            others = [option for option in options if option != now]
            option = others[self._rng.integers(len(others))]
        if section:
            changed[section] = {**given, entry: option}
        else:
            changed[key] = option

    def _of_base(self, key: str) -> Any:
        node: Any = self.base
        for part in key.split("."):
            node = getattr(node, part)
        return node

    def _change_rule(self, changed: Changes) -> None:
        rule = {kind: dict(weights) for kind, weights in changed.get("rule", self.base.rule.root).items()}
        kind = str(self._rng.choice(_RULED, p=(0.15, 0.2, 0.5, 0.15)))
        names = FEATURES_OF_KIND[kind]
        weights = rule.setdefault(kind, {} if kind == "prefetch" else {"order": -1.0})
        if kind == "prefetch" and not weights:
            weights.update({"drops": -1.0, "is_hold": -0.01})
        for name in self._rng.choice(names, size=int(self._rng.integers(1, 4)), replace=False):
            weights[str(name)] = round(weights.get(str(name), 0.0) + float(self._rng.normal(0, _SIGMA)), 3)
        changed["rule"] = rule
