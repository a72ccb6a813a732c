"""What signatures of compiled functions call their arguments; to Python they are anything, to numba rows of records."""

from __future__ import annotations

from typing import Any

Root = Any  # the record of ROOT: parameters, counters, and the arrays of the state by name
Player = Any  # a record of PLAYER
Scorer = Any  # a record with a network: ROOT or PLAYER
Part = Any  # a record of PART
Flow = Any  # a record of FLOW
Link = Any  # a record of UPLINK or PORT
Flags = Any  # rows of flags
Event = Any  # a record of EVENT
Store = Any  # a record of STORE
Events = Any  # rows of EVENT
