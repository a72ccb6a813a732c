"""What is measured in a process of its own: the time to a first step, and the memory that a layer takes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dysharp_env.bench.layers import Layer
from dysharp_env.bench.timing import Row, Seconds

_MB = 1e6
# What Linux says of a process; other systems have no such file.
_STATUS = Path("/proc/self/status")

_FIRST_STEP = """
import json, time
start_s = time.perf_counter()
import gymnasium, dysharp_env
imported_s = time.perf_counter()
env = gymnasium.make("DySHARP/TokenSchedule-v2")
_, info = env.reset(seed=0)
reset_s = time.perf_counter()
env.step(int(info["action_mask"].argmax()))
end_s = time.perf_counter()
print(json.dumps([imported_s - start_s, reset_s - imported_s, end_s - reset_s]))
"""


def start_up_rows() -> Iterator[Row]:
    """Yields how long a new process takes to its first step, with the engine already compiled."""
    (imports_s, reset_s, step_s), took = _child(_FIRST_STEP)
    yield Row("start-up: a process from start to end with one step", took.wall_s, "s", took)
    yield Row("start-up: import", imports_s, "s")
    yield Row("start-up: make and first reset, the compiled engine loaded", reset_s, "s")
    yield Row("start-up: first step", step_s * 1e3, "ms")


def cold_start_rows() -> Iterator[Row]:
    """Yields how long a new process takes to its first step that finds nothing compiled."""
    with TemporaryDirectory() as cache:
        _, took = _child(_FIRST_STEP, {**os.environ, "NUMBA_CACHE_DIR": cache})
    yield Row("start-up: the same with everything to compile", took.wall_s, "s", took)


def memory_rows(gpus: int, tokens: int) -> Iterator[Row]:
    """Yields how much one layer, drawn, set up and run, adds to the largest resident set of a process.

    Loading the engine takes memory for a while, and a layer that fits into that adds nothing: measure a large one.
    """
    code = f"from dysharp_env.bench.processes import print_peak; print_peak({gpus}, {tokens})"
    (before_bytes, after_bytes), took = _child(code)
    name = f"memory, {gpus} GPUs x {tokens} tokens"
    yield Row(f"{name}: peak RSS of the process", after_bytes / _MB, "MB", took)
    yield Row(f"{name}: of that, drawing, setting up and running the layer", (after_bytes - before_bytes) / _MB, "MB")


def print_peak(gpus: int, tokens: int) -> None:
    """Prints the peak resident set in bytes before and after a layer; a small one first brings in the code."""
    Layer.of(2, 1).run(1)
    before_bytes = _peak_bytes()
    Layer.of(gpus, tokens).run(1)
    print(json.dumps([before_bytes, _peak_bytes()]))


def _peak_bytes() -> int:
    """Returns the largest resident set so far.

    On Linux getrusage does not tell: its maximum is that of the process that started this one, where that is larger.
    """
    if _STATUS.exists():
        (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    # macOS counts bytes, the BSDs KiB (getrusage, man page of each).
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _child(code: str, environment: Mapping[str, str] | None = None) -> tuple[Any, Seconds]:
    """Returns what a new Python process prints as JSON, and how long it ran; ``environment`` is this one's if None."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start_s = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    wall_s = time.perf_counter() - start_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout), Seconds(wall_s, cpu_s)
