"""Layers on which plans are learned: those of a suite, with other tokens, routing and machines each time."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.schedules import Problem
from dysharp_env.system import load_system
from dysharp_env.workload.suite import SuiteEntry, SuiteSpec

from .spec import PlanningSpec

_SEEDS = 10_000  # below those of validation
_MOST_TOKENS = 8192  # of a GPU
_MOST_OF_ALL = 4 * _MOST_TOKENS  # of all GPUs, where an entry comes to another machine
_RENAMINGS = 4  # of the GPUs, one of them at random
_MACHINE = ("system", "gpus", "slow_gpu", "faults", "compute_scale", "hardware")


def draw_layers(suite: SuiteSpec, spec: PlanningSpec, seed: int, drawn: int) -> list[Problem]:
    """Returns the next ``batch`` layers; which they are follows from a seed and from how many batches came before."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, drawn]))
    chosen = rng.permutation(len(suite.workloads))[: spec.batch]
    return [_draw(suite, spec, suite.workloads[place], rng) for place in chosen.tolist()]


def _draw(suite: SuiteSpec, spec: PlanningSpec, entry: SuiteEntry, rng: np.random.Generator) -> Problem:
    """Returns a layer of an entry, on the machine of another one where it is to be and can."""
    varied = _varied(entry, spec, rng)
    renaming, other = int(rng.integers(_RENAMINGS)), suite.workloads[int(rng.integers(len(suite.workloads)))]
    if rng.random() < spec.mixed:
        moved = varied.model_copy(update={name: getattr(other, name) for name in _MACHINE})
        with suppress(ConfigError):
            return _first(suite, _no_larger(moved)).renamed(renaming)
    return _first(suite, varied).renamed(renaming)


def _first(suite: SuiteSpec, entry: SuiteEntry) -> Problem:
    return Problem.of_suite(suite.model_copy(update={"workloads": (entry,)}).draw())[0]


def _varied(entry: SuiteEntry, spec: PlanningSpec, rng: np.random.Generator) -> SuiteEntry:
    """Returns an entry with another seed, and with tokens multiplied by one of the scales where that is allowed."""
    scale = float(rng.choice(spec.scales))
    seed = int(rng.integers(_SEEDS))
    tokens = entry.tokens
    if isinstance(tokens, int):
        tokens = min(max(round(tokens * scale), 8), _MOST_TOKENS if scale < 1 else max(tokens, spec.most))
    return entry.model_copy(update={"tokens": tokens, "seeds": (seed, 1), "binds": None})


def _no_larger(entry: SuiteEntry) -> SuiteEntry:
    """Returns an entry with as few tokens as keep a layer quick to play."""
    if not isinstance(entry.tokens, int):
        return entry
    num_gpus = entry.gpus or load_system(entry.system).num_gpus
    return entry.model_copy(update={"tokens": max(min(entry.tokens, _MOST_OF_ALL // num_gpus), 8)})
