"""From when to when each stage of a layer runs."""

from __future__ import annotations

from dysharp_env.schedules import LayerRun
from dysharp_env.simulator.result import STAGES, WEIGHTS


def stages_of(run: LayerRun) -> list[str]:
    """Returns the stages that a layer has: with copies of experts also ``weights``."""
    return [*STAGES, *([WEIGHTS] if len(run.engine.state.copies) else [])]


def spans_of(run: LayerRun) -> dict[str, tuple[float, float]]:
    """Returns from when to when each stage has run so far, in microseconds; of a running layer those that began."""
    root, now_us = run.engine.state.root[0], run.engine.now_ps / 1e6
    times = {stage: (int(root[f"{stage}_first"]) / 1e6, int(root[f"{stage}_last"]) / 1e6) for stage in stages_of(run)}
    return {
        stage: (first_us, last_us if run.engine.done else now_us)
        for stage, (first_us, last_us) in times.items()
        if first_us >= 0
    }
