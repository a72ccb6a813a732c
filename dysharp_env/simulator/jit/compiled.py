"""How functions that only compiled code calls are compiled: once each, whatever constants they are called with.

Numba would compile such a function anew for every combination of literal arguments, such as the kind of an event, and
make each callable from Python and C. Nothing here needs that, and it is 40 % of the time of a first run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core.registry import CPUDispatcher

from dysharp_env.native import keep


class _Part(CPUDispatcher):
    """A compiled function that takes a literal argument for any number of its type."""

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """Returns what numba asks a function that is called with arguments of some types."""
        return super().get_call_template(tuple(map(types.unliteral, args)), kws)


def compiled(function: Callable[..., Any]) -> Any:
    """Returns a function for other compiled functions to call, with numba's ``numpy`` error model; see kernel.py."""
    return _part(function, inline="never")


def compiled_in_place(function: Callable[..., Any]) -> Any:
    """Returns one that becomes part of its callers: what it calls is optimised there, and not a second time."""
    return _part(function, inline="always")


def _part(function: Callable[..., Any], inline: str) -> _Part:
    options = {
        "nopython": True,
        "error_model": "numpy",
        "no_cpython_wrapper": True,
        "no_cfunc_wrapper": True,
        "inline": inline,
    }
    part = _Part(function, targetoptions=options)
    keep(part)
    return part
