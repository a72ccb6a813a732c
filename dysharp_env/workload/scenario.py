"""A scenario: which machine, which layer, which tokens; the options every command, environment and suite shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from dysharp_env.config import Spec
from dysharp_env.system import SystemSpec, load_system
from dysharp_env.workload.formats import FormatName
from dysharp_env.workload.layer import LayerSpec, load_model
from dysharp_env.workload.source import WorkloadSource
from dysharp_env.workload.workload import Workload


class ScenarioSpec(Spec):
    """Names of a system, a model and a source of routing, and how much of each."""

    system: str = "dgx-h100"
    """A system preset or YAML file."""
    gpus: int | None = None
    """Use that many of the system's GPUs; none means all."""
    model: str = "deepseek-v2-lite"
    """A model preset or YAML file."""
    top_k: int | None = None
    """Experts per token; none means the model's own."""
    tokens: int = Field(default=256, ge=1, le=1_000_000)
    """Tokens per GPU."""
    routing: str = "recorded"
    """A generator's name, ``recorded``, or the path of an .npz trace."""
    split: Literal["all", "train", "validation", "test"] = "all"
    """Which part of a trace to use."""
    layer_index: int | None = None
    """Which layer of a trace to use; none draws one for each workload."""
    placement: str = "contiguous"
    """``contiguous``, or a file that holds the GPU of every expert."""
    dispatch_dtype: FormatName | None = None
    """What a dispatched token is sent in; none means the model's own."""
    direction: Literal["forward", "backward"] = "forward"
    """Which pass of the layer; backward does twice the GEMM work."""
    compute_scale: float = Field(default=1.0, ge=1e-6, le=1000, allow_inf_nan=False)
    """Multiplies GEMM and HBM time; 0.001 leaves communication alone."""

    slow_gpu: float = Field(default=1.0, ge=1, le=100, allow_inf_nan=False)
    """Time of a GEMM's thread block on GPU 0 over that on the others; 1 means the system's own."""

    def build(self) -> Scenario:
        """Reads what the names stand for.

        Raises:
            ConfigError: A name is unknown, or the parts do not fit each other.
        """
        system = load_system(self.system, self.gpus)
        if self.slow_gpu != 1.0:
            system = system.with_changes({"slow_gpu": self.slow_gpu})
        layer = load_model(self.model, self.top_k, dispatch_dtype=self.dispatch_dtype, direction=self.direction)
        source = WorkloadSource(
            layer, system.num_gpus, self.tokens, self.routing, self.placement, self.layer_index, self.split
        )
        return Scenario(self, system, layer, source)


@dataclass(frozen=True)
class Scenario:
    """A scenario with its parts read: draw workloads from it."""

    spec: ScenarioSpec
    system: SystemSpec
    layer: LayerSpec
    source: WorkloadSource

    def draw(self, seed: int) -> Workload:
        """Returns the workload of a seed: the same seed gives the same routing."""
        return self.source.draw(seed)
