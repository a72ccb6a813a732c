"""Schedules as data: which primitives, what waits for what, what is paid, how SMs are split, and by what rule.

A schedule is one YAML file in ``configs/schedules/``. Everything it says becomes numbers (``Program``); the engine
never learns its name.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, model_validator

from dysharp_env.config import ConfigError, Spec, load_spec
from dysharp_env.schedules.exposure import Exposure
from dysharp_env.schedules.names import preset_of, read_schedule_name
from dysharp_env.schedules.replication import ReplicateSpec, planned, replicate_defaults
from dysharp_env.schedules.sections import FamiliesSpec, PartsSpec, PaysSpec, ReadinessSpec, RuleSpec, SmSpec
from dysharp_env.schedules.variants import plan_changes, with_first_filled_in
from dysharp_env.simulator.phases import SHARED, STAGES, WEIGHT_GRADIENTS
from dysharp_env.simulator.program import Program, require_fit
from dysharp_env.simulator.state.codes import GATE_FINE, GATE_GPU, GATE_PHASE, PARTS_BY
from dysharp_env.simulator.state.observation import DECISION_KINDS, ENGINE_KINDS, KINDS
from dysharp_env.system import CombinePrimitive, DispatchPrimitive, SystemSpec
from dysharp_env.system.overheads import OVERHEADS
from dysharp_env.system.primitives import COMBINE_PRIMITIVES, DISPATCH_PRIMITIVES
from dysharp_env.workload import Workload
from dysharp_env.workload.layer import LayerSpec

NEVER_EARLY = 1 << 30  # more tokens than any tile has
# What is paid before tokens can be sent to copies: whoever plans needs the counts of all GPUs.
COSTS_OF_PLANNING: tuple[Literal["count_exchange", "plan"], ...] = ("count_exchange", "plan")


class ScheduleSpec(Spec):
    """A complete schedule."""

    name: str = Field(min_length=1)
    """Name shown in results."""
    description: str = ""
    """What it does, in a sentence."""
    aliases: tuple[str, ...] = ()
    """Other names under which ``load_schedule`` finds a preset, on one line: those of serving systems' back ends."""
    found_by: Literal["hand", "search"] = "hand"
    """Whether somebody designed it, or a search found its rule and settings."""
    dispatch: DispatchPrimitive
    """Primitive that moves tokens to their experts; ``pull``: expert GPUs read them by plain loads."""
    combine: CombinePrimitive
    """Primitive that brings sums home; ``pull``: home GPUs read every partial sum by plain loads and add them."""
    copies: Literal["gpu", "expert"] = "gpu"
    """Whether one copy and one partial sum serve all of a token's experts on a GPU, or each expert has its own."""
    loopback: bool = False
    """Whether a home GPU's own copy and contribution cross the switch too, as in NVLS collectives over all GPUs."""
    readiness: ReadinessSpec = ReadinessSpec()
    parts: PartsSpec = PartsSpec()
    communication: Literal["overlapped", "exclusive"] = "overlapped"
    """``exclusive``: a GPU's combine waits for the end of its dispatch, as in one stream of communication kernels."""
    shared_experts: Literal["none", "before", "after", "hidden"] = "none"
    """When home GPUs run the layer's shared experts: not in the layer, at all SMs before its dispatch or after its end,
    or beside the dispatch of phases, on the SMs that it leaves; GEMM-1 then waits for both."""
    hub: bool = False
    """Whether the destination's Hub gives vectors their places as they come: hardware that MoE-Hub (arXiv 2605.05888)
    proposes, so that nobody exchanges counts."""
    sms: SmSpec
    families: FamiliesSpec = FamiliesSpec()
    pays: PaysSpec = PaysSpec()
    replicate: ReplicateSpec = ReplicateSpec()
    """Copies of experts: who plans them, how many, and how their weights travel, beside the dispatch of tokens."""
    prefetch: Literal["none", "ahead", "early"] = "none"
    """Whether weights are fetched into L2 while HBM has nothing to do; which, or none for now, is a decision. By rule,
    unless ``rule`` says another: of the expert with the most tokens, of those counted before the layer or else arrived,
    when it may be of any expert, GEMM-1's first, if there is room beside all that is still needed. ``ahead``: once
    dispatch may begin; ``early``: as soon as the kernel is launched, while it starts, exchanges counts, meets a barrier
    and plans. That starting leaves HBM idle is assumed; nobody has measured it."""
    chunk_tokens: int = Field(default=8, ge=1)
    """Tokens of one home GPU that one dispatch or combine decision takes together."""
    token_order: Literal["natural", "expert_waves"] = "natural"
    """In which order a home GPU's chunks hold its tokens. ``expert_waves``: those of the busiest experts first, on all
    GPUs alike; needs the tokens per expert of the count exchange."""
    partial_tiles: bool = False
    """Whether the rule may close an open tile early."""
    min_partial_tokens: int = Field(default=16, ge=1)
    """The fewest tokens of a tile closed early."""
    hold: bool = False
    """Whether the rule may let a group wait."""
    rule: RuleSpec = RuleSpec({})
    """Weights of features by kind of decision: the candidate with the highest score is taken, of a kind without weights
    the first."""
    best_of: tuple[dict[str, Any], ...] = ()
    """Values of the same dotted settings, such as ``{parts.count: 4}``, of which whoever runs the schedule by its own
    rule takes the fastest for the layer at hand, the earliest of equals: as a table made by profiling would, of which
    it is an upper bound. The first is what the other keys say, and need not be repeated there; decisions asked from
    outside, as in environments, are asked of the first."""
    plans: tuple[str | dict[str, Any], ...] = ()
    """Ways to run the layer, of which the decision ``plan`` takes one: other schedules by name, or changes of dotted
    settings, of this schedule or of the one that they name as ``schedule``. One that places replicas by EPLB, which
    keeps them in memory whether it is taken or not, can be taken where loads of an earlier batch are known."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_first(cls, data: Any) -> Any:
        return with_first_filled_in(data)

    @model_validator(mode="after")
    def _check_parts_fit(self) -> ScheduleSpec:
        gated = {"gemm1": self.readiness.gemm1, "gemm2": self.readiness.gemm2, "combine": self.readiness.combine}
        for stage, readiness in gated.items():
            if readiness in ("tile", "token") and getattr(self.pays, stage):
                raise ValueError(
                    f"pays.{stage} must be empty: with readiness '{readiness}' {stage} starts with no boundary"
                )
        if self.shared_experts == "hidden" and self.readiness.gemm1 == "tile":
            raise ValueError("shared_experts=hidden needs readiness.gemm1 gpu or phase: GEMM-1 waits for them too")
        require_fit(
            DISPATCH_PRIMITIVES[self.dispatch],
            COMBINE_PRIMITIVES[self.combine],
            copies_per_expert=self.copies == "expert",
            loopback=self.loopback,
            parts_by=PARTS_BY.index(self.parts.by),
            combine_gate=_gate(self.readiness.combine),
            in_band=self.readiness.gemm1 == "tile" and "count_exchange" not in self.pays.dispatch,
        )
        if self.families.dispatch:
            DISPATCH_PRIMITIVES[self.dispatch].require_family(self.families.dispatch)
        if self.families.combine:
            COMBINE_PRIMITIVES[self.combine].require_family(self.families.combine)
        if self.token_order == "expert_waves" and "count_exchange" not in self.pays.dispatch:
            raise ValueError("token_order=expert_waves needs 'count_exchange' in pays.dispatch: it says who is busy")
        missing = [cost for cost in COSTS_OF_PLANNING if cost not in self.pays.dispatch]
        if self.replicate.makes_copies and missing:
            raise ValueError(f"replicate.planner={self.replicate.planner} needs '{missing[0]}' in pays.dispatch")
        if self.hub and "count_exchange" in self.pays.dispatch:
            raise ValueError("hub=true needs no 'count_exchange' in pays.dispatch: the Hub is there to save it")
        if "launch" not in self.pays.dispatch:
            raise ValueError("pays.dispatch must name 'launch': no layer runs without starting a kernel")
        return self

    @model_validator(mode="after")
    def _check_best_of(self) -> ScheduleSpec:
        for place in range(1, len(self.best_of)):  # the first is what has been checked
            try:
                self._variant(place)
            except ConfigError as error:
                raise ValueError(f"best_of[{place}]: {str(error).removeprefix('ScheduleSpec: ')}") from None
        return self

    @model_validator(mode="after")
    def _check_plans(self) -> ScheduleSpec:
        _ = self._listed  # a mistake in one is a mistake in this
        return self

    @property
    def options(self) -> tuple[ScheduleSpec, ...]:
        """What the decision ``plan`` chooses from, one schedule for each of ``plans``; itself if there are none."""
        return self._listed or (self,)

    @cached_property  # without the schedule itself: no two that held themselves could be compared
    def _listed(self) -> tuple[ScheduleSpec, ...]:
        found = []
        for place, given in enumerate(self.plans):
            base, changes = plan_changes(self.name, place, given)
            try:
                found.append((load_schedule(base) if base else self).with_changes(changes))
            except ConfigError as error:
                raise ValueError(f"plans[{place}]: {str(error).removeprefix('ScheduleSpec: ')}") from None
        return tuple(found)

    def fitting(self, exposure: Exposure, system: SystemSpec) -> Exposure:
        """Returns an exposure without kinds in which this plan, one of several, decides nothing; it says who waits."""
        idle = {"split": not self._has_groups(system.gpu.num_sms), "prefetch": self.prefetch == "none"}
        kinds = tuple(kind for kind in exposure.kinds if not idle.get(kind))
        return replace(exposure, kinds=kinds, hold=self.hold, partial_tiles=self.partial_tiles)

    def variants(self) -> tuple[ScheduleSpec, ...]:
        """Returns what there is to choose between, one schedule for each of ``best_of``; itself if there is no choice.

        The ``best_of`` of each holds its own changes alone.
        """
        if len(self.best_of) < 2:
            return (self,)
        return tuple(map(self._variant, range(len(self.best_of))))

    def _variant(self, place: int) -> ScheduleSpec:
        changes = self.best_of[place]
        return self.with_changes({**changes, "best_of": (changes,)})

    def planned(self, workload: Workload) -> Workload:
        """Returns the workload as this schedule's planner shares it out; itself without one.

        Raises:
            ConfigError: The planner needs what the workload does not have.
        """
        return planned(workload, self.replicate)

    def with_planner(self, planner: str, weights: str = "", tolerance: str = "") -> ScheduleSpec:
        """Returns the schedule without plans, its work shared out by a planner, with what that costs; see ``names.py``.

        Args:
            planner: One of ``PLANNERS``, with the settings it is published with.
            weights: How weights travel; empty: as published.
            tolerance: Load of the busiest GPU over the mean that is balanced enough, likewise.

        Raises:
            ConfigError: It has a planner of its own.
        """
        name = f"{self.name}+" + ":".join(filter(None, (planner, weights, tolerance)))
        if self.replicate.planner != "none":
            raise ConfigError(f"schedule='{name}': '{self.name}' has a planner of its own, {self.replicate.planner}")
        settings = replicate_defaults(planner, weights)
        if tolerance:
            settings["tolerance"] = float(tolerance)
        replicate = ReplicateSpec(**settings)
        paid = self.pays.dispatch
        if replicate.makes_copies:
            paid = (*paid, *(cost for cost in COSTS_OF_PLANNING if cost not in paid))
        changes = {"name": name, "aliases": (), "plans": (), "replicate": replicate.model_dump(), "pays.dispatch": paid}
        said = f"{self.description.removesuffix('.')}; work shared out by {planner}."
        return self.with_changes({**changes, "description": said})

    def gemm_sms(self, num_sms: int) -> int:
        """Returns the SMs left for GEMMs: all but those of communication stages that run beside them."""
        if self.sms.in_gemm:
            return num_sms
        dispatch_sms, combine_sms = self.sms.groups(num_sms)
        has_parts = self.parts.count > 1
        beside_gemm1 = dispatch_sms if has_parts or self.readiness.gemm1 == "tile" else 0
        beside_gemm2 = combine_sms if has_parts or self.readiness.combine == "token" else 0
        never_both = self.communication == "exclusive" or (self.readiness.gemm2 == "phase" and not has_parts)
        if never_both:
            return num_sms - max(beside_gemm1, beside_gemm2)
        return num_sms - beside_gemm1 - beside_gemm2

    def _has_groups(self, num_sms: int) -> bool:
        """Returns whether groups share the SMs, none of which is in two."""
        return sum(self.sms.groups(num_sms)) + self.gemm_sms(num_sms) == num_sms

    def _check_splits(self, exposure: Exposure, system: SystemSpec) -> None:
        """Checks that this schedule's groups share the SMs, and that the splits fit them."""
        num_sms = system.gpu.num_sms
        dispatch_sms, combine_sms = self.sms.groups(num_sms)
        if not self._has_groups(num_sms):
            given = f"{dispatch_sms} dispatch, {combine_sms} combine and {self.gemm_sms(num_sms)} GEMM SMs"
            raise ConfigError(
                f"exposed='split' does not fit schedule='{self.name}': its {given} share the {num_sms} of"
                f" {system.name}, as stages take turns or GEMMs communicate themselves; it needs groups with SMs of"
                " their own"
            )
        for dispatch, combine, *_ in exposure.splits:
            if min(dispatch, combine) < 1 or dispatch + combine >= num_sms:
                raise ConfigError(f"split ({dispatch}, {combine}) must leave some of {num_sms} SMs for GEMMs")

    def program(self, system: SystemSpec, exposure: Exposure = Exposure()) -> Program:  # noqa: B008 (frozen)
        """Returns the schedule as numbers for one system.

        Raises:
            ConfigError: The system lacks a primitive or the SMs.
        """
        for variant in self.variants():
            variant._check_system(system)
        if "split" in exposure.kinds:
            self._check_splits(exposure, system)
        if "prefetch" in exposure.kinds and self.prefetch == "none":
            raise ConfigError(f"exposed='prefetch' does not fit schedule='{self.name}', whose prefetch is 'none'")
        dispatch_ps, gemm1_ps, gemm2_ps, combine_ps, end_ps = self._pays_ps(system)
        dispatch_sms, combine_sms = self.sms.groups(system.gpu.num_sms)
        return Program(
            dispatch=DISPATCH_PRIMITIVES[self.dispatch],
            combine=COMBINE_PRIMITIVES[self.combine],
            families=(self.families.dispatch, self.families.combine),
            copies_per_expert=self.copies == "expert",
            loopback=self.loopback,
            gates=(_gate(self.readiness.gemm1), _gate(self.readiness.gemm2), _gate(self.readiness.combine)),
            parts=self.parts.count,
            parts_by=PARTS_BY.index(self.parts.by),
            exclusive=self.communication == "exclusive",
            prefetches=self.prefetch != "none",
            early_ps=self._early_ps(system),
            meets=not {"count_exchange", "barrier"}.isdisjoint(self.pays.dispatch),
            counted="count_exchange" in self.pays.dispatch,
            pays_ps=(dispatch_ps, gemm1_ps, gemm2_ps, combine_ps),
            pay_end_ps=end_ps,
            kernels=self._kernels(),
            hides_shared=self.shared_experts == "hidden",
            dispatch_sms=dispatch_sms,
            gemm_sms=self.gemm_sms(system.gpu.num_sms),
            combine_sms=combine_sms,
            in_gemm=self.sms.in_gemm,
            **self.replicate.program(),
            chunk_tokens=self.chunk_tokens,
            waves=self.token_order == "expert_waves",
            min_partial_tokens=self.min_partial_tokens,
            weights=self.rule.matrix(),
            **self._answers(exposure),
        )

    def require_sums(self, system: SystemSpec, layer: LayerSpec) -> None:
        """Checks that the system can sum a layer's results as this schedule would.

        Raises:
            ConfigError: The switch would have to, and does not sum their format.
        """
        if COMBINE_PRIMITIVES[self.combine].in_switch and layer.combine_dtype not in system.switch.reduction_dtypes:
            raise ConfigError(
                f"schedule='{self.name}' sums in the switch ({self.combine}); {system.name} does so for"
                f" {list(system.switch.reduction_dtypes)}, not for combine_dtype='{layer.combine_dtype}'"
            )

    def _check_system(self, system: SystemSpec) -> None:
        for kind, primitive, known in (
            ("dispatch", self.dispatch, system.switch.dispatch_primitives),
            ("combine", self.combine, system.switch.combine_primitives),
        ):
            if primitive not in known:
                raise ConfigError(f"schedule='{self.name}' needs {kind} '{primitive}'; {system.name} has {list(known)}")
        if self.hub and not system.gpu.hub:
            raise ConfigError(f"schedule='{self.name}' needs GPUs with a Hub; gpu.hub of {system.name} is false")
        self.replicate.require_fit(self.name, system, self.gemm_sms(system.gpu.num_sms))
        families = system.gpu.families
        for family in filter(None, (self.families.dispatch, self.families.combine, self.replicate.used_family)):
            if families and family not in families and family != "multimem":
                raise ConfigError(
                    f"schedule='{self.name}' needs family '{family}'; gpu.families of {system.name} are {[*families]}"
                )
        num_sms = system.gpu.num_sms
        dispatch_sms, combine_sms = self.sms.groups(num_sms)
        if self.shared_experts == "hidden" and dispatch_sms >= num_sms:
            raise ConfigError(
                f"schedule='{self.name}': shared_experts=hidden needs SMs beside sms.dispatch={self.sms.dispatch}"
                f" of the {num_sms} that {system.name} has"
            )
        if self.gemm_sms(num_sms) < 1 or max(dispatch_sms, combine_sms) > num_sms:
            given = f"sms.dispatch={self.sms.dispatch} and sms.combine={self.sms.combine}"
            raise ConfigError(
                f"schedule='{self.name}': {given} leave no SM for GEMMs of the {num_sms} that {system.name} has"
            )

    def _pays_ps(self, system: SystemSpec) -> list[int]:
        """Returns what is paid before dispatch, GEMM-1, GEMM-2 and combine, and at the end."""
        return [
            round(sum(system.overhead_us(cost) for cost in getattr(self.pays, stage) if cost in OVERHEADS) * 1e6)
            for stage in STAGES
        ]

    def _early_ps(self, system: SystemSpec) -> int:
        """Returns how long before dispatch opens weights may be fetched: as long as the kernel runs before that."""
        inside = (cost for cost in self.pays.dispatch if cost in OVERHEADS and cost not in ("launch", "gap"))
        return round(sum(map(system.overhead_us, inside)) * 1e6) if self.prefetch == "early" else 0

    def _kernels(self) -> tuple[tuple[str, ...], ...]:
        """Returns the kernels paid in each stage and at the end."""
        kernels = {
            stage: tuple(cost for cost in getattr(self.pays, stage) if cost not in OVERHEADS) for stage in STAGES
        }
        before, after = ((SHARED,) * (self.shared_experts == when) for when in ("before", "after"))
        kernels["dispatch"] += before
        # What a layer leaves for later is paid by whoever runs it.
        kernels["end"] += (*after, WEIGHT_GRADIENTS)
        return tuple(kernels.values())

    def _answers(self, exposure: Exposure) -> dict[str, Any]:
        """Returns the fields of a program that say who answers which decisions, and what those offer."""
        partial_tiles = exposure.partial_tiles if "gemm" in exposure.kinds else self.partial_tiles
        early_tokens = self.min_partial_tokens if partial_tiles else NEVER_EARLY
        splits = tuple((split[0], split[1], (*split, early_tokens)[2]) for split in exposure.splits)
        decides_splits = "split" in exposure.kinds
        kinds = frozenset(DECISION_KINDS.index(kind) for kind in exposure.kinds if kind in ENGINE_KINDS)
        waits = {kind: exposure.hold if kind in exposure.kinds else self.hold for kind in ENGINE_KINDS}
        offers_hold = {**waits, "prefetch": True}  # else what is still to be used would have to be dropped
        return {
            "partial_tiles": partial_tiles,
            "may_hold": frozenset(
                DECISION_KINDS.index(kind) for kind in ENGINE_KINDS if KINDS[kind].may_wait and offers_hold[kind]
            ),
            "splits": splits if decides_splits else (),
            "split_moments": exposure.split_moments if decides_splits else 0,
            "exposed": frozenset() if exposure.network else kinds,
            "network": exposure.network if kinds else None,
            "networked": kinds if exposure.network else frozenset(),
            "max_candidates": exposure.max_candidates,
        }


def _gate(readiness: str) -> int:
    return {"phase": GATE_PHASE, "gpu": GATE_GPU}.get(readiness, GATE_FINE)


def load_schedule(name_or_path: str) -> ScheduleSpec:
    """Returns the schedule of a preset's name or alias, or of a YAML path, perhaps with a planner; see ``names.py``.

    Raises:
        ConfigError: No such schedule or planner, a key or value in it is wrong, or it has a planner already.
    """
    base, *planner = read_schedule_name(name_or_path)
    schedule = load_spec(ScheduleSpec, "schedules", preset_of(base))
    return schedule.with_planner(*planner) if planner[0] else schedule
