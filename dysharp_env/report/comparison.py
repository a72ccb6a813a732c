"""One line of a validation: an expected value beside a simulated one, and what their difference means."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
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
        return {
            "group": self.group,
            "name": self.name,
            "expected": self.expected,
            "simulated": self.simulated,
            "error_pct": self.error_pct,
            "role": self.role,
            "pass": self.passes,
        }


def expected_remote_gpus(experts: int, top_k: int, num_gpus: int) -> float:
    """Returns the mean R of tokens that choose ``top_k`` experts uniformly, experts spread evenly over the GPUs."""
    others = experts - experts // num_gpus
    return (num_gpus - 1) * (1 - comb(others, top_k) / comb(experts, top_k))
