"""Searches for layers that beat their bounds: ``python -m tests.soak_bounds --first 0 --count 3000``.

Each seed is a random layer of any shape, perhaps with copies, under a random program on a random machine, its decisions
drawn; and the same layer shared out by a planner if it has no copies: the cases of ``test_family_bound.py``, by number.
Writes a line for every one that beats a bound, and how close they come.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np

from tests.conftest import draw_case
from tests.schedules.test_family_bound import bounds_of, planned_case, play_at_random

NAMES = ("of its program", "of any schedule", "of any that may copy weights")


def main(argv: Sequence[str] | None = None) -> int:
    """Plays cases and returns how many beat a bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--count", type=int, default=3000, help="cases")
    args = parser.parse_args(argv)
    beaten, ratios = 0, []
    for seed in range(args.first, args.first + args.count):
        for num_copies, now_ps, bounds_ps in played(seed):
            ratios.append((num_copies > 0, *(now_ps / max(1, bound_ps) for bound_ps in bounds_ps)))
            if now_ps < max(bounds_ps):
                beaten += 1
                print(f"seed {seed}, {num_copies} copies: {now_ps} ps, bounds {bounds_ps}", flush=True)
    copies, *columns = np.transpose(ratios)
    for name, times in zip(NAMES, columns, strict=True):
        print(f"makespan over bound {name}: {times.min():.4f} at least, {np.median(times):.2f} half of the time")
    print(f"{args.count} seeds, {len(copies)} layers, {int(copies.sum())} with copies; {beaten} beat a bound")
    return beaten


def played(seed: int) -> Iterator[tuple[int, int, tuple[int, int, int]]]:
    """Yields copies, makespan and bounds, in the order of ``NAMES``, of a random case and of it when it is planned.

    Whoever leaves experts in place is below no other bound than whoever may copy them.
    """
    case = draw_case(seed)
    bounds = bounds_of(case, seed)
    copies_ps = bounds.copies_ps if bounds.copies_ps <= bounds.placed_ps else 2**62
    shared = planned_case(case, seed)
    for each in (case,) if shared.workload is case.workload else (case, shared):
        now_ps = play_at_random(each.engine(logging=False), seed)
        own = bounds if each is case else bounds_of(each, seed)
        yield each.workload.placement.num_copies, now_ps, (own.family_ps, own.any_ps, max(copies_ps, own.copies_ps))


if __name__ == "__main__":
    raise SystemExit(main() > 0)
