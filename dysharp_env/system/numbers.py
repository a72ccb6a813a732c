"""Numbers that settings of a machine may be."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

# The upper ends keep every time the engine can form inside int64 picoseconds (about 106 days).
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
CountOrZero = Annotated[int, Field(ge=0, le=1_000_000_000)]
Rate = Annotated[float, Field(ge=1e-3, le=1e9, allow_inf_nan=False)]
Micros = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Cost = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
