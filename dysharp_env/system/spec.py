"""What the modelled machine is: GPUs, their links, the switch planes and the fixed costs of software.

A system is one level of NVSwitch: every GPU has one uplink and one downlink to every plane, and a plane is one switch
chip. Bandwidths are decimal GB/s per direction, latencies nanoseconds, software costs microseconds. Left out: the host,
PCIe, the network between nodes, clocks that change under load, and planes of unequal width (a DGX H100 wires its 18
links 5/4/4/5 to four chips; here every plane gets an equal share).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dysharp_env.config import ConfigError, Spec
from dysharp_env.system.faults import FaultSpec
from dysharp_env.system.numbers import Cost, Count, CountOrZero, Rate
from dysharp_env.system.overheads import OVERHEADS, OverheadSpec
from dysharp_env.system.primitives import (
    COMBINE_PRIMITIVES,
    DISPATCH_PRIMITIVES,
    CombinePrimitive,
    DispatchPrimitive,
    Family,
    Hardware,
)

Queueing = Literal["output_queued", "voq", "input_fifo"]


class FamilySpec(Spec):
    """How one communication SM works under one family of kernels.

    It works on several vectors at once, one for each warp or pipeline stage. A vector alone takes as many times its
    cost, and with all of them at hand one leaves after each cost: ``vectors`` is latency, the costs are rate.
    """

    token_ns: Cost = 0.0
    """Cost of a token, nanoseconds of an SM. The first vector taken of it bears it; partial sums that are pushed home
    bear equal shares, as each is taken by itself."""
    copy_ns: Cost = 0.0
    """Cost of a vector whatever its size, nanoseconds of an SM."""
    byte_ps: Cost = 0.0
    """Cost of a byte of it, picoseconds of an SM: 1000 over the SM's rate in GB/s."""
    vectors: Annotated[int, Field(ge=1, le=1_000_000)] = 8
    """Vectors that an SM works on at once. For ``multimem`` what MultimemQ holds counts instead."""
    payload_bytes: CountOrZero = 0
    """Data bytes of its full packets; 0: as many as ``link.payload_bytes``."""
    extra_flits: CountOrZero = 0
    """Flits that each packet costs besides: flags and pointers that are stored and polled, stores that do not merge."""
    own_copies: bool = False
    """Whether a vector that stays on its GPU is work for an SM like the others; the token bears it, as ``token_ns``."""
    prepare_ns: Cost = 0.0
    """Work of all of an SM's warps on a stored token before any of its copies leaves, nanoseconds: tokens wait for
    each other."""
    prepare_byte_ps: Cost = 0.0
    """The same for each byte of a copy: casting it, picoseconds."""
    start_us: Cost = 0.0
    """What a kernel takes besides, once: from its start to its first vector and from its last to its end,
    microseconds. Kernels pay this and what follows where they begin at a boundary: dispatch, and combine if that waits
    for a GPU or for all."""
    start_token_ns: Cost = 0.0
    """The same for each token of a GPU that is dispatched, nanoseconds: looking up where it goes."""
    start_expert_ns: Cost = 0.0
    """The same for each expert of the layer, nanoseconds: counts and flags."""
    sum_byte_ps: Cost = 0.0
    """Latency of adding up one token at home for each byte, which the last token shows, picoseconds."""


class GpuSpec(Spec):
    """One GPU: its arithmetic, memory, and the on-chip tables of dynamic multimem."""

    num_sms: Count
    """Streaming multiprocessors."""
    bf16_tflops: Rate
    """Dense BF16 peak of all SMs, TFLOP/s."""
    fp8_tflops: Rate
    """Dense FP8 peak of all SMs, TFLOP/s."""
    fp4_tflops: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 0.0
    """Dense FP4 peak of all SMs, TFLOP/s; 0 means that there is no FP4 arithmetic."""
    gemm_efficiency: Annotated[float, Field(ge=1e-3, le=1)]
    """Fraction of the peak at which a GEMM thread block runs between its start and its end."""
    block_overhead_ns: CountOrZero = 0
    """What every GEMM thread block takes besides: filling its pipeline and writing its result, nanoseconds."""
    hbm_gbps: Rate
    """Memory bandwidth, GB/s."""
    hbm_efficiency: Annotated[float, Field(ge=1e-3, le=1)] = 1.0
    """Fraction of it that a GEMM's reads reach."""
    cold_exposure: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Part of the time in which its weights stream from HBM that a thread block loses against weights in L2."""
    l2_mb: Rate
    """L2 capacity in units of 2**20 bytes, as device queries report it."""
    l2_copies: Annotated[float, Field(ge=1, le=64)] = 1.0
    """How often L2 holds a line that all SMs read: once in each partition or die that keeps a copy of its own."""
    memory_latency_ns: CountOrZero
    """One access to the GPU's memory made on behalf of a packet, nanoseconds."""
    families: dict[Family, FamilySpec] = Field(default_factory=dict)
    """Families of communication kernels that run on it, by name. With none at all communication costs SMs nothing.
    ``multimem`` costs what ``warp_direct`` does unless it is here: the instructions are a warp's."""
    in_gemm_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Part of an SM's work on a vector that its GEMM thread blocks lose, where those issue it themselves. What is taken
    while thread blocks run counts; those that start next share it, each at most its own time again."""
    multimem_queue_entries: CountOrZero = 32
    """Multimem accesses one SM keeps in flight (MultimemQ, DySHARP, arXiv 2605.05607); 0 means unlimited."""
    multimem_access_bytes: Count = 512
    """Bytes of one access: a warp of 32 threads with the 16 B that PTX allows one multimem vector."""
    al_tlb_entries: Count = 512
    """Translations from algebraic to layout index held on chip (DySHARP, arXiv 2605.05607)."""
    tile_status_entries: Count = 1024
    """Tiles whose status is held on chip; more spill to memory (DySHARP, arXiv 2605.05607)."""
    output_readiness_entries: Count = 1024
    """Tokens whose readiness count is held on chip; more spill to memory (DySHARP, arXiv 2605.05607)."""
    hub: bool = True
    """Whether its Hub can give vectors their places as they come, so that senders need no counts (MoE-Hub, arXiv
    2605.05888): proposed hardware, which only schedules that say ``hub`` use."""
    block_n: Count = 128
    """Output columns of one GEMM thread block (the usual tile of DeepGEMM on Hopper)."""
    row_granularity: Count = 16
    """Tokens a tile is rounded up to. Whole tiles put tokens on the M side of a tensor-core instruction, 64 or 128 at a
    time; partial ones swap operands and put them on its N side, which comes in steps of 16 (Blackwell) or 8 (PTX ISA,
    tcgen05.mma and wgmma.mma_async). Swapping is never slower here, so that one number says it."""
    operand_tokens: CountOrZero = 0
    """Arithmetic of so many tokens takes as long as reading the instruction's M side from shared memory, which swapped
    operands do for every step in depth, however few tokens there are."""

    def __hash__(self) -> int:
        """Hashes all fields, of which a mapping has no hash of its own."""
        return hash(tuple(tuple(value.items()) if isinstance(value, dict) else value for value in vars(self).values()))

    @property
    def l2_bytes(self) -> int:
        """Effective L2 capacity in bytes: what fits if every line is held ``l2_copies`` times."""
        return max(1, round(self.l2_mb * 2**20 / self.l2_copies))

    def gemm_tflops(self, dtype: Literal["bf16", "fp8", "fp4"]) -> float:
        """Returns the rate of all SMs inside GEMM thread blocks, TFLOP/s.

        Raises:
            ConfigError: There is no FP4 arithmetic.
        """
        peak_tflops = {"bf16": self.bf16_tflops, "fp8": self.fp8_tflops, "fp4": self.fp4_tflops}[dtype]
        if peak_tflops == 0:
            raise ConfigError(f"compute_dtype='{dtype}' needs gpu.{dtype}_tflops, which is 0: it has no such GEMMs")
        return self.gemm_efficiency * peak_tflops


class LinkSpec(Spec):
    """The links between one GPU and the switch planes, and how packets are cut and charged on them."""

    gbps: Rate
    """Bandwidth per GPU and direction, all planes together, GB/s."""
    efficiency: Annotated[float, Field(ge=1e-3, le=1)] = 1.0
    """Fraction of ``gbps`` that flits get through the fabric between at most 8 GPUs."""
    efficiency_per_doubling: Annotated[float, Field(ge=0, le=0.1)] = 0.0
    """What that fraction loses with each doubling of the GPUs beyond 8."""
    planes: Count
    """Switch chips each GPU is wired to; each has an equal share of ``gbps``."""
    ports: CountOrZero = 0
    """Switch ports a GPU's links end in, all planes together, each with buffers of its own; 0 means one per plane."""
    latency_ns: Annotated[int | float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 250
    """One hop between GPU and switch, nanoseconds (DySHARP, arXiv 2605.05607); fractions are kept to the picosecond."""
    flit_bytes: Count = 16
    """Unit of transfer (DySHARP, arXiv 2605.05607)."""
    payload_bytes: Count = 128
    """Data bytes of a full packet; with one header and one ack flit this gives the paper's 80 % payload efficiency."""
    header_flits: CountOrZero = 1
    """Flits in front of the payload."""
    ack_flits: CountOrZero = 1
    """Flits that acknowledge one write."""
    request_flits: CountOrZero = 1
    """Flits of a read request, before its target flits."""
    multimem_flits: CountOrZero = 0
    """Flits that a packet has besides where the switch copies it or adds it up: stores and their copies, contributions
    and reduced sums."""
    multimem_request_bytes: CountOrZero = 0
    """Data bytes that one ``dymultimem.ld_reduce`` request asks for, answered in packets; 0 means one packet's. Plain
    loads and static multimem ask for packet after packet."""
    target_bytes: Count = 2
    """Bytes naming one target expert in a dynamic-multimem packet (16-bit ids, DySHARP, arXiv 2605.05607)."""
    store_and_forward: bool = False
    """Whether a hop delivers only after the last byte; otherwise segments cut through."""
    time_quantum_ps: Count = 1
    """Serialisation and delivery times are rounded down to a multiple of this; 1000 mimics whole-nanosecond models."""

    @property
    def switch_ports(self) -> int:
        """Switch ports one GPU's links end in, all planes together."""
        return self.ports or self.planes

    @property
    def latency_ps(self) -> int:
        """One hop between GPU and switch, picoseconds."""
        return round(self.latency_ns * 1000)

    @model_validator(mode="after")
    def _check_flits(self) -> LinkSpec:
        if self.payload_bytes % self.flit_bytes:
            raise ValueError(f"payload_bytes={self.payload_bytes} must be a multiple of flit_bytes={self.flit_bytes}")
        asked, packet = self.multimem_request_bytes, self.payload_bytes
        if 0 < asked < packet:
            raise ValueError(f"multimem_request_bytes={asked} must be 0 or at least payload_bytes={packet}")
        if 0 < self.ports < self.planes:
            raise ValueError(f"ports={self.ports} must be 0 or at least planes={self.planes}: every plane needs a port")
        if self.target_bytes > self.flit_bytes:
            raise ValueError(f"target_bytes={self.target_bytes} must be at most flit_bytes={self.flit_bytes}")
        return self


class SwitchSpec(Spec):
    """One switch plane: its buffers, its queueing discipline, and the in-switch operations it has."""

    queueing: Queueing = "voq"
    """Where packets wait: unlimited at outputs, per output at inputs, or in one line per input."""
    vcs_per_class: Count = 8
    """Virtual channels of each class, request and response, at an input port (DySHARP, arXiv 2605.05607)."""
    vc_depth_flits: Count = 256
    """Depth of one virtual channel of an input port, flits (DySHARP, arXiv 2605.05607)."""
    reduction_buffer_bytes: Count = 65536
    """Accumulators of an output port, bytes (64 KB per port: DySHARP, arXiv 2605.05607)."""
    reduction_cycle_ps: CountOrZero = 640
    """The one cycle that reduction adds to the data path. Default: a 16 B flit on one 25 GB/s NVLink4 link."""
    reduction_rate: Annotated[float, Field(ge=1e-3, le=1)] = 1.0
    """Rate of a reduction unit over its port's line rate. What NVLS loses stands in ``link.multimem_flits``."""
    team_gpus: Annotated[int, Field(ge=2, le=16)] = 8
    """GPUs, neighbours by number, whose every subset of two or more is a team made beforehand, for ``team``: 247 teams
    of 8. Each is a CUDA multicast object, fixed when it is made; how many a driver allows was set, not measured."""
    dispatch_primitives: tuple[DispatchPrimitive, ...] = ("unicast", "multicast", "broadcast", "team", "pull")
    """Ways to send a token out, or for expert GPUs to read it (``pull``); ``multicast`` (``dymultimem.st``) is hardware
    that the paper proposes."""
    combine_primitives: tuple[CombinePrimitive, ...] = (
        "unicast",
        "pull_reduce",
        "push_reduce",
        "reduce_scatter",
        "pull",
    )
    """Ways to sum a token's results, ``pull`` being plain loads by its home GPU; ``pull_reduce``
    (``dymultimem.ld_reduce``) and ``push_reduce`` are proposed."""
    reduction_dtypes: tuple[Literal["bf16", "fp8"], ...] = ("bf16",)
    """Formats that the switch sums (``combine_dtype`` of a layer)."""

    def combining(self, dtype: str) -> tuple[CombinePrimitive, ...]:
        """Returns the ways to sum results in a format: GPUs add up any, the switch only ``reduction_dtypes``.

        Raises:
            ConfigError: There is none.
        """
        can_reduce = dtype in self.reduction_dtypes
        names = tuple(name for name in self.combine_primitives if can_reduce or not COMBINE_PRIMITIVES[name].in_switch)
        if not names:
            raise ConfigError(
                f"combine_dtype='{dtype}' cannot be summed: combine_primitives={list(self.combine_primitives)} are all"
                f" in the switch, for reduction_dtypes={list(self.reduction_dtypes)}"
            )
        return names

    @model_validator(mode="after")
    def _check_primitives(self) -> SwitchSpec:
        for name in ("dispatch_primitives", "combine_primitives"):
            given = getattr(self, name)
            if not given or len(set(given)) != len(given):
                raise ValueError(f"{name}={list(given)} must name at least one primitive, each once")
        return self


class SystemSpec(Spec):
    """A whole machine: equal GPUs (but for one that may be slow) joined by one level of equal switch planes."""

    name: str = Field(min_length=1)
    """Name shown in results."""
    description: str = ""
    """One line for people."""
    num_gpus: Annotated[int, Field(ge=2, le=1_000_000)]
    """GPUs in one NVLink domain."""
    gpu: GpuSpec
    link: LinkSpec
    switch: SwitchSpec
    overheads: OverheadSpec
    slow_gpu: float = Field(default=1.0, ge=1, le=100, allow_inf_nan=False)
    """Time of a GEMM's thread block on GPU 0 over that on the others, in thousandths: 1.2 for a GPU whose clock is held
    a sixth below theirs. HBM and links keep their rates."""
    faults: FaultSpec = FaultSpec()
    """What else is wrong with it; see ``FaultSpec``. Nothing by default."""

    @property
    def doublings(self) -> float:
        """How often 8 GPUs are doubled, 0 for fewer: on boards of 8 most constants were measured."""
        return max(0.0, math.log2(self.num_gpus / 8))

    @property
    def living_link(self) -> LinkSpec:
        """Its links without those to dead planes."""
        if self.faults.dead_planes == 0:
            return self.link
        planes = self.link.planes - self.faults.dead_planes
        ports, gbps = self.link.ports * planes // self.link.planes, self.link.gbps * planes / self.link.planes
        return self.link.model_copy(update={"planes": planes, "ports": ports, "gbps": gbps})

    @property
    def link_bytes_per_s(self) -> int:
        """What a GPU's links carry in one direction, all living planes together."""
        gbps, efficiency = self.living_link.gbps, self.link.efficiency
        efficiency -= self.link.efficiency_per_doubling * self.doublings
        if efficiency == 1 and gbps == self.link.gbps:
            return round(gbps * 1e9)
        # Whole MB/s keep the time of a flit a fraction of small numbers.
        return max(1, round(gbps * max(efficiency, 1e-3) * 1e3)) * 10**6

    @property
    def singles_out(self) -> bool:
        """Whether GPU 0 is another GPU than the others, so that its number says something."""
        return self.slow_gpu != 1 or self.faults.slow_link != 1 or self.faults.late_us > 0

    def with_hardware(self, hardware: Hardware) -> SystemSpec:
        """Returns the system as it is, or for ``today`` without the primitives and the Hub that papers propose.

        Raises:
            ConfigError: Nothing is left to dispatch or combine with.
        """
        if hardware == "dynamic-multimem":
            return self
        dispatches, combines = self.switch.dispatch_primitives, self.switch.combine_primitives
        return self.with_changes(
            {
                "gpu.hub": False,
                "switch.dispatch_primitives": [n for n in dispatches if not DISPATCH_PRIMITIVES[n].is_proposed],
                "switch.combine_primitives": [n for n in combines if not COMBINE_PRIMITIVES[n].is_proposed],
            }
        )

    def overhead_us(self, cost: str) -> float:
        """Returns what is paid for one of ``OVERHEADS``, microseconds."""
        cost_us = float(getattr(self.overheads, OVERHEADS[cost]))
        if cost == "plan":
            return cost_us + self.overheads.plan_per_doubling_us * self.doublings
        if cost != "barrier":
            return cost_us
        per_doubling_us = self.overheads.barrier_per_doubling_us * math.log2(self.num_gpus / 8)
        return max(cost_us + per_doubling_us, min(cost_us, 4 * self.link.latency_ns / 1000))

    @model_validator(mode="after")
    def _check_faults(self) -> SystemSpec:
        if self.faults.dead_planes >= self.link.planes:
            given = f"faults.dead_planes={self.faults.dead_planes}"
            raise ValueError(f"{given} must be less than link.planes={self.link.planes}: one must live")
        return self

    @model_validator(mode="after")
    def _check_packet_fits(self) -> SystemSpec:
        # A packet larger than a virtual channel or an accumulator slot could never move.
        payload_bytes, extra_flits = self.link.payload_bytes, 0
        for name, family in self.gpu.families.items():
            if family.payload_bytes % self.link.flit_bytes:
                raise ValueError(
                    f"gpu.families.{name}.payload_bytes={family.payload_bytes} must be a multiple of"
                    f" link.flit_bytes={self.link.flit_bytes}"
                )
            payload_bytes = max(payload_bytes, family.payload_bytes)
            extra_flits = max(extra_flits, family.extra_flits)
        head_flits = self.link.header_flits + self.link.multimem_flits + extra_flits
        packet_flits = head_flits + payload_bytes // self.link.flit_bytes
        if self.switch.vc_depth_flits < packet_flits:
            raise ValueError(
                f"switch.vc_depth_flits={self.switch.vc_depth_flits} must hold one packet of {packet_flits} flits"
            )
        if self.switch.reduction_buffer_bytes < payload_bytes:
            raise ValueError(
                f"switch.reduction_buffer_bytes={self.switch.reduction_buffer_bytes} must hold one packet of "
                f"payload_bytes={payload_bytes}"
            )
        return self
