"""The search of a tuning run: from all shipped schedules and plans, by changes, within a time.

What is played first is every schedule on one layer of each number of tokens; those near the best are played on all.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dysharp_env.config import ConfigError, preset_names
from dysharp_env.files import read_mapping, write_text
from dysharp_env.schedules import Problem, ScheduleSpec, load_schedule
from dysharp_env.workers import Workers

from ..training.portfolio import Changes, Member, Portfolio, log_makespans

BASE = "dysharp"
_PROPOSED = 6  # changes tried at a time
_HOPEFUL = 0.004  # of a log makespan above the best's on one layer, up to which a change is played on others
_TOGETHER = 6  # schedules that a worker plays at a time
_NEAR = 0.08  # of a log makespan above the best's on one layer; what is further behind is not played on the others
_KEPT = 2  # of the schedules begun with, for each number of tokens
_NAMES = ("name", "description", "aliases", "found_by", "best_of", "plans")
_WHOLE = ("rule", "replicate")  # sections that changes hold as one
_ALWAYS = ("pays.dispatch", "rule")  # which whoever changes a plan looks at


def changes_of(schedule: ScheduleSpec, base: ScheduleSpec) -> Changes:
    """Returns what makes a schedule of the base, but for its name and what it would choose from."""
    found: Changes = {}
    ours, theirs = schedule.model_dump(mode="json"), base.model_dump(mode="json")
    for key, setting in ours.items():
        if key in _NAMES:
            continue
        if isinstance(setting, dict) and key not in _WHOLE:
            found |= {f"{key}.{part}": each for part, each in setting.items() if each != theirs[key].get(part)}
        elif setting != theirs[key] or key in _ALWAYS:
            found[key] = setting
    return {"pays.dispatch": ours["pays"]["dispatch"], **found}


def pool(base: ScheduleSpec) -> list[Changes]:
    """Returns all shipped schedules, their variants and their plans, as changes of the base."""
    found: list[Changes] = []
    for name in preset_names("schedules"):
        schedule = load_schedule(name)
        options = schedule.options if schedule.plans else schedule.variants()
        found += [changes_of(option, base) for option in options if option.replicate.planner != "eplb"]
    kept = {json.dumps(changes, sort_keys=True): changes for changes in found}
    return [*kept.values()]


@dataclass
class TuneSearch:
    """A search under way, which can be saved and gone on with.

    Attributes:
        problems: Layers of training, those of one number of tokens after those of another.
        each: How many of each number of tokens.
        portfolio: What is searched.
        began_with: The best schedules of the start, a few for each number of tokens.
        steps, changes, elapsed_s: How often it has tried how many changes, and wall time spent, also before it was
            gone on with.
        round_s: Wall time that one layer of each number of tokens took at the start.
    """

    problems: Sequence[Problem]
    each: int
    workers: Workers
    seed: int
    portfolio: Portfolio = field(init=False)
    began_with: list[Member] = field(default_factory=list)
    steps: int = 0
    changes: int = 0
    elapsed_s: float = 0.0
    round_s: float = 0.0

    def __post_init__(self) -> None:
        """Begins without plans."""
        self._make()

    def _make(self) -> None:
        count = 2 * len(self.problems) // self.each
        base, seed = load_schedule(BASE), self.seed + 1_000_003 * self.steps
        self.portfolio = Portfolio(base, self.costs, len(self.problems), count, seed, least=self.each)

    def costs(self, schedules: Sequence[ScheduleSpec], places: Sequence[int]) -> np.ndarray:
        """Returns (schedule, problem) log makespans over the lower bound, of the problems at some places."""
        chosen = [self.problems[place] for place in places]
        bounds = np.log([problem.bound.total_ps for problem in chosen])
        return play_all(schedules, chosen, self.workers, self.problems) - bounds

    def start(self) -> None:
        """Plays all that is shipped.

        Raises:
            ConfigError: The machine can run nothing of it.
        """
        base, first = self.portfolio.base, range(0, len(self.problems), self.each)
        self.costs([base], range(len(self.problems)))  # workers take a while to start
        began_s = time.monotonic()
        given = pool(base)
        costs = self.costs([base.with_changes(changes) for changes in given], first)
        best = costs.min(axis=0)
        if not np.isfinite(best).all():
            raise ConfigError(f"{self.problems[0].system.name} can run no schedule that is shipped")
        near = [changes for changes, row in zip(given, costs, strict=True) if (row <= best + _NEAR).any()]
        all_costs = self.costs([base.with_changes(changes) for changes in near], range(len(self.problems)))
        self.round_s = (time.monotonic() - began_s) / (len(given) + len(near) * self.each)
        played = [Member(changes, row) for changes, row in zip(near, all_costs, strict=True)]
        for place in first:
            means = [float(member.costs[place : place + self.each].mean()) for member in played]
            order = np.argsort(means, kind="stable")[:_KEPT].tolist()
            self.began_with += [played[at] for at in order if not _is_among(played[at], self.began_with)]
        self.portfolio.members = self.began_with[: self.portfolio.count]

    def step(self) -> None:
        """Tries some changes: each on one layer that its parent is good on, and those that do well there on more."""
        self.steps += 1
        rng = np.random.default_rng([self.seed, self.steps])
        drawn = [self.portfolio.propose() for _ in range(_PROPOSED)]
        proposals = [proposal for proposal in drawn if proposal is not None]
        places = [int(rng.choice(proposal.near)) for proposal in proposals]
        items = [_Some((each.schedule,), self.problems[place]) for each, place in zip(proposals, places, strict=True)]
        played = self.workers.map(_Some.played, items, size=_Some.size, constants=self.problems)
        self.portfolio.episodes += len(items)
        self.changes += len(items)
        for proposal, place, logs in zip(proposals, places, played, strict=True):
            cost = float(logs[0]) - math.log(self.problems[place].bound.total_ps)
            if cost < self.portfolio.best[place] + _HOPEFUL:
                self.portfolio.consider(proposal)

    @property
    def candidates(self) -> list[Member]:
        """What is chosen from in the end: what it began with, then what else the portfolio has."""
        found = [member for member in self.portfolio.members if not _is_among(member, self.began_with)]
        return [*self.began_with, *found]

    def gains(self) -> np.ndarray:
        """Returns, for each number of tokens, the log makespan saved on the layers of training since the start."""
        before = np.min([member.costs for member in self.began_with], axis=0)
        return (before - self.portfolio.best).reshape(-1, self.each).mean(axis=1)

    def save(self, path: Path) -> None:
        """Writes what ``load`` reads."""
        parts = {"members": self.portfolio.members, "began_with": self.began_with}
        state: dict[str, Any] = {name: [_plain(member) for member in members] for name, members in parts.items()}
        write_text(
            path,
            json.dumps(
                {
                    "steps": self.steps,
                    "changes": self.changes,
                    "elapsed_s": self.elapsed_s,
                    "round_s": self.round_s,
                    **state,
                }
            )
            + "\n",
        )

    def load(self, path: Path) -> None:
        """Goes on where a file says.

        Raises:
            ConfigError: It is damaged or of another search.
        """
        state = read_mapping(path)
        try:
            self.steps, self.changes = int(state["steps"]), int(state["changes"])
            self.elapsed_s, self.round_s = float(state["elapsed_s"]), float(state["round_s"])
            self._make()  # other changes than those that were drawn already
            self.began_with = [self._member(data) for data in state["began_with"]]
            self.portfolio.members = [self._member(data) for data in state["members"]]
        except (KeyError, TypeError, ValueError):
            raise ConfigError(f"'{path}' is damaged or of another search; remove it to begin anew") from None

    def _member(self, data: dict[str, Any]) -> Member:
        costs = np.array([np.inf if cost is None else cost for cost in data["costs"]], dtype=float)
        if costs.shape != (len(self.problems),):
            raise ValueError
        return Member(data["changes"], costs)


def _is_among(member: Member, members: Sequence[Member]) -> bool:
    return any(member.changes == each.changes for each in members)


def _plain(member: Member) -> dict[str, Any]:
    costs = [float(cost) if np.isfinite(cost) else None for cost in member.costs]
    return {"changes": member.changes, "costs": costs}


class _Some(NamedTuple):
    """Some schedules on a problem: what a worker plays at a time."""

    schedules: tuple[ScheduleSpec, ...]
    problem: Problem

    def played(self) -> np.ndarray:
        return log_makespans(self.schedules, self.problem)

    def size(self) -> float:
        return self.problem.size * len(self.schedules)


def play_all(
    schedules: Sequence[ScheduleSpec],
    problems: Sequence[Problem],
    workers: Workers,
    constants: Sequence[Problem] | None = None,
) -> np.ndarray:
    """Returns (schedule, problem) log makespans; inf where one cannot run.

    Args:
        schedules: Who plays.
        problems: What.
        workers: Where.
        constants: Problems that later calls play too; None: these.
    """
    if not schedules or not problems:
        return np.zeros((len(schedules), len(problems)))
    parts = [tuple(schedules[first : first + _TOGETHER]) for first in range(0, len(schedules), _TOGETHER)]
    items = [_Some(part, problem) for part in parts for problem in problems]
    played = workers.map(_Some.played, items, size=_Some.size, constants=constants or problems)
    rows = [np.stack(played[first : first + len(problems)], axis=1) for first in range(0, len(items), len(problems))]
    return np.concatenate(rows)
