"""Stores the rows of an evaluation as decision lists: every row is played again with all its decisions asked.

Choices that a network or a random stream takes are repeated here one by one, so that the file holds them and the
checker needs neither weights nor random numbers. The makespan stored is the one the table shows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dysharp_env.schedules import Problem
from dysharp_env.schedules.opponent import Contender, Opponent, Played, stepwise
from dysharp_env.simulator.hardware import PS_PER_US
from dysharp_env.workload.suite import SuiteWorkload

from .decision_list import SUFFIX, AskedSpec, DecisionList, routing_digest, write_decisions
from .table import opponents_of


def write_rows(
    folder: str,
    rows: Sequence[Played],
    contenders: Sequence[Contender],
    items: Sequence[SuiteWorkload],
    problems: Sequence[Problem],
) -> None:
    """Writes a decision list for every row of an evaluation into a folder that exists.

    The contenders are all whose rows there are, the reference among them; the items are the suite's, and the problems
    those that were played, in that order.

    Raises:
        ConfigError: A file cannot be written.
    """
    players = opponents_of(contenders)
    numbers = {item.name: number for number, item in enumerate(items)}
    places = {(problem.name, problem.renaming): place for place, problem in enumerate(problems)}
    for row in rows:
        number, place = numbers[row.workload], places[row.workload, row.renaming]
        decisions = _record(row, players[row.policy, row.seed], items[number], problems[place], place)
        label = re.sub(r"[^A-Za-z0-9.+-]+", "-", row.policy) + ("" if row.seed is None else f"-seed{row.seed}")
        label += f"-{number:03}" + f"-renaming{row.renaming}" * (row.renaming > 0)
        write_decisions(Path(folder) / f"{label}{SUFFIX}", decisions)


def _record(row: Played, opponent: Opponent, item: SuiteWorkload, problem: Problem, place: int) -> DecisionList:
    """Returns the decision list of a row."""
    run = opponent.start(problem)
    choices = tuple(row_taken for _, row_taken in stepwise(run, opponent.answers(problem, place)))
    return DecisionList(
        policy=row.policy,
        seed=row.seed,
        workload=row.workload,
        scenario=item.scenario.spec.model_validate(item.entry.scenario_fields()),
        workload_seed=item.seed,
        renaming=row.renaming,
        routing_sha256=routing_digest(problem.workload),
        schedule=run.offered,
        asked=AskedSpec.of(opponent.exposure),
        choices=choices,
        makespan_ps=round(row.makespan_us * PS_PER_US),
    )
