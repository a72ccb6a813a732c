"""Steps of a critical path: what was going on from when to when, and what that waited for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One stretch of the critical path.

    Attributes:
        what: What was going on.
        waited_for: What took the time, or what had to come first.
        stage: ``software``, ``dispatch``, ``gemm1``, ``gemm2`` or ``combine``; what thread blocks lost time to:
            ``memory`` or ``communication``; ``copying``, where weights of copies were on their way.
        is_waiting: Whether nothing was done for the path in this time: something else was in its way.
        start_ps, end_ps: From when to when.
    """

    what: str
    waited_for: str
    stage: str
    is_waiting: bool
    start_ps: int
    end_ps: int

    def record(self) -> dict[str, object]:
        """Returns the step as an item of ``path`` in a JSON result."""
        times = {"start_us": self.start_ps / 1e6, "end_us": self.end_ps / 1e6}
        return {"what": self.what, **times, "waited_for": self.waited_for}


def joined(steps: list[Step]) -> list[Step]:
    """Returns the steps with neighbours that say the same made one."""
    together: list[Step] = []
    for step in steps:
        if together and (together[-1].what, together[-1].waited_for) == (step.what, step.waited_for):
            last = together.pop()
            step = Step(step.what, step.waited_for, step.stage, step.is_waiting, last.start_ps, step.end_ps)
        together.append(step)
    return together
