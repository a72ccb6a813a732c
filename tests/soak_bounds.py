"""Searches for layers that beat their bounds: ``python -m tests.soak_bounds --first 0 --count 3000``.

Each seed is a random layer of any shape under a random program on a random machine, its decisions drawn; the cases of
``test_nothing_drawn_breaks_it``, by number. Writes a line for every bound that one beats, and how close they come.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from tests.conftest import draw_case
from tests.schedules.test_family_bound import Bounds, bounds_of, play_at_random


def main(argv: Sequence[str] | None = None) -> int:
    """Plays cases and returns how many beat a bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--count", type=int, default=3000, help="cases")
    args = parser.parse_args(argv)
    beaten, ratios = 0, []
    for seed in range(args.first, args.first + args.count):
        case = draw_case(seed)
        bounds = bounds_of(case, seed)
        now_ps = play_at_random(case.engine(logging=False), seed)
        ratios.append([now_ps / bound_ps for bound_ps in bounds[:3]])
        if now_ps < max(bounds[:3]) or bounds.copies_ps > bounds.placed_ps:
            beaten += 1
            print(f"seed {seed}: {now_ps} ps, {bounds}", flush=True)
    for name, times in zip(Bounds._fields, np.transpose(ratios), strict=False):
        print(f"{name}: makespan over it {times.min():.4f} at least, {np.median(times):.2f} half of the time")
    print(f"{args.count} cases, {beaten} beat a bound")
    return beaten


if __name__ == "__main__":
    raise SystemExit(main() > 0)
