"""Figures of many experiments: each run once, in several processes, long ones taken from two shorter.

Experiments with more tokens than the larger of ``line_through`` are run with these two numbers of tokens, and their
figures continued in a straight line: a kernel does the same for token after token. Continued and full runs differ by
0.5 % or less, but for random routing of so few copies that the load of the busiest GPU hangs on the draw (1 %).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from dysharp_env.validation.tables.readings import Experiment, Reading
from dysharp_env.workers import Processes, Workers

Figures = tuple[float, ...]
# Fewer experiments than these are not worth a process that has to load the engine.
_WORTH_A_PROCESS = 64


def predictions(readings: Sequence[Reading], workers: Workers | None = None) -> list[float]:
    """Returns what is predicted for each reading, in the unit of what was measured.

    Args:
        readings: Of one or several tables.
        workers: Who runs the experiments; None: a process for every core, if there is enough to do.

    Raises:
        ConfigError: A worker was lost.
    """
    experiments = list(dict.fromkeys(reading.experiment for reading in readings))
    runs = list(dict.fromkeys(run for experiment in experiments for run in _runs_of(experiment)))
    figures = dict(zip(runs, _run_all(runs, workers), strict=True))
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


def _run_all(runs: Sequence[Experiment], workers: Workers | None) -> list[Figures]:
    if workers is None:
        jobs = min(len(os.sched_getaffinity(0)), 16) if len(runs) >= _WORTH_A_PROCESS else 1
        workers = Processes(jobs) if jobs > 1 else Workers()
    with workers:
        return workers.map(_figures, runs, size=_tokens)


def _figures(run: Experiment) -> Figures:
    return run.figures()


def _tokens(run: Experiment) -> int:
    return run.tokens
