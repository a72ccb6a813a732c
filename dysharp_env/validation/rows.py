"""One row of a validation: an expected value beside a simulated one, and what their difference means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["exact", "set", "predicted"]


@dataclass(frozen=True)
class ValidationRow:
    """One comparison.

    Attributes:
        group: What the row is compared with.
        name: What is compared, with its unit.
        expected, simulated: The two values.
        role: ``exact`` (must agree but for rounding), ``set`` (a parameter was chosen to meet it) or ``predicted``.
        tolerance: Largest difference that passes, in the unit of the values.
    """

    group: str
    name: str
    expected: float
    simulated: float
    role: Role
    tolerance: float

    @property
    def error_pct(self) -> float:
        """Simulated over expected, less one, in percent."""
        return 100.0 * (self.simulated - self.expected) / self.expected

    @property
    def passes(self) -> bool:
        """Whether the difference is within the tolerance."""
        return abs(self.simulated - self.expected) <= self.tolerance

    def record(self) -> dict[str, Any]:
        """Returns the row as one item of ``rows`` in a JSON result."""
        fields = ("group", "name", "expected", "simulated", "error_pct", "role")
        return {**{name: getattr(self, name) for name in fields}, "pass": self.passes}
