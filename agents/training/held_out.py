"""What chooses the best policy of a run: a suite that is named, or else workloads like those of training, not of them.

Of a trace that is its validation split. Of a generator, and of loads that tokens are sampled from, it is seeds behind
those that training draws from.
"""

from __future__ import annotations

from dysharp_env.config import ConfigError
from dysharp_env.envs.sources import ANY_SEED
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.workload import ScenarioSpec
from dysharp_env.workload.suite import SuiteEntry, SuiteSpec, load_suite
from dysharp_env.workload.traces import is_trace_name

from .spec import TrainSpec

_WORKLOADS = 8  # at least, of those that nobody has named
_FIRST_SEED = 10_000  # at least
_SPLIT = "validation"


def validation_suite(spec: TrainSpec) -> SuiteSpec:
    """Returns the suite that chooses the best policy of a run.

    Raises:
        ConfigError: The suite is unknown, or training is on what it would be made of.
    """
    if spec.validation is not None:
        return load_suite(spec.validation)
    entries = _trained_on(spec.env)
    count = -(-_WORKLOADS // len(entries))
    return SuiteSpec(
        name=f"{spec.name}-validation",
        workloads=tuple(_held_out(entry, count, place) for place, entry in enumerate(entries)),
    )


def describe_validation(spec: TrainSpec) -> str:
    """Returns what chooses the best policy of a run in one line.

    Raises:
        ConfigError: The suite is unknown, or training is on what it would be made of.
    """
    if spec.evolution is not None and spec.evolution.tiny:
        return f"validates on {spec.evolution.tiny} other tiny layers"
    suite = validation_suite(spec)
    number = sum(entry.seeds[1] for entry in suite.workloads)
    if spec.validation is not None:
        return f"validates on suite {suite.name}, {number} workloads"
    of = f"the entries of suite {spec.env.suite}" if spec.env.suite else "the run's own scenario"
    traced = [entry for entry in _trained_on(spec.env) if is_trace_name(entry.routing)]
    how = f"from the {_SPLIT} split of traces" if traced else f"with seeds from {suite.workloads[0].seeds[0]} on"
    line = f"validates on {number} workloads of {of}, {how}"
    if any(entry.split == "all" for entry in traced):
        line += ", which training sees too with split=all; split=train leaves it out"
    return line


def _trained_on(env: EnvSpec) -> tuple[SuiteEntry, ...]:
    """Returns what episodes are drawn from as entries of a suite."""
    if env.suite is not None:
        return load_suite(env.suite).workloads
    scenario = {name: getattr(env, name) for name in ScenarioSpec.model_fields}
    return (SuiteEntry(**scenario, seeds=env.seeds or ANY_SEED),)


def _held_out(entry: SuiteEntry, count: int, place: int) -> SuiteEntry:
    """Returns an entry with so many workloads that are not among its own, nor those of entries at other places.

    Raises:
        ConfigError: The entry has the validation split of its trace already.
    """
    seeds = (max(_FIRST_SEED, sum(entry.seeds)) + place * count, count)
    if not is_trace_name(entry.routing):
        return entry.model_copy(update={"seeds": seeds})
    if entry.split == _SPLIT or entry.tokens == "trace":
        what = f"split='{_SPLIT}'" if entry.split == _SPLIT else "tokens='trace'"
        raise ConfigError(f"training on {what} of '{entry.routing}' leaves no split for validation: name a suite there")
    return entry.model_copy(update={"seeds": seeds, "split": _SPLIT})
