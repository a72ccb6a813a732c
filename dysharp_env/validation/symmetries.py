"""What must not matter, and how much it does: the numbers of GPUs and of experts, and the unit of time.

Which GPU or expert has which number says nothing about a machine, but an engine has to serve somebody first. Here every
schedule plays the same layers under other numbers: how far its makespan moves is what a single play is uncertain by,
and when each number is done on average says whether some are luckier. A machine on which everything takes twice as
long must take twice as long for a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.table import Table

from dysharp_env.config import ConfigError
from dysharp_env.report.tables import empty_table
from dysharp_env.schedules import LayerRun, Problem, ScheduleSpec
from dysharp_env.system import SystemSpec
from dysharp_env.workers import Workers
from dysharp_env.workload import ScenarioSpec, Workload
from dysharp_env.workload.choices import NO_EXPERT

# Layers of a few milliseconds each: memory, links and software bind.
LAYERS = (
    ScenarioSpec(system="dgx-h100", model="olmoe", tokens=64, routing="uniform"),
    ScenarioSpec(system="dgx-h100", model="deepseek-v2-lite", tokens=256, routing="paper-normal"),
    ScenarioSpec(system="gb200-nvl72", gpus=8, model="qwen3-30b", tokens=512, routing="power-law:0.6"),
)
_SLOWER = ("_ns", "_us", "_ps", "_ns_per_token")  # units of what takes twice as long
_RATES = ("gbps", "tflops")


@dataclass(frozen=True)
class Symmetry:
    """How far a schedule's makespan moves by what does not matter, in percent of it.

    Attributes:
        schedule: Its name.
        gpus_sd_pct, gpus_range_pct: Under other numbers for the GPUs: standard deviation, largest less smallest.
        experts_sd_pct, experts_range_pct: Likewise under other numbers for the experts.
        luck_pct: How much later or earlier than the mean of all the unluckiest or luckiest number of a GPU has its
            last token home, in the mean over all plays.
        luck_error_pct: The standard error of such a mean: luck of up to three times as much is chance.
        slower_ppm: How far from twice the makespan that of a machine is that takes twice as long for everything, in
            parts per million. Every duration is a whole number of picoseconds, which is good to a few millionths; more
            means that such a rounding has settled two things at nearly the same time the other way round.
    """

    schedule: str
    gpus_sd_pct: float
    gpus_range_pct: float
    experts_sd_pct: float
    experts_range_pct: float
    luck_pct: float
    luck_error_pct: float
    slower_ppm: float

    def record(self) -> dict[str, Any]:
        """Returns it as one item of ``symmetries`` in a JSON result."""
        return asdict(self)


@dataclass(frozen=True)
class _Trial:
    """A schedule, whose plays are independent of those of others."""

    schedule: ScheduleSpec
    renamings: int
    seed: int

    def run(self) -> Symmetry | None:
        """Returns how far its makespans move; None if the machines cannot run it."""
        try:
            plays = [_plays(scenario, self) for scenario in LAYERS]
        except ConfigError:
            return None
        luck = np.concatenate([each.luck for each in plays])
        means, error = luck.mean(axis=0), luck.std(axis=0).mean() / np.sqrt(len(luck))
        return Symmetry(
            self.schedule.name,
            *_spread([each.of_gpus for each in plays]),
            *_spread([each.of_experts for each in plays]),
            float(np.abs(means).max()) * 100,
            float(error) * 100,
            max(each.slower for each in plays) * 1e6,
        )


@dataclass(frozen=True)
class _Plays:
    of_gpus: np.ndarray  # (renaming,) makespans
    of_experts: np.ndarray  # (renaming,) makespans
    luck: np.ndarray  # (renaming, gpu) when each number is done, over the mean of all, less 1
    slower: float  # makespan on a machine of half the speed, over twice the makespan, less 1


def symmetry_table(found: Sequence[Symmetry], renamings: int) -> Table:
    """Returns a line for each schedule, for a terminal."""
    columns = ("GPUs, sd", "range", "experts, sd", "range", "luck", "its error", "half speed, ppm")
    table = empty_table(f"How far {renamings} renamings move makespans, % of them", ("schedule",), columns)
    for each in found:
        *percents, ppm = list(asdict(each).values())[1:]
        table.add_row(each.schedule, *(f"{percent:.2f}" for percent in percents), f"{ppm:.0f}")
    return table


def symmetries(schedules: Sequence[ScheduleSpec], renamings: int, seed: int, workers: Workers) -> list[Symmetry]:
    """Returns how far the makespans of those schedules move that the machines can run; takes a second a schedule."""
    trials = [_Trial(schedule, renamings, seed) for schedule in schedules]
    return [found for found in workers.map(_Trial.run, trials) if found is not None]


def _plays(scenario: ScenarioSpec, trial: _Trial) -> _Plays:
    built = scenario.build()
    problem = Problem.of(built.system, built.draw(trial.seed))
    schedule, numbers = problem.best(trial.schedule), range(trial.renamings)
    by_gpus = [problem.renamed(number).run(schedule) for number in numbers]
    others = [experts_renamed(problem.workload, number) for number in numbers]
    by_experts = [Problem.of(built.system, workload).run(schedule) for workload in others]
    slow = Problem.of(half_as_fast(built.system), problem.workload).run(schedule)
    return _Plays(
        np.array([run.engine.now_ps for run in by_gpus], float),
        np.array([run.engine.now_ps for run in by_experts], float),
        np.stack([_luck(run) for run in by_gpus]),
        abs(slow.engine.now_ps / (2 * by_gpus[0].engine.now_ps) - 1),
    )


def _luck(run: LayerRun) -> np.ndarray:
    tokens, gpus = run.engine.state.tokens, run.engine.workload.num_gpus
    done = np.zeros(gpus)
    np.maximum.at(done, tokens["home"], tokens["combine_end"])
    return done / done.mean() - 1


def _spread(layers: Sequence[np.ndarray]) -> tuple[float, float]:
    """Returns standard deviation and range over the mean in percent, the means over layers."""
    relative = [makespans / makespans.mean() for makespans in layers]
    means = (np.mean([spread(each) for each in relative]) for spread in (np.std, np.ptp))
    deviation, between = (float(mean) * 100 for mean in means)
    return deviation, between


def experts_renamed(workload: Workload, renaming: int) -> Workload:
    """Returns a workload of experts that are there once with other numbers for them; renaming 0 leaves all as they are.

    Experts stay on their GPUs, and tokens with their experts.
    """
    assert workload.placement.is_plain
    experts = workload.num_experts
    new = np.arange(experts) if renaming == 0 else np.random.default_rng([renaming, experts]).permutation(experts)
    ids = np.where(workload.topk_ids == NO_EXPERT, NO_EXPERT, new[workload.topk_ids])
    old, past = np.argsort(new), workload.history
    return replace(
        workload,
        topk_ids=ids,
        placement=replace(workload.placement, gpu_of_expert=workload.gpu_of_expert[old]),
        history=(lambda: past()[old]) if past else None,
    )


def half_as_fast(system: SystemSpec) -> SystemSpec:
    """Returns a machine on which everything takes twice as long: half of all rates, twice of all times."""
    return SystemSpec.model_validate(_halved(system.model_dump()))


def _halved(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _halved(each, str(key)) for key, each in value.items()}
    if name.endswith(_SLOWER):
        return 2 * value
    return value / 2 if name.endswith(_RATES) else value
