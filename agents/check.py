"""``python -m agents.check``: replays stored decision lists in the plain-Python twin and confirms their makespans.

``agents.evaluate --decisions DIR`` writes the lists. The twin (dysharp_env.simulator.twin) shares no code with the
compiled engine's loop, so a row of a results table can be verified without trusting the engine. A row that does not
replay to the picosecond is named and gives exit status 1. Plans and copies, chosen before the layer, are
given to the twin.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dysharp_env.config import ConfigError
from dysharp_env.schedules import LayerRun, Problem
from dysharp_env.simulator.twin import Twin

from .evaluation.decision_list import SUFFIX, DecisionList, read_decisions, routing_digest
from .kit import Command, entry

NOT_CONFIRMED = 1


def build() -> Command:
    """Returns the options of the command."""
    command = Command("check", __doc__, run)
    return command.add("path", nargs="+", help=f"a decision list (*{SUFFIX}), or a folder of them")


def run(args: argparse.Namespace) -> int:
    """Replays every list, prints a line for each, and returns 1 if one is not confirmed."""
    # All files are read first: a damaged one is reported before minutes are spent on the others.
    lists = [(path, read_decisions(path)) for given in args.path for path in _files(Path(given))]
    failed = 0
    for path, decisions in lists:
        fault = fault_of(decisions)
        failed += fault is not None
        seed = "" if decisions.seed is None else f" (seed {decisions.seed})"
        row = f"{path}: {decisions.policy}{seed} on {decisions.workload}"
        figures = f"{decisions.makespan_ps} ps, {len(decisions.choices)} choices"
        print(f"confirmed      {row}: {figures}" if fault is None else f"NOT CONFIRMED  {row}: {fault}", flush=True)
    print(f"{len(lists) - failed} of {len(lists)} rows confirmed")
    return NOT_CONFIRMED if failed else 0


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob(f"*{SUFFIX}"))
    if not files:
        raise ConfigError(f"folder '{path}' holds no decision list (*{SUFFIX})")
    return files


def fault_of(decisions: DecisionList) -> str | None:
    """Returns why a replay does not give the stored makespan, or None if it does.

    Raises:
        ConfigError: The scenario names something that does not exist here, or the schedule does not fit it.
    """
    scenario = decisions.scenario.build()
    workload, scale = scenario.draw(decisions.workload_seed), decisions.scenario.compute_scale
    problem = Problem.of(scenario.system, workload, compute_scale=scale).renamed(decisions.renaming)
    if routing_digest(problem.workload) != decisions.routing_sha256:
        return "the scenario and seed draw another routing than the one that was played"
    return _replay(problem.start(decisions.schedule, decisions.asked.exposure()), decisions)


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
