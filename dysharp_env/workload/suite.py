"""A suite: a fixed list of workloads on which schedules and policies are compared.

A suite is one YAML file in ``configs/suites/``. Each entry is a scenario and the seeds of the workloads drawn from it,
so the same suite gives the same routing to everyone, and results on it are paired workload by workload. Entries may
have labels, and ``NAME:LABEL`` is the subset of a suite that has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StrictInt, field_validator

from dysharp_env.config import ConfigError, Spec, did_you_mean, load_spec
from dysharp_env.workload.scenario import Scenario, ScenarioSpec
from dysharp_env.workload.workload import Workload


def _check_seeds(seeds: tuple[int, int]) -> tuple[int, int]:
    first, count = seeds
    if first < 0 or count < 1 or first + count > 2**63:
        raise ValueError("must be [first, count] with first at least 0 and count at least 1, below 2**63 together")
    return seeds


# Workload seeds, wherever some of many are named: the first, and how many.
Seeds = Annotated[tuple[StrictInt, StrictInt], AfterValidator(_check_seeds)]


# What a layer needs longest: links and switch, HBM, SMs for GEMMs, or what software takes whatever the layer.
Resource = Literal["links", "memory", "compute", "software"]
MOST_WORKLOADS = 100_000  # of a suite, all of which are drawn before the first is played
_SHOWN_GPUS = 8  # GPUs whose tokens are listed in a workload's name


class SuiteEntry(ScenarioSpec):
    """A scenario and which of its workloads to use."""

    seeds: Seeds = (0, 4)
    """First workload seed, and how many."""
    binds: Resource | None = None
    """What the lower bounds of its workloads need longest (``Problem.binds``)."""
    group: str | None = None
    """What its workloads are in the suite for."""

    @property
    def labels(self) -> list[str]:
        """What subsets of a suite it is in."""
        return [label for label in (self.hardware, self.binds, self.group) if label is not None]

    def scenario_fields(self) -> dict[str, Any]:
        """Returns the scenario's options without seeds and labels."""
        return {name: getattr(self, name) for name in ScenarioSpec.model_fields}

    def name_of(self, scenario: Scenario, workload: Workload) -> str:
        """Returns the name in a suite of a workload drawn from the entry's scenario."""
        return f"{self.label(scenario)}, {workload.name}"

    def label(self, scenario: Scenario) -> str:
        """Returns machine, model and size of the entry's scenario, as names of its workloads in a suite begin."""
        layer, num_gpus = scenario.layer, scenario.system.num_gpus
        size = f"{name_in_suites(self.system)} x{num_gpus} {layer.name} top-{layer.top_k} {_shown(self.tokens)} tokens"
        if self.placement != "contiguous":
            size += f" {Path(self.placement).name}"
        if self.replicas != "nearest":
            size += f" {self.replicas}"
        if self.compute_dtype is not None:
            size += f" {self.compute_dtype} GEMMs"
        if self.direction == "backward":
            size += " backward"
        if self.compute_scale != 1.0:
            size += f" compute x{self.compute_scale:g}"
        if self.slow_gpu != 1.0:
            size += f" GPU 0 x{self.slow_gpu:g}"
        if self.faults is not None:
            size += f" faults {name_in_suites(self.faults)}"
        if self.hardware != "dynamic-multimem":
            size += f" on hardware of {self.hardware}"
        return size


class SuiteSpec(Spec):
    """Workloads to evaluate on."""

    name: str = Field(min_length=1)
    """Name shown in results."""
    description: str = ""
    """What the suite is for, in a sentence."""
    workloads: tuple[SuiteEntry, ...]
    """Scenarios and seeds."""

    @field_validator("workloads")
    @classmethod
    def _check_workloads(cls, workloads: tuple[SuiteEntry, ...]) -> tuple[SuiteEntry, ...]:
        if not workloads:
            raise ValueError("the suite is empty; list at least one entry under 'workloads'")
        if (count := sum(entry.seeds[1] for entry in workloads)) > MOST_WORKLOADS:
            raise ValueError(f"the seeds are of {count} workloads; at most {MOST_WORKLOADS} can be played")
        return workloads

    def draw(self) -> list[SuiteWorkload]:
        """Returns every workload of the suite, in order.

        Raises:
            ConfigError: An entry names something unknown, or two entries draw the same workload.
        """
        drawn = [item for entry in self.workloads for item in self.draw_entry(entry)]
        seen: set[str] = set()
        for item in drawn:
            if item.name in seen:
                raise ConfigError(f"suite '{self.name}' holds the workload '{item.name}' twice")
            seen.add(item.name)
        return drawn

    def subset(self, label: str) -> SuiteSpec:
        """Returns the suite of those entries that have a label.

        Raises:
            ConfigError: None has.
        """
        entries = tuple(entry for entry in self.workloads if label in entry.labels)
        if not entries:
            known = list(dict.fromkeys(label for entry in self.workloads for label in entry.labels))
            raise ConfigError(
                f"suite '{self.name}' has no subset '{label}'; choose from {known}{did_you_mean(label, known)}"
            )
        return self.model_copy(update={"name": f"{self.name}:{label}", "workloads": entries})

    def build(self, entry: SuiteEntry) -> Scenario:
        """Returns the scenario of one of the entries.

        Raises:
            ConfigError: It names something unknown; the message begins with the suite's name.
        """
        try:
            return entry.build()
        except ConfigError as error:
            raise ConfigError(f"suite '{self.name}': {error}") from None

    def draw_entry(self, entry: SuiteEntry) -> Iterator[SuiteWorkload]:
        """Yields the workloads of one of the entries; raises as ``build`` does."""
        scenario = self.build(entry)
        first, count = entry.seeds
        for seed in range(first, first + count):
            workload = scenario.draw(seed)
            yield SuiteWorkload(entry.name_of(scenario, workload), entry, seed, scenario, workload)


@dataclass(frozen=True)
class SuiteWorkload:
    """One workload of a suite.

    Attributes:
        name: Unique in the suite: machine, model, size and routing, for people and for pairing.
        entry: The entry it was drawn from.
        seed: The workload seed it was drawn with.
        scenario: The entry's scenario with its parts read.
        workload: The layer and its routing.
    """

    name: str
    entry: SuiteEntry
    seed: int
    scenario: Scenario
    workload: Workload


def _shown(tokens: int | tuple[int, ...] | str) -> str:
    """Returns tokens per GPU for people: one number, or those of the first GPUs and how many there are."""
    if not isinstance(tokens, tuple):
        return str(tokens)
    more = ",..." if len(tokens) > _SHOWN_GPUS else ""
    return f"{','.join(map(str, tokens[:_SHOWN_GPUS]))}{more} ({sum(tokens)})"


def name_in_suites(name_or_path: str) -> str:
    """Returns what names of workloads call a preset, or a file: without its folder and ending."""
    return Path(name_or_path).stem if name_or_path.endswith((".yaml", ".yml")) else name_or_path


def load_suite(name_or_path: str) -> SuiteSpec:
    """Returns the suite of a preset name or YAML path, or of ``NAME:LABEL`` the subset that has the label.

    Raises:
        ConfigError: No such suite or subset, it is empty, or a key or value in it is wrong.
    """
    is_path = name_or_path.endswith((".yaml", ".yml"))
    name, _, label = (name_or_path, "", "") if is_path else name_or_path.partition(":")
    suite = load_spec(SuiteSpec, "suites", name)
    return suite.subset(label) if label else suite
