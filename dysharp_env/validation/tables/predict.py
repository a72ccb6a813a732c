"""Figures of many experiments: each run once, in several processes, long ones taken from two shorter.

Experiments with more tokens than the larger of ``line_through`` are run with these two numbers of tokens, and their
figures continued in a straight line: a kernel does the same for token after token. Continued and full runs differ by
0.5 % or less, but for random routing of so few copies that the load of the busiest GPU hangs on the draw (1 %).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from dysharp_env.config import ConfigError
from dysharp_env.validation.tables.readings import Experiment, Reading

Figures = tuple[float, ...]
# Fewer experiments than these are not worth a process that has to load the engine.
_WORTH_A_PROCESS = 64
_AT_ONCE = 4


def predictions(readings: Sequence[Reading], jobs: int | None = None) -> list[float]:
    """Returns what is predicted for each reading, in the unit of what was measured.

    Args:
        readings: Of one or several tables.
        jobs: Processes; None: one for every core, if there is enough to do.

    Raises:
        ConfigError: A process was ended from outside.
    """
    experiments = list(dict.fromkeys(reading.experiment for reading in readings))
    runs = list(dict.fromkeys(run for experiment in experiments for run in _runs_of(experiment)))
    figures = dict(zip(runs, _run_all(runs, jobs), strict=True))
    return [_continued(reading.experiment, figures)[reading.place] for reading in readings]


def predicted(experiment: Experiment) -> Figures:
    """Returns the figures of one experiment, run in this process."""
    return _continued(experiment, {run: run.figures() for run in _runs_of(experiment)})


def _runs_of(experiment: Experiment) -> tuple[Experiment, ...]:
    points = experiment.line_through
    if points is None or experiment.tokens <= points[1]:
        return (experiment,)
    return experiment.at(points[0]), experiment.at(points[1])


def _continued(experiment: Experiment, figures: dict[Experiment, Figures]) -> Figures:
    runs = _runs_of(experiment)
    if len(runs) == 1:
        return figures[experiment]
    short, long = runs
    beyond = (experiment.tokens - long.tokens) / (long.tokens - short.tokens)
    return tuple(last + beyond * (last - first) for first, last in zip(figures[short], figures[long], strict=True))


def _run_all(runs: Sequence[Experiment], jobs: int | None) -> list[Figures]:
    jobs = jobs or (min(len(os.sched_getaffinity(0)), 16) if len(runs) >= _WORTH_A_PROCESS else 1)
    if jobs == 1:
        return [run.figures() for run in runs]
    # Long ones first, so that no process ends alone.
    order = sorted(range(len(runs)), key=lambda place: -runs[place].tokens)
    results: list[Figures] = [()] * len(runs)
    # Spawned, and deaf to interrupts, which are for this process alone.
    interrupts = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(jobs, get_context("spawn"), signal.signal, interrupts) as pool:
        try:
            found: Iterable[Figures] = pool.map(_figures, [runs[place] for place in order], chunksize=_AT_ONCE)
            for place, each in zip(order, found, strict=True):
                results[place] = each
        except BrokenProcessPool:
            raise ConfigError(
                f"jobs={jobs}: a process ended early, most likely for want of memory; use fewer"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def _figures(run: Experiment) -> Figures:
    return run.figures()
