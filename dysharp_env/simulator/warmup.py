"""Compiles the engine ahead of its first use, and says so when that takes long enough to be wondered about."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import typeof

from dysharp_env.native import cache_root
from dysharp_env.simulator.kernel import loop
from dysharp_env.simulator.state.records import NOBODY, ROOT

# What numba has made of the function.
advance: Any = loop.advance
NOTICE = "compiling the simulator (once; later runs load it from numba's cache) ..."
NOTICE_WITHOUT_CACHE = (
    "compiling the simulator (in every run, as no folder can be written; NUMBA_CACHE_DIR=FOLDER names one) ..."
)
# Loading the compiled engine from its cache takes about a second; a compilation takes many.
PATIENCE_S = 3.0


def notice(line: str) -> None:
    """Prints a line for people beside the results, which may be piped elsewhere."""
    print(line, file=sys.stderr, flush=True)


def ensure_compiled(notify: Callable[[str], None] = notice, patience_s: float = PATIENCE_S) -> None:
    """Loads the compiled engine, or compiles it where no cache is found; at once if this process has it.

    Args:
        notify: Called once, from another thread, with one line for the user if this takes longer than ``patience_s``.
            A cache that is there but stale is noticed in the same way as one that is missing.
        patience_s: Seconds to wait before ``notify``.
    """
    if advance.signatures:
        return
    timer = threading.Timer(patience_s, notify, (NOTICE if cache_root() else NOTICE_WITHOUT_CACHE,))
    timer.daemon = True
    timer.start()
    try:
        advance.compile((typeof(np.zeros(1, ROOT)), typeof(NOBODY)))
    finally:
        timer.cancel()
