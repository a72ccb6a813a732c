"""The paper's experiments as measures: which layers are simulated, and how their times make a layer or a step.

Taken throughout: one GPU's micro-batch is one sequence of the model; routing is normal over experts in training and a
power law in inference, as the paper says; the time of a layer is that of its forward pass, for which the paper's share
of communication fits the peak of its GPUs, and a training step has both passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from dysharp_env.config import ConfigError
from dysharp_env.reproduction.calibration import CalibrationSpec
from dysharp_env.reproduction.claims import Measure, Results
from dysharp_env.reproduction.steps.inference import decode_us, prefill_two_batch_us, prefill_us
from dysharp_env.reproduction.steps.layers import PS_PER_US, LayerCase, LayerTimes
from dysharp_env.reproduction.steps.parts import StepSpec, block_parts
from dysharp_env.reproduction.steps.streams import makespan_ps
from dysharp_env.reproduction.steps.training import training_ops
from dysharp_env.system import SystemSpec
from dysharp_env.workload import LayerSpec, load_model

PASSES = ("forward", "backward")
TRAINING_ROUTING = "paper-normal"
# Overlap across layers is a schedule of steps, whose layers are DeepEP's.
LAYERS_OF = {"dualpipe": "deepep", "two-batch": "deepep"}
# A quick look has this many times fewer tokens; fixed costs then weigh more and tiles fill less.
QUICK_DIVISOR = 8
# Shares are ratios to this.
ONE = Measure((), lambda results: 1.0)


@dataclass(frozen=True)
class Point:
    """What one experiment varies, beside the schedule.

    Attributes:
        model: A model preset.
        top_k: Experts per token; None means the model's own.
        gpus: GPUs; None means all of the system's.
        tokens: Tokens per GPU; None means one sequence of the model.
        routing: Where tokens go.
        system: A system preset; None means the calibration's.
        changes: Further settings of the system, as items.
        layer_changes: Settings of the layer, as items.
        schedule_changes: Settings of the schedule, as items.
        compute_scale: Multiplies GEMM and HBM time.
    """

    model: str
    top_k: int | None = None
    gpus: int | None = None
    tokens: int | None = None
    routing: str = TRAINING_ROUTING
    system: str | None = None
    changes: tuple[tuple[str, Any], ...] = ()
    layer_changes: tuple[tuple[str, Any], ...] = ()
    schedule_changes: tuple[tuple[str, Any], ...] = ()
    compute_scale: float = 1.0

    @property
    def label(self) -> str:
        """The model and top-k, as rows name them."""
        return self.model if self.top_k is None else f"{self.model} top-{self.top_k}"


@dataclass(frozen=True)
class Experiments:
    """Makes measures under one calibration.

    Attributes:
        calibration: The machine.
        divisor: Tokens per GPU are divided by this; 1 repeats the paper's sizes.
        seed: Seed of all routing.
        steps: How layers make steps.
    """

    calibration: CalibrationSpec
    divisor: int = 1
    seed: int = 0
    steps: StepSpec = StepSpec()
    _machines: dict[Point, SystemSpec] = field(default_factory=dict, init=False, compare=False, repr=False)

    def layer(self, point: Point, schedule: str, passes: Sequence[str] = ("forward",)) -> Measure:
        """Returns the time of an MoE layer, us, over some of ``PASSES``."""
        cases = tuple(self._case(point, schedule, direction) for direction in passes)
        return Measure(cases, lambda results: sum(results[case].makespan_ps for case in cases) / 1e6)

    def training(self, point: Point, schedule: str, moe_passes: Sequence[str] = PASSES) -> Measure:
        """Returns the time of a training step, us; ``dualpipe`` pairs passes across layers.

        ``moe_passes`` are simulated for the MoE layers of the forward and the backward pass.
        """
        paired = schedule == "dualpipe"
        cases = tuple(self._case(point, schedule, direction, shares_sms=paired) for direction in moe_passes)
        around = [self._case(point, schedule, direction, shares_sms=paired) for direction in PASSES]
        num_sms = cases[0].system.gpu.num_sms if paired else None

        def step_us(results: Results) -> float:
            passes = zip(around, cases, strict=True)
            forward, backward = (block_parts(outside, results[case]) for outside, case in passes)
            ops = training_ops(self.steps, _layers(cases[0].layer), forward, backward, num_sms)
            return makespan_ps(ops) / PS_PER_US

        return Measure(cases, step_us)

    def prefill(self, point: Point, schedule: str) -> Measure:
        """Returns the time of a prompt through the model, us; ``two-batch`` overlaps two, and counts half of both."""
        if schedule != "two-batch":
            return self._forward(point, schedule, prefill_us)

        def half_us(case: LayerCase, times: LayerTimes) -> float:
            return prefill_two_batch_us(case, times, self.steps) / 2

        return self._forward(point, schedule, half_us, shares_sms=True)

    def decode(self, point: Point, schedule: str) -> Measure:
        """Returns the time of decoding after a prompt of the model's sequence, us."""
        prompt_tokens = self._tokens(point, _layer(point, "forward"))
        time_us = partial(decode_us, spec=self.steps, prompt_tokens=prompt_tokens)
        return self._forward(point, schedule, time_us, tokens=self.steps.decode_sequences)

    def payload(self, point: Point, schedule: str) -> Measure:
        """Returns the payload bytes of a forward layer over all links."""
        return self._forward(point, schedule, lambda _, times: times.payload_bytes)

    def communication_bound(self, point: Point) -> Measure:
        """Returns the lower bound of a forward layer, us; ``point`` should leave communication alone."""
        return self._forward(point, "dysharp", lambda _, times: times.lower_bound_ps / 1e6)

    def communication_share(self, point: Point, schedule: str) -> Measure:
        """Returns the share of a forward layer, run in phases, that is not GEMMs."""

        def share(_: LayerCase, times: LayerTimes) -> float:
            dispatch_ps, gemms_ps, combine_ps = times.cut()
            return (dispatch_ps + combine_ps) / (dispatch_ps + gemms_ps + combine_ps)

        return self._forward(point, schedule, share)

    def _forward(
        self, point: Point, schedule: str, value: Callable[[LayerCase, LayerTimes], float], **settings: Any
    ) -> Measure:
        """Returns a value of a forward layer; ``settings`` are those of ``_case``."""
        case = self._case(point, schedule, "forward", **settings)
        return Measure((case,), lambda results: value(case, results[case]))

    def _tokens(self, point: Point, layer: LayerSpec) -> int:
        tokens = point.tokens or (layer.transformer.sequence_tokens if layer.transformer else None)
        if tokens is None:
            raise ConfigError(f"model='{point.model}' names no transformer.sequence_tokens")
        return max(1, tokens // self.divisor)

    def _case(
        self, point: Point, schedule: str, direction: str, tokens: int | None = None, shares_sms: bool = False
    ) -> LayerCase:
        layer = _layer(point, direction)
        sms = self.steps.overlap_sms
        shared = (("sms.dispatch", sms), ("sms.combine", sms)) if shares_sms else ()
        return LayerCase(
            system=self._machine(point),
            layer=layer,
            tokens=tokens or self._tokens(point, layer),
            routing=point.routing,
            seed=self.seed,
            schedule=LAYERS_OF.get(schedule, schedule),
            compute_scale=point.compute_scale,
            schedule_changes=(*point.schedule_changes, *shared),
        )

    def _machine(self, point: Point) -> SystemSpec:
        if point not in self._machines:
            gpus = {} if point.gpus is None else {"num_gpus": point.gpus}
            self._machines[point] = self.calibration.machine(point.system, {**gpus, **dict(point.changes)})
        return self._machines[point]


# Tables ask for the same few layers thousands of times.
@cache
def _layer(point: Point, direction: str) -> LayerSpec:
    return load_model(point.model, point.top_k, direction=direction).with_changes(dict(point.layer_changes))


def _layers(layer: LayerSpec) -> int:
    assert layer.transformer is not None
    return layer.transformer.layers
