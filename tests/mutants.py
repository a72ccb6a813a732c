"""Breaks the engine on purpose and sees whether ``tests.soak`` finds it: ``python -m tests.mutants``.

Each mutant is a copy of the sources with one line changed, compiled anew, which takes a minute or two. A mutant that
lives is a gap in the search; the exit status says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
KERNEL = "dysharp_env/simulator/kernel"
SEEDS = 40


class Mutant(NamedTuple):
    """One line of one file, what it becomes, and on how many seeds that is looked for."""

    file: str
    before: str
    after: str
    seeds: int = SEEDS


MUTANTS = (
    Mutant("links.py", "link.free_ps = max(link.free_ps, s.now_ps) + ps", "link.free_ps = s.now_ps + ps"),
    Mutant("links.py", "codes.NUM_PURPOSES + purpose] += flits", "codes.NUM_PURPOSES + purpose] += flits + 1"),
    Mutant("arrival.py", "join_tile(s, slot, pair, done == needed - 1)", "join_tile(s, slot, pair, done == needed)"),
    Mutant("arrival.py", "s.now_ps + 2 * s.hop_ps, codes.EV_ACK, node", "s.now_ps + s.hop_ps, codes.EV_ACK, node"),
    Mutant("memory.py", "start_ps = max(g.hbm_free_ps, s.now_ps)", "start_ps = s.now_ps"),
    Mutant("memory.py", "g.l2_used_bytes -= dropped", "g.l2_used_bytes -= dropped + 1"),
    Mutant("gates.py", "max(s.now_ps, g.not_before_ps) + g.pay_ps", "max(s.now_ps, g.not_before_ps)"),
    Mutant(
        "reduction.py",
        "q.slots_draining + need > s.reduction_slots:",
        "q.slots_draining + need > s.reduction_slots + 1:",
    ),
    Mutant("gemm.py", "(tokens + s.row_granularity - 1) // s.row_granularity", "max(1, tokens // s.row_granularity)"),
    # A tile must wait for its status entry while a later one of its expert need not: one seed in hundreds.
    Mutant("gemm.py", "x.ready_ps = max(x.ready_ps, s.now_ps +", "x.ready_ps = max(0, s.now_ps +", seeds=400),
    Mutant(
        "buffers.py",
        "push(s, credit_ps(s, s.uplinks[link], whole, free_ps + s.hop_ps), codes",
        "push(s, s.now_ps + s.hop_ps, codes",
    ),
    Mutant("links.py", "return count * (s.replay_ps +", "return count * (0 * s.replay_ps +"),
    Mutant("links.py", "if link.permille == SOUND:", "if link.permille <= 2 * SOUND:"),
    Mutant("loop.py", "(waits and (gpu == LATE_GPU) != is_late)", "(waits and is_late and gpu != LATE_GPU)"),
    Mutant("buffers.py", "store.end_ps = max(store.end_ps, end_ps)", "store.end_ps = end_ps"),
)


def main() -> int:
    """Tries every mutant; the exit status is 1 if one lives."""
    alive = 0
    for mutant in MUTANTS:
        started_s = time.perf_counter()
        found = findings(mutant)
        alive += not found
        said = ", ".join(f"{name} on {count} of {mutant.seeds} seeds" for name, count in found.items()) or "NOT FOUND"
        print(f"{mutant.file}: {mutant.after}: {said} ({time.perf_counter() - started_s:.0f} s)", flush=True)
    print(f"{len(MUTANTS) - alive} of {len(MUTANTS)} found")
    return bool(alive)


def findings(mutant: Mutant) -> dict[str, int]:
    """Returns how many seeds break which property of a mutant."""
    with mutated(mutant) as tree:
        done = subprocess.run(
            [sys.executable, "-m", "tests.soak", "--count", str(mutant.seeds)],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree), "NUMBA_CACHE_DIR": str(tree / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("seed ")]
    found = Counter(words[3].rstrip(":") for words in lines)
    # One that hangs up the process has been found too, though not by a property.
    return dict(found) or ({"a crash": mutant.seeds} if done.returncode not in (0, 1) else {})


@contextmanager
def mutated(mutant: Mutant) -> Iterator[Path]:
    """Makes a copy of the sources with a line changed, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in ("dysharp_env", "agents", "configs", "tests"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        path = tree / KERNEL / mutant.file
        text = path.read_text(encoding="utf-8")
        assert text.count(mutant.before) == 1, f"{mutant.file} has no one line '{mutant.before}'"
        path.write_text(text.replace(mutant.before, mutant.after), encoding="utf-8")
        yield tree


if __name__ == "__main__":
    raise SystemExit(main())
