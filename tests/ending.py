"""How a command ends in a fork of this process: what it prints, processor time and memory beyond what was taken."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

MOST_S, MOST_MB = 2.0, 300
_MOST_LETTERS = 4100
_HANGS_S = 60


class Ended(NamedTuple):
    """How a command ended, what it printed, and processor seconds and megabytes beyond what was taken before."""

    status: int
    out: str
    err: str
    took_s: float
    more_mb: float

    def fault(self) -> str | None:
        """Returns what is wrong with this as the end of a command that was given what it has to refuse."""
        if fault := fault_of(self.status, self.out, self.err):
            return fault
        is_modest = self.took_s <= MOST_S and self.more_mb <= MOST_MB
        return None if is_modest else f"{self.took_s:.1f} s and {self.more_mb:.0f} MB"


def fault_of(status: int, out: str, err: str) -> str | None:
    """Returns what is wrong with how a command ended that had to refuse something."""
    lines = err.splitlines()
    if status != 2:
        return f"exit status {status}: {err[-300:]}"
    if len(lines) != 1 or not lines[0].startswith("error: ") or out:
        return f"not one line: {out[-200:]!r} {err[-300:]!r}"
    if len(lines[0]) > _MOST_LETTERS or re.search(r"\S{260}", lines[0]):
        return f"a line of {len(lines[0])} letters: {lines[0][:300]}"
    return None if lines[0].isprintable() else f"what cannot be printed: {lines[0]!a}"


def run_forked(commands: Sequence[Callable[[], Callable[[], int]]], folder: Path) -> list[Ended]:
    """Returns how commands ended, one after the other, in a fork: fewer than there are if one ends it, or hangs.

    Args:
        commands: Each makes what it needs, and returns what is to be called and measured.
        folder: Where the fork may write how they ended.
    """
    child = os.fork()
    if child == 0:
        with (folder / "ended").open("w") as told, contextlib.suppress(BaseException):
            before_kb = _resident_kb()
            for prepared in commands:
                signal.alarm(_HANGS_S)
                command = prepared()
                began_s = time.process_time()
                with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
                    try:
                        status = command()
                    except BaseException:
                        status = 99
                        traceback.print_exc()
                took_s = time.process_time() - began_s
                more_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024
                told.write(json.dumps([status, out.getvalue(), err.getvalue(), took_s, more_mb]) + "\n")
                told.flush()
        os._exit(0)
    os.waitpid(child, 0)
    return [Ended(*json.loads(line)) for line in (folder / "ended").read_text().splitlines()]


def _resident_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
