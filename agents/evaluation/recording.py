"""Stores the rows of an evaluation as decision lists: every row is played again with all its decisions asked.

Choices that a network or a random stream takes are repeated here one by one, so that the file holds them and the
checker needs neither weights nor random numbers. The makespan stored is the one the table shows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from agents.evaluation.decision_list import SUFFIX, AskedSpec, DecisionList, routing_digest, write_decisions
from agents.evaluation.table import EvaluationRow, env_of_random
from agents.opponents.contender import Contender, Learned
from agents.opponents.lookahead import LookAhead, look_ahead
from agents.opponents.play import FIRST, choose_first, random_chooser
from agents.opponents.rollouts import prepare
from dysharp_env.config import ConfigError
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import Exposure, ScheduleSpec, Starter, load_schedule
from dysharp_env.simulator.costs import PS_PER_US
from dysharp_env.simulator.engine import Decision
from dysharp_env.simulator.network import Network
from dysharp_env.workload.suite import SuiteWorkload

# What waits, and the place of its workload in the suite -> the row taken.
Answer = Callable[[Decision, int], int]


def check_folder(option: str, folder: str | None) -> None:
    """Checks that decision lists can be written to a folder, which is made if only it is missing; None is no folder.

    Raises:
        ConfigError: They cannot.
    """
    if folder is None:
        return
    try:
        Path(folder).mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write {option}='{folder}': {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"cannot write {option}='{folder}': the folder is not writable")


def write_rows(
    folder: str, rows: Sequence[EvaluationRow], contenders: Sequence[Contender], workloads: Sequence[SuiteWorkload]
) -> None:
    """Writes a decision list for every row.

    Args:
        folder: Where to; it exists.
        rows: An evaluation's rows.
        contenders: Whose rows they are, the reference among them.
        workloads: The suite's workloads.

    Raises:
        ConfigError: A file cannot be written.
    """
    by_name = {contender.name: contender for contender in contenders}
    places = {item.name: place for place, item in enumerate(workloads)}
    players: dict[tuple[str, int | None], Player] = {}
    for row in rows:
        key = (row.policy, row.seed)
        if key not in players:
            players[key] = player_of(by_name[row.policy], row.seed, env_of_random(contenders), workloads)
        place = places[row.workload]
        decisions = players[key].record(row, workloads[place], place)
        label = re.sub(r"[^A-Za-z0-9.+-]+", "-", row.policy) + ("" if row.seed is None else f"-seed{row.seed}")
        write_decisions(Path(folder) / f"{label}-{place:03}{SUFFIX}", decisions)


class Player:
    """One contender with one seed: the schedule beneath, what is asked, and who answers."""

    def __init__(self, schedule: ScheduleSpec, exposure: Exposure, answer: Answer):
        self.schedule, self.exposure, self.answer = schedule, exposure, answer

    def record(self, row: EvaluationRow, item: SuiteWorkload, place: int) -> DecisionList:
        """Returns the decision list of a row."""
        choices = tuple(choice for _, choice in self.play(item, place))
        return DecisionList(
            policy=row.policy,
            seed=row.seed,
            workload=row.workload,
            scenario=item.scenario.spec.model_validate(item.entry.scenario_fields()),
            workload_seed=item.seed,
            routing_sha256=routing_digest(item.workload),
            schedule=self.schedule,
            asked=AskedSpec.of(self.exposure),
            choices=choices,
            makespan_ps=round(row.makespan_us * PS_PER_US),
        )

    def play(self, item: SuiteWorkload, place: int) -> Iterator[tuple[Decision, int]]:
        """Yields every decision of a workload with the row taken, before it is taken."""
        system, scale = item.scenario.system, item.entry.compute_scale
        starter = Starter(system, item.workload.layer, self.schedule, exposure=self.exposure, compute_scale=scale)
        engine = starter.start(item.workload).engine
        while (decision := engine.advance()) is not None:
            choice = self.answer(decision, place)
            yield decision, choice
            engine.decide(choice)


def player_of(
    contender: Contender, seed: int | None, env_of_choosers: EnvSpec, workloads: Sequence[SuiteWorkload]
) -> Player:
    """Returns who plays for a contender.

    Args:
        contender: Who.
        seed: Which of its training seeds, or streams of random choices.
        env_of_choosers: In which ``random`` and ``first`` choose.
        workloads: The suite's workloads.
    """
    if contender.schedule is not None:
        return Player(contender.schedule, Exposure(), _nobody)
    if contender.ahead is not None:
        return _player_ahead(contender.ahead, workloads)
    for policy in contender.learned():
        if policy.seed == seed:
            return _player_learned(policy)
    chooser = choose_first if contender.name == FIRST else random_chooser(seed or 0, len(workloads))

    def answer(decision: Decision, place: int) -> int:
        return int(chooser({}, decision.mask[None], [place])[0])

    return Player(load_schedule(env_of_choosers.schedule), env_of_choosers.exposure(), answer)


def _player_ahead(ahead: LookAhead, workloads: Sequence[SuiteWorkload]) -> Player:
    plans: dict[int, Iterator[int]] = {}

    def answer(_: Decision, place: int) -> int:
        if place not in plans:
            (workload,) = prepare([workloads[place]])
            plans[place] = iter(look_ahead(workload, ahead).choices)
        return next(plans[place])

    return Player(ahead.schedule, ahead.exposure(), answer)


def _player_learned(policy: Learned) -> Player:
    schedule = load_schedule(policy.env.schedule)
    return Player(schedule, policy.env.exposure(), lambda decision, _: best_row(policy.network, decision))


def best_row(network: Network, decision: Decision) -> int:
    """Returns the legal row that a network scores highest, the first of equals, as the engine does."""
    scores = network.scores(decision.features[: decision.num_candidates], decision.context)
    legal = decision.mask[: decision.num_candidates]
    return int(np.where(legal, scores, -np.inf).argmax())


def _nobody(_: Decision, __: int) -> int:
    raise AssertionError("a schedule's own rule takes all its decisions")
