"""A stored decision list: all that is needed to play one row of an evaluation again, as data in one small file.

The file is gzipped JSON: the scenario and workload seed, a digest of the routing they must give, the schedule in full,
what was asked, the row chosen in every decision that was asked, and the makespan that came of it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from dysharp_env import __version__
from dysharp_env.config import ConfigError, Spec, parse_spec
from dysharp_env.files import parse_json, read_gzip, shown, write_bytes
from dysharp_env.schedules import Exposure, ScheduleSpec
from dysharp_env.schedules.exposure import SplitRow
from dysharp_env.simulator.state.observation import DecisionKind
from dysharp_env.workload import ScenarioSpec, Workload

SUFFIX = ".json.gz"
FORMAT: Literal["dysharp/decisions/1"] = "dysharp/decisions/1"
_MOST_BYTES = 32 << 20  # of JSON in one file: ten million choices


class AskedSpec(Spec):
    """Which decisions were asked, and what they showed; ``Exposure`` without a network."""

    kinds: tuple[DecisionKind, ...] = ()
    """Decision kinds whose choices are stored; the schedule's own rule takes the others."""
    hold: bool = False
    """Whether GEMM and combine decisions offered to wait."""
    partial_tiles: bool = False
    """Whether GEMM decisions offered open tiles."""
    splits: tuple[SplitRow, ...] = ()
    """What a split decision offered; see ``EnvSpec``."""
    split_moments: Annotated[int, Field(ge=0)] = 0
    """How often each GPU decided on its split again."""
    max_candidates: int = Field(default=32, ge=2, le=4096)
    """Most candidates one decision showed."""

    @classmethod
    def of(cls, exposure: Exposure) -> AskedSpec:
        """Returns what an exposure asks, whoever answers."""
        return cls(**{name: getattr(exposure, name) for name in cls.model_fields})

    def exposure(self) -> Exposure:
        """Returns the exposure under which a player is asked."""
        return Exposure(**self.model_dump())


class DecisionList(Spec):
    """One row of an evaluation with every choice that made it."""

    format: Literal["dysharp/decisions/1"] = FORMAT
    """What the file is."""
    version: str = __version__
    """Version of the package that wrote it."""
    policy: str
    """Name in the evaluation's table."""
    seed: int | None
    """Training seed of a run, seed of random choices, or none."""
    workload: str
    """Name of the workload in its suite."""
    scenario: ScenarioSpec
    """Machine, model and source of routing."""
    workload_seed: Annotated[int, Field(ge=0, lt=2**63)]
    """Seed the workload was drawn with."""
    renaming: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Which numbers the GPUs had; see ``Problem.renamed``."""
    routing_sha256: str
    """Digest of routing and placement; see ``routing_digest``."""
    schedule: ScheduleSpec
    """Primitives, gates, costs, SM groups, and the rule of what was not asked."""
    asked: AskedSpec
    """Which decisions were asked."""
    choices: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...]
    """Row taken in every asked decision, in order."""
    makespan_ps: Annotated[int, Field(ge=0, lt=2**63)]
    """What the table says."""


def routing_digest(workload: Workload) -> str:
    """Returns the SHA-256, in hex, of a workload's expert choices and placement as little-endian int32.

    Where GPUs differ in tokens, or experts are there several times, those numbers are part of it.
    """
    placement = workload.placement
    arrays = [workload.topk_ids, workload.gpu_of_expert]
    if np.ptp(workload.tokens_of_gpu) or not placement.is_plain or placement.num_copies:
        arrays += [workload.tokens_of_gpu, placement.logical_of_expert, placement.copied_from]
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, "<i4").tobytes())
    return digest.hexdigest()


def write_decisions(path: Path, decisions: DecisionList) -> None:
    """Writes a decision list; the same list gives the same bytes.

    Raises:
        ConfigError: The file cannot be written.
    """
    text = json.dumps(decisions.model_dump(mode="json"), separators=(",", ":"))
    write_bytes(path, gzip.compress(text.encode(), mtime=0))


def read_decisions(path: Path) -> DecisionList:
    """Returns the decision list of a file.

    Raises:
        ConfigError: The file is missing, damaged, or holds something else.
    """
    data = parse_json(read_gzip(path, _MOST_BYTES, "decision list"), f"'{path}'")
    if not isinstance(data, dict):
        raise ConfigError(f"'{path}' is not a decision list: it holds no JSON object")
    if (form := data.get("format", FORMAT)) != FORMAT:
        raise ConfigError(f"'{path}' is not a decision list: format='{shown(form)}' must be '{FORMAT}'")
    return parse_spec(DecisionList, data, source=f"'{path}'")
