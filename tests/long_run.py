"""Plays very many tiny episodes in one process: memory and speed must stay as they are.

``python -m tests.long_run --episodes 1000000``, or ``make long-run``, prints a line for every tenth: what the process
holds, and what an episode takes. It fails if memory is ever more than ``--memory-mb`` away from where it was after a
warm-up, or if the last tenth is slower than the first by more than ``--slower``. Every episode draws a new workload, so
that nothing that is kept for one is kept for all.

Other work on the machine makes CPU time longer too. So each block of episodes is measured in yards, the time of a
plain loop that runs right behind it, and the median of a tenth's blocks is compared. Linux alone says what a process
holds at the moment.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.envs.vector import TokenScheduleVectorEnv

# As little as an episode can be: nearly all of it is what happens once an episode, where things are made and dropped.
TINY = {"model": "small", "gpus": 2, "tokens": 1, "top_k": 1, "routing": "uniform", "max_candidates": 4}
TENTHS, MOST_OF_A_BLOCK = 10, 100
COPIES = 8
_STATM, _PAGE_BYTES = Path("/proc/self/statm"), 4096


class Look(NamedTuple):
    """What is seen after a tenth, or before the first."""

    episodes: int
    episode_us: float  # CPU time
    episode_yards: float
    resident_mb: float


def single() -> Callable[[int], None]:
    """One environment, an episode after the other."""
    env = TokenScheduleEnv(**TINY)
    env.reset(seed=0)

    def play(episodes: int) -> None:
        for _ in range(episodes):
            _, info = env.reset()
            is_over = False
            while not is_over:
                _, _, is_over, _, info = env.step(int(info["action_mask"].argmax()))

    return play


def vector() -> Callable[[int], None]:
    """A vector environment, whose copies begin anew by themselves."""
    envs = TokenScheduleVectorEnv(COPIES, copy=False, **TINY)
    envs.reset(seed=0)

    def play(episodes: int) -> None:
        ended = 0
        while ended < episodes:
            ended += int(envs.step(envs.action_masks().argmax(axis=1))[2].sum())

    return play


def made_anew() -> Callable[[int], None]:
    """A vector environment for every eight episodes, on two threads, closed at the end."""

    def play(episodes: int) -> None:
        for seed in range(0, episodes, COPIES):
            envs = TokenScheduleVectorEnv(COPIES, threads=2, **TINY)
            envs.reset(seed=seed)
            while not envs.step(envs.action_masks().argmax(axis=1))[2].any():
                pass
            envs.close()

    return play


WAYS: dict[str, Callable[[], Callable[[int], None]]] = {
    "single": single,
    "vector": vector,
    "made-anew": made_anew,
}


def resident_mb() -> float:
    """Returns what the process holds in memory, in MB of 10**6 bytes."""
    return int(_STATM.read_text().split()[1]) * _PAGE_BYTES / 1e6


def yard() -> None:
    """Does some thousand things as an episode does them, small arrays and mappings, and keeps nothing."""
    for number in range(1000):
        array = np.arange(number, number + 16)
        held = {name: array[name] for name in range(8)}
        np.add(array, held[number % 8]).sum()


def seconds(action: Callable[[], object]) -> float:
    """Returns the CPU time of an action."""
    began = time.process_time()
    action()
    return time.process_time() - began


def looks(play: Callable[[int], None], episodes: int) -> Iterator[Look]:
    """Yields what is seen before the first tenth, behind a warm-up of a twentieth, and after each."""
    size = min(MOST_OF_A_BLOCK, max(1, episodes // TENTHS // 5))
    blocks = max(1, episodes // TENTHS // size)
    play(max(size, episodes // 20))
    yard()
    gc.collect()
    yield Look(0, 0.0, 0.0, resident_mb())
    for tenth in range(TENTHS):
        costs_s = [(seconds(lambda: play(size)) / size, seconds(yard)) for _ in range(blocks)]
        gc.collect()
        yield Look(
            (tenth + 1) * blocks * size,
            median(cost_s for cost_s, _ in costs_s) * 1e6,
            median(cost_s / yard_s for cost_s, yard_s in costs_s),
            resident_mb(),
        )


def changes(seen: list[Look]) -> tuple[float, float]:
    """Returns how far memory ever was from where it began, in MB, and how much slower the last tenth is, as a share."""
    moved_mb = max(abs(look.resident_mb - seen[0].resident_mb) for look in seen)
    return moved_mb, seen[-1].episode_yards / seen[1].episode_yards - 1


def main(argv: list[str] | None = None) -> int:
    """Returns 1 if memory moved or an episode became slower."""
    parser = argparse.ArgumentParser(prog="python -m tests.long_run", description=__doc__)
    parser.add_argument("--way", choices=WAYS, action="append", help="repeatable (default: single)")
    parser.add_argument("--episodes", type=int, default=1_000_000, help="of each way (default: %(default)s)")
    parser.add_argument("--memory-mb", type=float, default=5.0, help="default: %(default)s")
    parser.add_argument("--slower", type=float, default=0.03, help="share of an episode's time (default: %(default)s)")
    args = parser.parse_args(argv)
    has_changed = False
    for way in args.way or ["single"]:
        print(f"{way}: {WAYS[way].__doc__}")
        seen: list[Look] = []
        for look in looks(WAYS[way](), args.episodes):
            cost = f"{look.episode_us:8.1f} us or {look.episode_yards:.4f} yards each"
            print(f"{look.episodes:>9} episodes, {cost}, {look.resident_mb:8.2f} MB", flush=True)
            seen.append(look)
        moved_mb, slower = changes(seen)
        print(
            f"memory was up to {moved_mb:.2f} MB away; the last tenth takes {100 * slower:+.1f} % longer than the first"
        )
        has_changed |= moved_mb > args.memory_mb or slower > args.slower
    return int(has_changed)


if __name__ == "__main__":
    raise SystemExit(main())
