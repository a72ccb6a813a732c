"""Random shapes in numbers: engine against twin, and the schedule that comes of it, on real vectors, against the dense
layer. ``python -m tests.soak_shapes --first 0 --count 3000`` says how many differ and which; its exit status is 1 then.
"""

from __future__ import annotations

import argparse
import time
import traceback

from dysharp_env.multimem import execute, random_tensors
from dysharp_env.simulator.record import record
from tests.conftest import draw_case
from tests.multimem.small_layers import HIDDEN, INNER, is_dense
from tests.simulator.test_twin import assert_same_history, play

SLOTS, TLB_ENTRIES = 3, 5  # so few that sums are evicted and mappings read again


def check_shape(seed: int) -> None:
    """Plays one random shape.

    Raises:
        AssertionError: Engine and twin differ, or what is computed is not the dense layer.
        RuntimeError: One of them cannot go on.
    """
    case = draw_case(seed, even=False)
    engine, twin = play(case, seed)
    assert_same_history(engine.state, twin)
    tensors = random_tensors(case.workload, HIDDEN, INNER, seed)
    outputs = execute(record(engine), case.workload, tensors, reduction_slots=SLOTS, al_tlb_entries=TLB_ENTRIES)
    assert is_dense(outputs, case.workload, tensors), "the functional machine computes something else"


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=3000, help="how many seeds")
    options = parser.parse_args(argv)
    start_s, wrong = time.perf_counter(), []
    for seed in range(options.first, options.first + options.count):
        try:
            check_shape(seed)
        except (AssertionError, RuntimeError):
            wrong.append(seed)
            print(f"seed {seed}: {traceback.format_exc(limit=-1)}", flush=True)
    seconds = time.perf_counter() - start_s
    print(f"{options.count} shapes from seed {options.first} in {seconds:.0f} s: {len(wrong)} differ {wrong}")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
