"""A scenario: which machine, which layer, which tokens; the options every command, environment and suite shares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from dysharp_env.config import Spec
from dysharp_env.system import Hardware, SystemSpec, load_system
from dysharp_env.system.faults import read_faults
from dysharp_env.workload.formats import ComputeName, FormatName
from dysharp_env.workload.layer import LayerSpec, load_model
from dysharp_env.workload.replicas import ReplicaRule
from dysharp_env.workload.source import WorkloadSource
from dysharp_env.workload.workload import Workload

_MOST_TOKENS = 1_000_000  # of one GPU


def _listed(given: Any) -> list[Any] | None:
    """Returns the numbers of a list, or of a text like ``64,0,128``; None if it is neither."""
    if isinstance(given, str) and "," in given:
        parts = given.split(",")
        return [int(part) if part.strip().isdecimal() else part for part in parts]
    return list(given) if isinstance(given, list | tuple) else None


def _is_count(given: Any) -> bool:
    return isinstance(given, int) and not isinstance(given, bool)


def _read_tokens(given: Any) -> Any:
    if given == "trace":
        return given
    counts = _listed(given)
    least, listed = (1, [given]) if counts is None else (0, counts)
    if not listed or not all(map(_is_count, listed)):
        raise ValueError("must be a number, a number for each GPU such as 64,0,128,96, or 'trace'")
    if min(listed) < least or max(listed) > _MOST_TOKENS:
        raise ValueError(f"must be from {least} to {_MOST_TOKENS}")
    if sum(listed) == 0:
        raise ValueError("must be at least 1 together")
    return given if counts is None else tuple(counts)


def _read_layers(given: Any) -> Any:
    if given is None or given == "all" or _is_count(given):
        return given
    numbers = _listed(given)
    if not numbers or not all(map(_is_count, numbers)) or len(set(numbers)) < len(numbers):
        raise ValueError("must be a number, different numbers such as 3,7, or 'all'")
    return tuple(numbers)


# Tokens of every GPU, or of each.
Tokens = Annotated[int | tuple[int, ...] | Literal["trace"], BeforeValidator(_read_tokens)]
# One layer, some, or all; None is any.
Layers = Annotated[int | tuple[int, ...] | Literal["all"] | None, BeforeValidator(_read_layers)]


class ScenarioSpec(Spec):
    """Names of a system, a model and a source of routing, and how much of each."""

    system: str = "dgx-h100"
    """A system preset or YAML file."""
    gpus: int | None = None
    """Use that many of the system's GPUs; none means all."""
    hardware: Hardware = "dynamic-multimem"
    """``dynamic-multimem``: the system's switch has all primitives that its preset names; ``today``: none that is only
    proposed, so neither dynamic multimem nor pushed sums, and GPUs have no Hub that gives tokens their places."""
    model: str = "deepseek-v2-lite"
    """A model preset, a YAML file, or the ``config.json`` that a model hub keeps beside its weights."""
    top_k: int | None = None
    """Experts per token; none means the model's own."""
    tokens: Tokens = 256
    """Tokens per GPU: one number, or one for each (64,0,128,...), or ``trace`` for those the trace says."""
    routing: str = "recorded"
    """A generator's name, ``recorded``, the path of an .npz trace, or FILE.npz:NAME for loads by layer and expert that
    tokens are sampled from."""
    split: Literal["all", "train", "validation", "test"] = "all"
    """Which part of a trace to use."""
    layer_index: Layers = None
    """Layer of a trace, of loads or of a placement: a number, several (3,7) or ``all``, of which ``simulate`` and
    ``compare`` run each and others draw one for each workload; none draws any."""
    placement: str = "contiguous"
    """``contiguous``; ``eplb:M``, M experts on each GPU, placed by EPLB from loads of an earlier batch; or a file of
    one layer or of all, with replicas or without: EPLB's, SGLang's, TensorRT-LLM's, vllm-ascend's, omni_infer's."""
    replicas: ReplicaRule = "nearest"
    """Which replica serves a token where a placement holds an expert several times: the home GPU's or the next one's,
    each in turn, or the one on the GPU with least so far."""
    dispatch_dtype: FormatName | None = None
    """What a dispatched token is sent in; none means the model's own."""
    compute_dtype: ComputeName | None = None
    """What GEMMs multiply; none means the model's own."""
    direction: Literal["forward", "backward"] = "forward"
    """Which pass of the layer; backward does twice the GEMM work."""
    compute_scale: float = Field(default=1.0, ge=1e-6, le=1000, allow_inf_nan=False)
    """Multiplies GEMM and HBM time; 0.001 leaves communication alone."""

    slow_gpu: float = Field(default=1.0, ge=1, le=100, allow_inf_nan=False)
    """Time of a GEMM's thread block on GPU 0 over that on the others; 1 means the system's own."""
    faults: str | None = None
    """What is wrong with the machine: a preset of ``faults``, a YAML file, settings such as slow_link=2,late_us=20, or
    ``none``; without it the system's own."""
    hot_expert: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    """Share of the tokens behind ``hot_from`` that choose one and the same expert, which becomes hot in mid-layer."""
    hot_from: float = Field(default=0.5, ge=0, le=1, allow_inf_nan=False)
    """Share of each GPU's tokens that come before an expert becomes hot."""

    def build(self) -> Scenario:
        """Reads what the names stand for.

        Raises:
            ConfigError: A name is unknown, or the parts do not fit each other.
        """
        system = load_system(self.system, self.gpus).with_hardware(self.hardware)
        if self.slow_gpu != 1.0:
            system = system.with_changes({"slow_gpu": self.slow_gpu})
        if self.faults is not None:
            system = system.with_changes({"faults": read_faults(self.faults)})
        formats = {"dispatch_dtype": self.dispatch_dtype, "compute_dtype": self.compute_dtype}
        layer = load_model(self.model, self.top_k, direction=self.direction, **formats)
        source = WorkloadSource(
            layer,
            system.num_gpus,
            self.tokens,
            self.routing,
            self.placement,
            self.layer_index,
            self.split,
            self.replicas,
            self.hot_expert,
            self.hot_from,
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

    def with_faults(self, faults: str) -> Scenario:
        """Returns the scenario on the same machine with those faults, of which ``ScenarioSpec`` says what they may be.

        Raises:
            ConfigError: They are unknown, or the machine cannot have them.
        """
        system = self.system.with_changes({"faults": read_faults(faults)})
        return replace(self, spec=self.spec.model_copy(update={"faults": faults}), system=system)

    def draw_layers(self, seed: int) -> list[Workload]:
        """Returns the workloads of a seed in every layer of ``layer_index`` if it names several, or that of ``draw``.

        The tokens of a trace are the same in all of them.
        """
        return self.source.draw_layers(seed)
