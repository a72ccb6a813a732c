"""Simulates the layers that claims name: each once, on several processes if asked, longest first."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from dysharp_env.config import ConfigError
from dysharp_env.steps import LayerCase, LayerTimes, simulate_case


def simulate_cases(
    cases: Iterable[LayerCase], jobs: int, progress: Callable[[int, int, LayerCase], None]
) -> dict[LayerCase, LayerTimes]:
    """Returns the times of every case.

    Args:
        cases: Repetitions are simulated once.
        jobs: Processes; 1 simulates in this one.
        progress: Called after each simulation with how many are done, how many there are, and which it was.

    Raises:
        ConfigError: A case names what does not exist or does not fit, or a process was ended from outside.
    """
    ordered = _in_order(cases)
    results: dict[LayerCase, LayerTimes] = {}
    if jobs == 1:
        for case in ordered:
            results[case] = simulate_case(case)
            progress(len(results), len(ordered), case)
        return results
    # Spawned, not forked: progress bars run threads, and a fork in the middle of one can hang. Interrupts are for this
    # process alone, which lets the others finish what they simulate.
    interrupts = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(jobs, get_context("spawn"), signal.signal, interrupts) as pool:
        futures = {pool.submit(simulate_case, case): case for case in ordered}
        try:
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                progress(len(results), len(ordered), futures[future])
        except BrokenProcessPool:
            raise ConfigError(
                f"jobs={jobs}: a process ended early, most likely for want of memory; use fewer"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def _in_order(cases: Iterable[LayerCase]) -> list[LayerCase]:
    """Returns distinct cases, large workloads first so that no process ends alone, cases of one workload together."""

    def place(case: LayerCase) -> tuple[int, str, int, str, int]:
        return (-case.size, case.layer.name, case.layer.tile_tokens, case.routing, case.seed)

    return sorted(dict.fromkeys(cases), key=place)
