"""``python -m agents.check``: replays stored decision lists in the plain-Python twin and confirms their makespans.

``agents.evaluate --decisions DIR`` writes the lists. The twin (dysharp_env.simulator.twin) shares no code with the
compiled engine's loop, so a row of a results table can be verified without trusting the engine. A row that does not
replay to the picosecond is named and gives exit status 1. Plans and copies, chosen before the layer, are
given to the twin.

What a list says of itself is not believed: the workload's name is derived from its scenario, a schedule's name from
its content, and below the rows stand digests of the systems, models, schedules and routing that were played, and
whether they are this package's. With ``--table`` the rows and summaries of the evaluation's JSON must follow from the
lists. Who answered what was asked, and the seed of whoever did, cannot be derived: they are what the list says.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from dysharp_env.files import ConfigError, shown
from dysharp_env.schedules import LayerRun, Problem
from dysharp_env.simulator.twin import Twin

from .evaluation.decision_list import SUFFIX, DecisionList, read_decisions, routing_digest
from .evaluation.provenance import Part, misnamed, parts_of
from .evaluation.stored_table import StoredTable
from .kit import Command, entry

NOT_CONFIRMED = 1


def build() -> Command:
    """Returns the options of the command."""
    command = Command("check", __doc__, run)
    command.add("--table", metavar="FILE.json", help="results (agents.evaluate --json) that the lists must prove")
    return command.add("path", nargs="+", help=f"a decision list (*{SUFFIX}), or a folder of them")


def run(args: argparse.Namespace) -> int:
    """Replays every list, prints a line for each, and returns 1 if one is not confirmed, or the table not proved."""
    # All files are read first, one after the other: a damaged one is reported before minutes are spent on the others,
    # and only one is held at a time.
    paths = [path for given in args.path for path in _files(Path(given))]
    parts = sorted({part for path in paths for part in parts_of(read_decisions(path))})
    table = StoredTable(Path(args.table)) if args.table else None
    failed = 0
    for path in paths:
        decisions = read_decisions(path)
        fault = fault_of(decisions, table)
        failed += fault is not None
        seed = "" if decisions.seed is None else f" (seed {decisions.seed})"
        row = f"{path}: {shown(decisions.policy)}{seed} on {shown(decisions.workload)}"
        figures = f"{decisions.makespan_ps} ps, {len(decisions.choices)} choices"
        print(f"confirmed      {row}: {figures}" if fault is None else f"NOT CONFIRMED  {row}: {fault}", flush=True)
    for part in parts:
        print(part)
    print(f"{len(paths) - failed} of {len(paths)} rows confirmed{_foreign(parts)}")
    unproved = table.faults() if table else []
    for fault in unproved:
        print(f"NOT PROVED     {args.table}: {fault}")
    if table and not unproved and not failed:
        print(f"{args.table}: all {len(table.rows)} rows are proved, and its summaries follow from them")
    return NOT_CONFIRMED if failed or unproved else 0


def _foreign(parts: Sequence[Part]) -> str:
    """Returns how many parts are not this package's, behind a total."""
    foreign = sum(not part.is_shipped for part in parts)
    return f", with {foreign} of {len(parts)} parts that are not shipped" if foreign else ", all of shipped parts"


def _files(path: Path) -> list[Path]:
    if not os.path.isdir(path):
        return [path]
    files = sorted(path.glob(f"*{SUFFIX}"))
    if not files:
        raise ConfigError(f"folder '{path}' holds no decision list (*{SUFFIX})")
    return files


def fault_of(decisions: DecisionList, table: StoredTable | None = None) -> str | None:
    """Returns why a replay does not give what is stored, or None if it does; a table must then say so as well.

    Raises:
        ConfigError: The scenario names something that does not exist here, or the schedule does not fit it.
    """
    scenario = decisions.scenario.build()
    workload, scale = scenario.draw(decisions.workload_seed), decisions.scenario.compute_scale
    if fault := misnamed(decisions, scenario, workload):
        return fault
    problem = Problem.of(scenario.system, workload, compute_scale=scale).renamed(decisions.renaming)
    if routing_digest(problem.workload) != decisions.routing_sha256:
        return "the scenario and seed draw another routing than the one that was played"
    run = problem.start(decisions.schedule, decisions.asked.exposure())
    fault = _replay(run, decisions)
    return table.fault_of(decisions, run.lower_bound_ps) if fault is None and table else fault


def _replay(run: LayerRun, decisions: DecisionList) -> str | None:
    player: LayerRun | Twin = run if run.waiting else run.twin()
    for number, choice in enumerate(decisions.choices):
        decision = player.advance()
        if decision is None:
            return f"it is over after {number} choices, but {len(decisions.choices)} are stored"
        if choice >= len(decision.mask) or not decision.mask[choice]:
            return f"choice {number} takes row {choice}, which is not legal"
        player.decide(choice)
        if player is run and run.waiting is None:
            player = run.twin()
    if player.advance() is not None:
        return f"it goes on after all {len(decisions.choices)} choices"
    assert isinstance(player, Twin)
    if player.now_ps != decisions.makespan_ps:
        return f"the stored makespan is {decisions.makespan_ps} ps, the replay's {player.now_ps} ps"
    return None


main = entry(build, __name__)
