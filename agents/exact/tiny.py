"""Tiny layers on a stripped machine: small enough to be solved exactly, on rules that a solver can state exactly.

The machine is a DGX H100 from which everything is taken that an exact model would have to approximate; what is left is
modelled to the picosecond, by the engine and by ``model.py`` alike. Left out: HBM and L2 (reads take no time),
windows of what an SM may have in flight, acknowledgements, requests and notifications on the wire, credits and virtual
output queues (the switch queues at its outputs, without limit), in-switch reduction (sums are pushed home by plain
stores) and parallel SMs (one SM a GPU runs every GEMM row, one row at a time). Links, hops, cut-through, multicast,
translation, tiles (closed early or not) and GEMM times stay. A chunk is one token.

Some instances have HBM, of a rate at which an expert's weights take about as long as its rows, and an L2 that holds all
of them. There weights may be fetched ahead. What else HBM does then is to read the tokens that are dispatched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.schedules import Exposure, Problem, ScheduleSpec
from dysharp_env.schedules.opening import Offer
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.twin import Twin
from dysharp_env.simulator.twin.parts import Decision
from dysharp_env.system import load_system
from dysharp_env.workload import Workload
from dysharp_env.workload.layer import LayerSpec

_UNLIMITED_GBPS = 1e9  # at which a read of less than a megabyte rounds down to no time
_FETCHING = {"gpu.hbm_gbps": 1e5, "gpu.l2_mb": 1e6}  # reads an expert's matrices in 9.4 and 4.7 us, and keeps them
_TOKENS_IN_ONE = 16  # a token of a tiny layer is as long as so many of DeepSeek-V3's, so that links matter beside hops
TRAINING_SEED, VALIDATION_SEED = 10_000, 20_000  # what agents.exact.__main__ solves has seeds below
_EARLY, _MULTICAST, _FETCHES = 0.4, 0.7, 0.4  # shares of drawn instances, about as among those that are solved
_STRIPPED = {
    "name": "stripped-dgx-h100",
    "gpu.num_sms": 1,
    "gpu.hbm_gbps": _UNLIMITED_GBPS,
    "gpu.hbm_efficiency": 1.0,
    "gpu.cold_exposure": 0.0,
    "gpu.families": {},
    "gpu.multimem_queue_entries": 0,
    "gpu.block_n": 1_000_000,  # one thread block is a whole row
    "gpu.row_granularity": 1,
    "gpu.operand_tokens": 0,
    "link.ack_flits": 0,
    "link.multimem_flits": 0,
    "switch.queueing": "output_queued",
    "switch.dispatch_primitives": ("unicast", "multicast"),
    "switch.combine_primitives": ("unicast",),
    "overheads.count_exchange_us": 0,
    # Kernels between phases would delay a dispatch and follow the routing; what is solved has neither.
    "overheads.launch_gap_us": 0,
    "overheads.fused_start_us": 0,
    "overheads.phase_kernels": False,
}


@dataclass(frozen=True)
class TinyInstance:
    """One tiny layer.

    Attributes:
        num_gpus: GPUs.
        tokens_per_gpu: Tokens of each.
        experts: Experts of all GPUs together.
        dispatch: How tokens are sent.
        compute_scale: Multiplies GEMM time; about 0.2 makes links and GEMMs equally long.
        seed: Of the routing.
        is_early: Whether tiles may be closed early; far harder to solve.
        is_fetching: Whether reading weights takes time, so that they may be fetched ahead.
    """

    num_gpus: int
    tokens_per_gpu: int
    experts: int
    dispatch: Literal["unicast", "multicast"]
    compute_scale: float
    seed: int
    is_early: bool = False
    is_fetching: bool = False

    @property
    def name(self) -> str:
        """Name in results: size, primitive, compute scale, seed, and what more may be decided."""
        return (
            f"{self.num_gpus} GPUs x {self.tokens_per_gpu}, {self.experts} experts, {self.dispatch}, "
            f"x{self.compute_scale:g}, seed {self.seed}{', early tiles' * self.is_early}"
            f"{', prefetch' * self.is_fetching}"
        )

    def build(self) -> TinyLayer:
        """Returns the layer with machine, routing, costs and bound."""
        layer = LayerSpec(
            name="tiny",
            hidden=7168 * _TOKENS_IN_ONE,
            moe_ff=2048,
            experts=self.experts,
            top_k=2,
            ffn_matrices=3,
            compute_dtype="bf16",
            tile_tokens=2,
            source="DeepSeek-V3 (arXiv 2412.19437) with vectors of several tokens",
        )
        rng = np.random.default_rng(self.seed)
        num_tokens = self.num_gpus * self.tokens_per_gpu
        # Some experts are liked more than others, as in real routing.
        liking = rng.random(self.experts) / 2 + rng.random((num_tokens, self.experts))
        workload = Workload.even(
            layer=layer,
            num_gpus=self.num_gpus,
            topk_ids=np.argsort(-liking, axis=1)[:, :2],
            gpu_of_expert=np.arange(self.experts) * self.num_gpus // self.experts,
            name=f"tiny, seed {self.seed}",
        )
        system = load_system("dgx-h100", self.num_gpus).with_changes(_STRIPPED)
        if self.is_fetching:
            system = system.with_changes(_FETCHING)
        plain = Problem.of(system, workload, compute_scale=self.compute_scale)
        return TinyLayer(self.name, system, workload, plain.costs, plain.bound, self)


def tiny_layers(seed: int, count: int) -> list[TinyLayer]:
    """Returns random layers of sizes that can be solved; their routing has seeds from ``seed`` on."""
    rng = np.random.default_rng(seed)
    layers = []
    for number in range(seed, seed + count):
        is_early = bool(rng.random() < _EARLY)
        num_gpus = int(rng.choice((2, 3)))
        instance = TinyInstance(
            num_gpus=num_gpus,
            tokens_per_gpu=int(rng.integers(2, 4) if is_early else rng.integers(4, 7)),
            experts=num_gpus * int(rng.integers(2, 4)),
            dispatch="multicast" if rng.random() < _MULTICAST else "unicast",
            compute_scale=float(rng.choice((0.1, 0.2, 0.2, 0.3))),
            seed=number,
            is_early=is_early,
            is_fetching=bool(rng.random() < _FETCHES),
        )
        layers.append(instance.build())
    return layers


@dataclass(frozen=True, eq=False)
class TinyLayer(Problem):
    """A tiny instance with all that follows from it; every schedule is fitted to its machine before it runs."""

    instance: TinyInstance

    def fit(self, schedule: ScheduleSpec) -> ScheduleSpec:
        """Returns a schedule with this machine's primitives and one SM; its gates and rule stay.

        Raises:
            ConfigError: It does what is not modelled: a copy for each expert, parts, or costs before its dispatch.
        """
        strange = schedule.copies == "expert" or schedule.loopback or schedule.parts.count > 1
        strange |= schedule.shared_experts != "none"
        if strange or "barrier" in schedule.pays.dispatch:
            raise ConfigError(
                f"schedule='{schedule.name}' is not modelled exactly; choose one with copies=gpu, one part, no loopback"
                " and no barrier before dispatch"
            )
        return schedule.with_changes(
            {
                "dispatch": self.instance.dispatch,
                "combine": "unicast",
                "sms": {"dispatch": 1, "combine": 1, "in_gemm": True},
                "chunk_tokens": 1,
                "partial_tiles": schedule.partial_tiles and self.instance.is_early,
                "prefetch": schedule.prefetch if self.instance.is_fetching else "none",
                "min_partial_tokens": 1,
                "best_of": (),
            }
        )

    def fit_exposure(self, exposure: Exposure) -> Exposure:
        """Returns an exposure without what cannot be asked here: splits of one SM, and on some instances more."""
        idle = {"split"} if self.instance.is_fetching else {"split", "prefetch"}
        kinds = tuple(kind for kind in exposure.kinds if kind not in idle)
        early = exposure.partial_tiles and self.instance.is_early
        return replace(exposure, kinds=kinds, splits=(), split_moments=0, partial_tiles=early)

    def asked(self, hold: bool = True) -> Exposure:
        """Returns the exposure of all that can be decided on this layer."""
        kinds = ("dispatch", "prefetch", "gemm", "combine")
        return self.fit_exposure(Exposure(kinds, hold=hold, partial_tiles=True))

    def offer(self, schedule: ScheduleSpec, exposure: Exposure) -> Offer:
        """Returns what engine and twin run of a schedule, fitted as ``fit`` and ``fit_exposure`` do it.

        Where somebody is asked what to fetch, weights are fetched ahead whatever the schedule says.
        """
        fitted, asked = self.fit(schedule), self.fit_exposure(exposure)
        if "prefetch" in asked.kinds and fitted.prefetch == "none":
            fitted = fitted.with_changes({"prefetch": "early"})
        return super().offer(fitted, asked)


@dataclass(frozen=True)
class Times:
    """When everything happens in one schedule of a tiny layer, picoseconds; what a solver decides about.

    Attributes:
        makespan_ps: When the last token is combined.
        sends: By token, when its dispatch enters its home GPU's uplink; only tokens with a remote expert.
        pushes: By (token, GPU), when the partial sum enters that GPU's uplink.
        arrivals: By (purpose, token, GPU whose pair it is), when a segment enters the downlink it leaves the switch by.
        fetches: By (expert, stage), when HBM begins to read the matrix, for the first time if it does so again.
        rows: By (expert, tile, stage), when the row starts.
        tiles: By (expert, token), the tile the token is in.
    """

    makespan_ps: int
    sends: dict[int, int]
    pushes: dict[tuple[int, int], int]
    arrivals: dict[tuple[int, int, int], int]
    fetches: dict[tuple[int, int], int]
    rows: dict[tuple[int, int, int], int]
    tiles: dict[tuple[int, int], int]

    @classmethod
    def of(cls, twin: Twin) -> Times:
        """Returns the times of a twin that is done."""
        sends: dict[int, int] = {}
        fetches: dict[tuple[int, int], int] = {}
        pushes, arrivals, rows = {}, {}, {}
        for use in twin.log:
            if use.resource == codes.LOG_HBM and use.purpose != codes.HBM_WEIGHTS:
                continue
            _, first, second, *_ = (*use.item, 0)
            if use.resource == codes.LOG_HBM:
                fetches.setdefault((int(first), int(second)), use.start_ps)
            elif use.resource == codes.LOG_SM:
                rows[int(first), int(use.item[3]), use.purpose] = use.start_ps
            elif use.resource == codes.LOG_DOWN:
                arrivals[use.purpose, int(first), int(second)] = use.start_ps
            elif use.purpose == codes.COMBINE_DATA:
                pushes[int(first), int(second)] = use.start_ps
            else:
                sends.setdefault(int(first), use.start_ps)  # the first of a token's copies
        tiles = {
            (expert.number, pair.token.number): tile.place
            for expert in twin.experts.values()
            for tile in expert.tiles
            for pair in tile.pairs
        }
        return cls(twin.now_ps, sends, pushes, arrivals, fetches, rows, tiles)


def play(twin: Twin, choose: Callable[[Decision], int]) -> Times:
    """Returns the times of a twin played to its end."""
    while (decision := twin.advance()) is not None:
        twin.decide(choose(decision))
    return Times.of(twin)
