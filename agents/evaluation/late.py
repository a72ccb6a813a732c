"""A policy whose splits come late: each takes effect only when the next one on its GPU is asked.

In the engine a decision takes no time. A GPU would decide on its split while it works on with the one it has, so what
deciding costs is that a split comes late. Here it comes late by a whole moment, mostly tens of microseconds, where a
warp needs less than one: it shows how much hangs on deciding at the right time, and is no estimate of a kernel's loss.
"""

from __future__ import annotations

from collections.abc import Sequence

from agents.evaluation.recording import best_row
from agents.opponents.contender import Learned
from agents.opponents.play import Played, played
from dysharp_env.schedules import Starter, load_schedule
from dysharp_env.simulator.layout import SPLIT
from dysharp_env.workload.suite import SuiteWorkload


def play_late(policy: Learned, workloads: Sequence[SuiteWorkload]) -> list[Played]:
    """Returns workloads played with every split but the first taken one moment late on its GPU.

    Raises:
        ConfigError: The schedule beneath does not fit a scenario.
    """
    schedule, runs = load_schedule(policy.env.schedule), []
    for item in workloads:
        system, layer, scale = item.scenario.system, item.scenario.layer, item.entry.compute_scale
        starter = Starter(system, layer, schedule, exposure=policy.env.exposure(), compute_scale=scale)
        run = starter.start(item.workload)
        first: int | None = None
        decided: dict[int, int] = {}  # by GPU: what comes into effect at its next moment
        while (decision := run.engine.advance()) is not None:
            row = best_row(policy.network, decision)
            if decision.kind != SPLIT:
                # It cannot be taken later: what it chose from would be gone.
                run.engine.decide(row)
                continue
            if first is None:
                # The one for all GPUs is decided before the layer starts.
                first = row
                run.engine.decide(row)
                continue
            run.engine.decide(decided.get(decision.gpu, first))
            decided[decision.gpu] = row
        runs.append(run)
    return played(runs, workloads)
