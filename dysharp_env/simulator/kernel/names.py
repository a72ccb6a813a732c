"""What signatures of compiled functions call their arguments; to Python they are anything, to numba rows of records."""

from __future__ import annotations

from typing import Any

Root = Any  # the record of ROOT: parameters, counters, and the arrays of the state by name
Gpu = Any  # a record of GPU
Group = Any  # a record of GROUP
Flow = Any  # a record of FLOW
Event = Any  # a record of EVENT
Events = Any  # rows of EVENT
