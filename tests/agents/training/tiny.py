"""A training by evolution that takes a second or two."""

from __future__ import annotations

from typing import Any

EVOLUTION: dict[str, Any] = {
    "env": {"suite": "smoke", "exposed": ["split"], "max_candidates": 8, "split_moments": 2},
    "evolution": {"pairs": 2, "batch": 2, "threads": 1},
}
