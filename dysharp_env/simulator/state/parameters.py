"""The parameters of a layer: fields of the root that are never written, under the names of where they come from."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from dysharp_env.simulator.costs import Costs
from dysharp_env.simulator.hardware import PS_PER_S
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.observation import NUM_KINDS, WALKS
from dysharp_env.simulator.state.records import PARAMETERS, ROOT, blank
from dysharp_env.simulator.state.work import count_chunks
from dysharp_env.system.primitives import Primitive
from dysharp_env.workload.workload import Workload

_FLOWS = ("dispatch", "combine")
# What follows the routing, its bound, and the room that arrays have; see lowering.py.
_LATER = frozenset(
    "partial0 store0 sum0 weights0 weight_store0 num_weight_tiles copy_sms trip0 scale_ps imbalance_ppm links_ps"
    " gemms_ps hbm_ps num_chunks wire_entries num_tiles heap_capacity tile_blocks chunk_blocks pool_capacity"
    " marks_capacity log_capacity wheel_slots wheel_shift".split()
)


def root_of(workload: Workload, costs: Costs, program: Program, num_sms: int, logging: bool) -> np.ndarray:
    """Returns a (1,) root at time zero, without what follows the routing.

    A parameter that stands in the workload, its layer, the costs or the program under its own name is copied from
    there; the others are worked out here.
    """
    root = blank(1, ROOT)
    values = _worked_out(workload, costs, program, num_sms, logging)
    sources = (workload, workload.layer, costs, costs.packet, costs.faults, program)
    for name in set(PARAMETERS) - values.keys() - _LATER:
        root[name] = next(getattr(source, name) for source in sources if hasattr(source, name))
    fill(root, values)
    fill(root["dispatch"], _flow(program.dispatch, costs.dispatch_segments, costs.dispatch_packets))
    fill(root["combine"], _flow(program.combine, costs.combine_segments, costs.combine_packets))
    _fill_sms(root, costs, program)
    for gemm in (codes.GEMM1, codes.GEMM2):
        root["gemms"][0, gemm] = (
            costs.blocks[gemm],
            costs.granule_ps[gemm],
            costs.granule_ps[gemm] // 2,
            costs.operand_ps[gemm],
            costs.matrix_bytes[gemm],
            costs.weight_bytes[gemm],
            *costs.token_bytes[2 * gemm : 2 * gemm + 2],
        )
    for kind in range(NUM_KINDS):
        weights = program.weights[kind]
        root["answerers"][0, kind] = (
            kind in program.exposed,
            kind in program.networked,
            weights.any(),
            weights[WALKS].any(),
            kind in program.may_hold,
        )
    if program.network:
        fill(root["places"], program.network.places)
    root["status"], root["tokens_left"] = codes.RUN, workload.num_tokens
    return root


def fill(record: np.ndarray, values: dict[str, Any]) -> None:
    """Writes fields of a record by name."""
    for name, value in values.items():
        record[name] = value


def _flow(primitive: Primitive, segments: int, packets: int) -> dict[str, int]:
    """Returns what vectors of one direction are."""
    return {
        "reads": primitive.reads,
        "in_switch": primitive.in_switch,
        "names_targets": primitive.names_targets,
        "to_all": primitive.to_all,
        "segments": segments,
        "segment_packets": packets // segments,
    }


def _fill_sms(root: np.ndarray, costs: Costs, program: Program) -> None:
    first_sm = 0
    for name, sm, most_sms in zip(_FLOWS, (costs.dispatch_sm, costs.combine_sm), program.most_sms, strict=True):
        fill(root[name], {**asdict(sm), "most_sms": most_sms, "first_sm": first_sm})
        first_sm += most_sms


def _worked_out(
    workload: Workload, costs: Costs, program: Program, num_sms: int, logging: bool
) -> dict[str, int | bool]:
    """Returns the parameters that stand nowhere under their own name."""
    num_gpus, chunks = workload.num_gpus, count_chunks(workload, program)
    ps_mult, ps_div = costs.flit_ps
    hbm_shared = math.gcd(PS_PER_S, costs.hbm_bytes_per_s)
    return {
        "home_chunks": int(chunks.sum()),
        "most_chunks": int(chunks.max()),
        "ps_mult": ps_mult,
        "ps_div": ps_div,
        "num_links": num_gpus * costs.planes,
        "sum_flits": costs.combine_flits(),
        "stores_per_token": costs.store_groups(program.dispatch.by_team, num_gpus),
        "dispatch_ask_flits": costs.dispatch_packet.ask_flits(costs.dispatch_bytes) // costs.dispatch_segments,
        "queueing": codes.QUEUEING.index(costs.queueing),
        "num_sms": num_sms,
        "hbm_mult": PS_PER_S // hbm_shared,
        "hbm_div": costs.hbm_bytes_per_s // hbm_shared,
        "partial_tiles": program.may_close_early(workload.layer.tile_tokens),
        "num_parts": program.parts,
        "smallest_tile": program.smallest_tile(workload.layer.tile_tokens),
        "num_splits": len(program.splits),
        "network_width": program.network.width if program.network else 0,
        "in_gemm_permille": costs.in_gemm_permille * program.in_gemm,
        "logging": logging,
        **_margins(workload, costs, program, num_sms),
    }


def _margins(workload: Workload, costs: Costs, program: Program, num_sms: int) -> dict[str, int]:
    """Returns the most events and the most log rows that one step can add."""
    num_gpus, most_tokens, layer = workload.num_gpus, workload.most_tokens, workload.layer
    num_links = num_gpus * costs.planes
    # The most vectors one group may put in flight at once, under the most generous split: those of its own tokens, or
    # what a GPU reads or pushes of everybody's.
    own = most_tokens * max(num_gpus, layer.top_k)
    of_all = workload.num_tokens * (min(layer.top_k, workload.most_experts) if program.copies_per_expert else 1)
    dispatch_burst, combine_burst = (
        min(copies, most_sms * sm.slots)
        for copies, sm, most_sms in zip(
            (of_all if program.dispatch.reads else own, own if program.combine.reads else of_all),
            (costs.dispatch_sm, costs.combine_sm),
            program.most_sms,
            strict=True,
        )
    )
    local_copies = most_tokens * (layer.top_k if program.copies_per_expert else 1)
    # A GPU's local copies and the stores it may have in flight; all the sums it may have in flight, requested from
    # every GPU or sent; or the tokens of one tile becoming ready; and a few for whatever wakes.
    events = max(
        local_copies + 2 * dispatch_burst * costs.dispatch_segments,
        (combine_burst + 1) * max(num_gpus, layer.top_k, 2 * costs.combine_segments),
        layer.tile_tokens,
    )
    vectors = dispatch_burst * costs.dispatch_segments + combine_burst * costs.combine_segments
    wakes = 4 * num_links + num_sms + num_gpus + 64
    # A block that is read or written uses HBM at most twice: to make room, and itself. Tokens that are taken, or whole
    # without a link; partial sums that are read, a token that arrives; three blocks of each row that starts.
    blocks = 3 * most_tokens + (combine_burst + 1) * layer.top_k + layer.tile_tokens + 3 * num_sms
    # With the last of a copy's weights gates of all parts may open.
    gates = program.parts
    # A GPU without tokens says so of all parts at once; who hears of the last source closes the tiles of all experts.
    said = (2 * program.parts + workload.num_experts * program.parts_per_expert) * program.in_band
    return {
        "heap_margin": events + gates + said + 2 * layer.top_k + wakes,
        "log_margin": 2 * vectors + wakes + 2 * blocks,
    }
