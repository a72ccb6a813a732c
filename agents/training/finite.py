"""Numbers that are not finite: training stops where it meets the first, and keeps what it met it on.

``not-finite/`` in the run folder then holds ``batch.safetensors``, the arrays at work, and ``suite.yaml``, workloads
that were played, which every command takes as a suite. The checkpoint from before the update stays, so that resuming
plays and learns the same again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

from dysharp_env.workload.scenario import ScenarioSpec
from dysharp_env.workload.suite import SuiteEntry, SuiteSpec

from .durable import replace_folder

FOLDER = "not-finite"
Drawn = tuple[ScenarioSpec, int | None]  # a scenario and the seed of one of its workloads; None: it was not drawn


class NotFiniteError(Exception):
    """Training has met a number that is not finite; the text says where.

    Attributes:
        what: What is not finite.
        arrays: What it was working on, by name.
        workloads: What it had played.
    """

    def __init__(self, what: str, arrays: Mapping[str, np.ndarray], workloads: Iterable[Drawn] = ()) -> None:
        """Says what is not finite."""
        super().__init__(f"{what} is not finite")
        self.what, self.arrays, self.workloads = what, {**arrays}, [*workloads]


def is_finite(array: np.ndarray) -> bool:
    """Returns whether all numbers of an array are finite, without another array of its size."""
    return array.size == 0 or bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def first_not_finite(tensors: Iterable[tuple[str, torch.Tensor | None]]) -> str | None:
    """Returns the name of the first tensor with a number that is not finite; None if there is none."""
    return next((name for name, each in tensors if each is not None and not bool(each.isfinite().all())), None)


def keep(error: NotFiniteError, run: Path) -> str:
    """Writes what training was working on into a run folder, and returns in words how to meet it again.

    Raises:
        ConfigError: It cannot be written.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in error.arrays.items()}
    files, folder = {"batch.safetensors": save(arrays)}, run / FOLDER
    again = ""
    if entries := _entries(error.workloads):
        suite = SuiteSpec(name=FOLDER, description=f"Workloads of a training that met: {error}.", workloads=entries)
        files["suite.yaml"] = suite.to_yaml(defaults=False).encode()
        again = f", and its workloads: python -m agents.evaluate --suite {folder}/suite.yaml --policy {run}"
    replace_folder(folder, files)
    return f"{folder} holds the batch{again}; resuming meets it again, unless settings change (--set)"


def _entries(drawn: Iterable[Drawn]) -> tuple[SuiteEntry, ...]:
    """Returns entries of a suite, each once."""
    entries: list[SuiteEntry] = []
    for scenario, seed in drawn:
        if seed is None:
            continue
        options: dict[str, Any] = {name: getattr(scenario, name) for name in ScenarioSpec.model_fields}
        entry = SuiteEntry(**options, seeds=(seed, 1))
        if entry not in entries:
            entries.append(entry)
    return tuple(entries)
