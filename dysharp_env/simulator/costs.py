"""The integer costs of one layer on one system: what the engine, its twin and the lower bound all charge.

Everything that turns a specification into picoseconds, flits or bytes is here, once. Divisions round down, so a time is
never longer than the exact value; the three users round the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np

from dysharp_env.config import ConfigError, require_choice
from dysharp_env.simulator.families import Families, SmCosts
from dysharp_env.simulator.faults import NO_PLANE, SOUND, FaultCosts
from dysharp_env.simulator.hardware import PS_PER_S, PS_PER_US, of_gemms, of_gpu, of_links
from dysharp_env.simulator.phases import Load, PhaseKernel, phase_kernels
from dysharp_env.system import SystemSpec
from dysharp_env.system.packet import PacketFormat
from dysharp_env.system.primitives import Primitive
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.workload import Workload

Resolution = Literal["token", "packet"]
RESOLUTIONS: tuple[str, ...] = get_args(Resolution)
Flits = TypeVar("Flits", int, np.ndarray)


class Bound(NamedTuple):
    """A time that no schedule can beat, and what each kind of resource alone needs of it.

    Attributes:
        total_ps: The time; what times are compared with in what decisions show.
        links_ps: What the busiest link or reduction unit needs, hops included.
        gemms_ps: What the SMs of the busiest GPU need for the GEMMs of its experts.
        hbm_ps: What the HBM of the busiest GPU needs for its experts.
    """

    total_ps: int
    links_ps: int
    gemms_ps: int
    hbm_ps: int


@dataclass(frozen=True)
class Costs:
    """Costs in picoseconds, flits, packets and bytes.

    Attributes:
        packet: Packet arithmetic of the links.
        families: Families of communication kernels.
        resolution: What a segment is: ``token``, one vector on all planes together; ``packet``, a packet on its plane.
        planes: Links of one GPU and direction that are told apart: 1 unless packets are.
        link_bytes_per_s: One GPU, one direction, all planes together.
        quantum_ps: Serialisation and delivery times are rounded down to a multiple of this.
        hop_ps: GPU to switch or switch to GPU, head of a packet.
        store_and_forward: A segment leaves a hop only when its tail has arrived.
        dispatch_bytes, combine_bytes: A token's vector on its way out; a partial or reduced sum on its way home.
        credit_flits: Input buffer of the switch behind one link, one virtual-channel class.
        reduction_slots: Packets the reduction unit before one downlink can hold open.
        cycle_ps: What a reduction adds to the data path.
        reduction_ppm: Rate of a reduction unit over line rate, in millionths.
        queueing: The switch's queueing discipline.
        team_gpus: Neighbouring GPUs whose every subset is a team made beforehand.
        blocks: Thread blocks of one row of GEMM-1 and of GEMM-2.
        granule_ps: Time of the arithmetic of ``row_granularity`` tokens in one thread block, GEMM-1 and GEMM-2.
        operand_ps: Time in which a block reads the operand that stays the same however few tokens there are.
        block_overhead_ps: Time of a thread block whatever its size.
        cold_exposure_permille: What a block loses while its weights stream from HBM, in thousandths of that time.
        matrix_bytes: Weights of one expert's GEMM-1 and GEMM-2, as they lie in L2.
        weight_bytes: What a row reads of them from HBM: twice as much in a backward pass.
        l2_bytes: What L2 holds of weights and activations together.
        token_bytes: What a token's row reads and writes: into GEMM-1, out of it, into GEMM-2, out of it.
        role_change_ps: Time in which an SM that changes over between communication and GEMMs does neither.
        in_gemm_permille: What thread blocks that communicate lose of the time that it takes, in thousandths.
        slow_permille: Time of a thread block on GPU 0 over that on the others, in thousandths.
        kernels: Kernels that phases may pay, as (stage, name, what it takes); see phases.py.
        dispatch_packet, combine_packet: Packets of the two directions; those of the links until ``under`` says more.
        dispatch_sm, combine_sm: How one SM works on their vectors; at no cost until then.
        compute_scale: Factor already applied to GEMM and HBM time (1: as modelled; near 0: communication only).
        faults: What is wrong with links, and who is late.
        link_permille: Time of a flit on the link at hand over that on a sound one, in thousandths; see ``on_link``.
    """

    packet: PacketFormat
    families: Families
    resolution: str
    planes: int
    link_bytes_per_s: int
    quantum_ps: int
    hop_ps: int
    store_and_forward: bool
    dispatch_bytes: int
    combine_bytes: int
    credit_flits: int
    reduction_slots: int
    cycle_ps: int
    reduction_ppm: int
    queueing: str
    team_gpus: int
    al_tlb_entries: int
    tile_status_entries: int
    output_readiness_entries: int
    memory_ps: int
    hbm_bytes_per_s: int
    l2_bytes: int
    blocks: tuple[int, int]
    granule_ps: tuple[int, int]
    operand_ps: tuple[int, int]
    block_overhead_ps: int
    cold_exposure_permille: int
    row_granularity: int
    matrix_bytes: tuple[int, int]
    weight_bytes: tuple[int, int]
    token_bytes: tuple[int, int, int, int]
    launch_ps: int
    barrier_ps: int
    count_exchange_ps: int
    role_change_ps: int
    in_gemm_permille: int
    slow_permille: int
    kernels: tuple[tuple[int, str, PhaseKernel], ...]
    compute_scale: float
    dispatch_packet: PacketFormat
    combine_packet: PacketFormat
    dispatch_sm: SmCosts = SmCosts()
    combine_sm: SmCosts = SmCosts()
    faults: FaultCosts = FaultCosts()
    link_permille: int = SOUND

    @classmethod
    def of(cls, system: SystemSpec, layer: LayerSpec, compute_scale: float = 1.0, resolution: str = "token") -> Costs:
        """Returns the costs of ``layer`` on ``system``.

        Args:
            system: The machine.
            layer: The MoE layer.
            compute_scale: Multiplies GEMM and HBM time; 0.001 leaves communication alone.
            resolution: One of ``RESOLUTIONS``.

        Raises:
            ConfigError: No such resolution.
        """
        require_choice("resolution", resolution, RESOLUTIONS)
        overheads = system.overheads
        gemms = of_gemms(system.gpu, layer, compute_scale)
        links = of_links(system, resolution)
        return cls(
            families=_families(system, layer, links["packet"]),
            link_bytes_per_s=system.link_bytes_per_s,
            dispatch_packet=links["packet"],
            combine_packet=links["packet"],
            resolution=resolution,
            compute_scale=compute_scale,
            dispatch_bytes=layer.dispatch_bytes,
            combine_bytes=layer.combine_bytes,
            launch_ps=round(overheads.launch_us * PS_PER_US),
            barrier_ps=round(system.overhead_us("barrier") * PS_PER_US),
            count_exchange_ps=round(overheads.count_exchange_us * PS_PER_US),
            role_change_ps=round(overheads.role_change_us * PS_PER_US),
            in_gemm_permille=round(system.gpu.in_gemm_share * 1000),
            slow_permille=round(system.slow_gpu * 1000),
            faults=FaultCosts.of(system, links["planes"]),
            **links,
            **of_gpu(system.gpu, compute_scale),
            **gemms,
            kernels=phase_kernels(system, layer, gemms["token_bytes"], compute_scale),
        )

    def require_exact(self, workload: Workload) -> None:
        """Checks that no sum of times the engine can form leaves int64.

        Raises:
            ConfigError: One could; the message says what to change.
        """
        layer = workload.layer
        slots = workload.num_tokens * layer.top_k
        # Every expert's vectors and, by static primitives, every GPU's; what is written may come back once.
        vectors = slots + workload.num_tokens * workload.num_gpus
        read_bytes = vectors * sum(self.token_bytes) * 2 + slots * sum(self.weight_bytes)
        block_ps = sum(
            blocks * (granule_ps + operand_ps + self.block_overhead_ps)
            for blocks, granule_ps, operand_ps in zip(self.blocks, self.granule_ps, self.operand_ps, strict=True)
        )
        granules = slots * -(-layer.tile_tokens // self.row_granularity)
        # The most that can wait at one port: every token's copy, and every token's partial sum.
        flits = workload.num_tokens * (self.dispatch_flits(layer.top_k) + self.combine_flits())
        most = Load(workload.num_tokens, slots, slots, slots, workload.num_experts)
        largest = max(
            sum(kernel.ps(most, self.hbm_ps) for _, _, kernel in self.kernels),
            2 * self.hbm_ps(read_bytes),
            granules * block_ps * self.slow_permille // 1000,
            # What is multiplied before it is divided: queued flits, and bytes at HBM's rate in whole MB/s.
            flits * max(self.flit_ps[0], self.flit_ps[0] * self.faults.most_permille // self.flit_ps[1] + SOUND),
            max(*self.weight_bytes, layer.tile_tokens * max(self.token_bytes)) * 10**6,
            layer.tile_tokens * max(self.token_bytes) ** 2,
        )
        if largest >= 2**62:
            raise ConfigError(
                f"tokens={workload.most_tokens} of '{layer.name}' are too many for exact picoseconds on this system;"
                " use fewer tokens, a smaller layer, or faster and rounder rates"
            )

    def on_link(self, gpu: int, plane: int) -> Costs:
        """Returns the costs as a link between a GPU and a plane has them, which may be slow."""
        permille = self.faults.permille(gpu, plane)
        return self if permille == self.link_permille else replace(self, link_permille=permille)

    def on_links(self, gpu: int, planes: int) -> Costs:
        """Returns the costs of vectors over all of a GPU's links, between so many planes, however they are spread.

        The busiest link is busy for no less than what all carry takes at all their rates together.
        """
        permille, slow = self.faults.permille(gpu, NO_PLANE), self.faults.slow_plane_permille
        permille = permille * planes * slow // ((planes - 1) * slow + SOUND)
        return self if permille == self.link_permille else replace(self, link_permille=permille)

    def wire_ps(self, flits: Flits) -> Flits:
        """Returns how long ``flits``, a number or an array of numbers, keep the link at hand busy."""
        return self._sound_ps(flits) * self.link_permille // SOUND // self.quantum_ps * self.quantum_ps

    def _sound_ps(self, flits: Flits) -> Flits:
        """Returns how long flits take on a sound link, without the quantum."""
        ps_mult, ps_div = self.flit_ps
        return flits * ps_mult // ps_div

    def spread_ps(self, flits: int) -> int:
        """Returns how long ``flits`` keep all the links of one GPU and direction busy together."""
        ps_mult, ps_div = self.flit_ps
        return flits * ps_mult // (ps_div * self.planes) // self.quantum_ps * self.quantum_ps

    def reduce_ps(self, flits: int) -> int:
        """Returns how long a contribution of ``flits`` keeps a reduction unit busy, whatever its downlink."""
        return self._sound_ps(flits) // self.quantum_ps * self.quantum_ps * 10**6 // self.reduction_ppm

    def hbm_ps(self, num_bytes: int) -> int:
        """Returns how long HBM serves ``num_bytes``."""
        return num_bytes * PS_PER_S // self.hbm_bytes_per_s

    def phase_kernels(self, stage: int, names: tuple[str, ...]) -> list[PhaseKernel]:
        """Returns the kernels of those names in a stage, 0 to 4 from dispatch to the end; free ones are left out."""
        kernels = {name: kernel for where, name, kernel in self.kernels if where == stage and any(kernel)}
        return [kernels[name] for name in names if name in kernels]

    def block_ps(self, stage: int, tokens: int, gpu: int = 1) -> int:
        """Returns the time of one thread block of GEMM ``stage`` (1 or 2) over a tile of ``tokens`` on a GPU.

        Arithmetic binds it, or reading both operands from shared memory: weights, and tokens in half their arithmetic.
        """
        granules, granule_ps = -(-tokens // self.row_granularity), self.granule_ps[stage - 1]
        reading_ps = self.operand_ps[stage - 1] + granules * (granule_ps // 2)
        block_ps = self.block_overhead_ps + max(granules * granule_ps, reading_ps)
        return block_ps * self.slow_permille // 1000 if gpu == 0 else block_ps

    def under(self, dispatch: Primitive, combine: Primitive, families: tuple[str, str] = ("", "")) -> Costs:
        """Returns the costs with the packets and SMs of two primitives.

        Args:
            dispatch: Moves tokens.
            combine: Brings sums home.
            families: Of kernels that issue them; empty: those that usually do.

        Raises:
            ConfigError: The GPU has no such family.
        """
        out, home = families[0] or dispatch.usual_family, families[1] or combine.usual_family
        out_packet = self.families.packet_of(out, dispatch.in_switch)
        home_packet = self.families.packet_of(home, combine.in_switch)
        out_ps = self.trip_ps(dispatch, out_packet, self.dispatch_bytes)
        home_ps = self.trip_ps(combine, home_packet, self.combine_bytes)
        if combine.in_switch and not combine.reads:
            home_ps -= 2 * self.hop_ps  # the switch acknowledges what it merges
        slots = self.reduction_slots * self.combine_packet.payload_bytes // home_packet.payload_bytes
        return replace(
            self,
            dispatch_packet=out_packet,
            combine_packet=home_packet,
            reduction_slots=max(1, slots),
            dispatch_sm=self.families.sm_costs(out, self.dispatch_bytes, out_ps),
            combine_sm=self.families.sm_costs(home, self.combine_bytes, home_ps),
            kernels=self.families.started(self.kernels, out, home, self.combine_bytes),
        )

    def trip_ps(self, primitive: Primitive, packet: PacketFormat, num_bytes: int) -> int:
        """Returns the round trip of a vector through an idle switch to the other end: there, acknowledged, back."""
        named = int(primitive.names_targets)
        wire_ps = self.spread_ps(packet.data_flits(num_bytes, named * (not primitive.reads)))
        if primitive.reads:
            wire_ps += self.spread_ps(packet.ask_flits(num_bytes, named)) + self.memory_ps
        return 4 * self.hop_ps + wire_ps

    def store_groups(self, by_team: bool, num_gpus: int) -> int:
        """Returns how many stores of one vector reach all GPUs: one, or one for each group that has teams."""
        return -(-num_gpus // self.team_gpus) if by_team else 1

    @property
    def flit_ps(self) -> tuple[int, int]:
        """Time of one flit on one link, as a reduced fraction: flits times its numerator stay inside int64."""
        flit = Fraction(self.packet.flit_bytes * PS_PER_S * self.planes, self.link_bytes_per_s)
        return flit.numerator, flit.denominator

    @property
    def dispatch_segments(self) -> int:
        """Segments of one dispatched vector."""
        return self.dispatch_packets if self.resolution == "packet" else 1

    @property
    def combine_segments(self) -> int:
        """Segments of one partial or reduced sum."""
        return self.combine_packets if self.resolution == "packet" else 1

    @property
    def dispatch_packets(self) -> int:
        """Packets of one dispatched vector."""
        return self.dispatch_packet.packets(self.dispatch_bytes)

    @property
    def dispatch_payload_flits(self) -> np.ndarray:
        """Data flits of one dispatched vector, (segment,)."""
        return np.array(self.dispatch_packet.segment_flits(self.dispatch_bytes, self.dispatch_segments))

    @property
    def combine_payload_flits(self) -> np.ndarray:
        """Data flits of one partial or reduced sum, (segment,)."""
        return np.array(self.combine_packet.segment_flits(self.combine_bytes, self.combine_segments))

    @property
    def combine_packets(self) -> int:
        """Packets of one partial or reduced sum."""
        return self.combine_packet.packets(self.combine_bytes)

    def dispatch_flits(self, targets: int = 0) -> int:
        """Returns the flits of one dispatched vector naming ``targets`` experts (0: plain or static store)."""
        return self.dispatch_packet.data_flits(self.dispatch_bytes, targets)

    def combine_flits(self) -> int:
        """Returns the flits of one partial or reduced sum."""
        return self.combine_packet.data_flits(self.combine_bytes)

    def request_flits(self, targets: int = 0) -> int:
        """Returns the flits that ask for one reduced sum, naming ``targets`` experts (0: static)."""
        return self.combine_packet.ask_flits(self.combine_bytes, targets)


def _families(system: SystemSpec, layer: LayerSpec, packet: PacketFormat) -> Families:
    queue_bytes = system.gpu.multimem_queue_entries * system.gpu.multimem_access_bytes
    specs = {str(name): family for name, family in system.gpu.families.items()}
    return Families(specs, packet, queue_bytes, system.link.multimem_flits, layer.experts)
