"""A GPU that starts its kernels later than the others, and who waits for it."""

from __future__ import annotations

import numpy as np

from dysharp_env.simulator.faults import LATE_GPU
from dysharp_env.simulator.state.codes import NOTHING, OPENS_ALL
from dysharp_env.simulator.state.state import State


def start_late(state: State, late_ps: int, meets: bool) -> None:
    """Lets a layer open later everywhere if GPUs meet before, or else on the late GPU alone.

    Whatever that pays behind gates, alone or with the others, it does not pay before it has started.
    """
    if late_ps == 0:
        return
    if meets:
        state.heap["time_ps"][0] += late_ps
    starts_ps = int(state.heap["time_ps"][0]) + late_ps * (not meets)
    concerns = (state.gates["stage"] != OPENS_ALL) & np.isin(state.gates["gpu"], (NOTHING, LATE_GPU))
    state.gates["not_before_ps"][concerns] = np.maximum(state.gates["not_before_ps"][concerns], starts_ps)
