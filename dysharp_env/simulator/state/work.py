"""What a layer has to do before it starts, as records: GPUs, token chunks, units, parts and their gates."""

from __future__ import annotations

import numpy as np

from dysharp_env.simulator.program import Program
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import NOTHING
from dysharp_env.simulator.state.observation import COMBINE, DISPATCH, GEMM
from dysharp_env.simulator.state.records import CHUNK, GATE, GPU, PART, UNIT, blank
from dysharp_env.workload.workload import Workload


def gpus_of(workload: Workload, num_chunks: int, program: Program) -> np.ndarray:
    """Returns the GPUs before any work is counted."""
    gpus = blank(workload.num_gpus, GPU)
    for kind, sms in ((DISPATCH, program.dispatch_sms), (COMBINE, program.combine_sms), (GEMM, program.gemm_sms)):
        gpus["groups"]["wanted_sms"][:, kind] = sms
    gpus["groups"]["sms"][:, GEMM] = gpus["free_sms"] = program.gemm_sms
    gpus["early_tokens"] = program.min_partial_tokens
    gpus["items_waiting"] = workload.tokens_per_gpu if program.combine.reads else 0
    chunks_each = num_chunks // workload.num_gpus
    gpus["unsent"]["head"] = np.arange(workload.num_gpus) * chunks_each
    gpus["unsent"]["tail"] = gpus["unsent"]["head"] + chunks_each - 1
    return gpus


def chunks_of(workload: Workload, program: Program) -> np.ndarray:
    """Returns the chunks that each GPU dispatches, in the order of its tokens.

    A GPU that stores has its own tokens' chunks. One that reads has every GPU's, itself first and then its neighbours
    round, a chunk of each in turn, so that readers do not meet at one home GPU. Where parts are of peers or experts,
    every part goes through all chunks.
    """
    num_gpus, tokens_per_gpu, chunk_tokens = workload.num_gpus, workload.tokens_per_gpu, program.chunk_tokens
    places = -(-tokens_per_gpu // chunk_tokens)
    homes = num_gpus if program.dispatch.reads else 1
    per_gpu = places * homes * program.rounds
    chunks = blank(num_gpus * per_gpu, CHUNK)
    index = np.arange(num_gpus * per_gpu)
    turn = index % per_gpu
    place = turn // homes % places
    is_of_tokens = program.parts_by == codes.BY_TOKENS
    chunks["part"] = place * program.parts // places if is_of_tokens else turn // (places * homes)
    base = (index // per_gpu + turn % homes) % num_gpus * tokens_per_gpu
    chunks["first"] = base + place * chunk_tokens
    chunks["last"] = base + np.minimum((place + 1) * chunk_tokens, tokens_per_gpu)
    chunks["prev"] = np.where(turn == 0, NOTHING, index - 1)
    chunks["next"] = np.where(turn == per_gpu - 1, NOTHING, index + 1)
    return chunks


def units_of(workload: Workload, program: Program) -> np.ndarray:
    """Returns the units; the part of each is that of the pairs that its tokens or partial sums belong to.

    Where parts are of experts those are in several; combine then has no gates that would tell.
    """
    num_gpus, chunks_per_gpu = workload.num_gpus, -(-workload.tokens_per_gpu // program.chunk_tokens)
    units = blank(num_gpus * chunks_per_gpu * (1 if program.combine.reads else num_gpus), UNIT)
    if program.parts_by == codes.BY_PEERS:
        gpu, home = np.divmod(np.arange(num_gpus * num_gpus), num_gpus)
        units["part"] = np.repeat((gpu - home) % num_gpus * program.parts // num_gpus, chunks_per_gpu)
    elif program.parts_by == codes.BY_TOKENS:
        places = np.arange(chunks_per_gpu) * program.parts // chunks_per_gpu
        units["part"] = np.tile(places, len(units) // chunks_per_gpu)
    return units


def parts_and_gates(num_gpus: int, chunks: np.ndarray, program: Program) -> tuple[np.ndarray, np.ndarray]:
    """Returns what each part has to send from each GPU, and the gates of its stages.

    The gates are the whole of what a schedule says of phases. What they count is added as the routing is followed:
    tokens that arrive before GEMM-1, slots that GEMM-1 has done before GEMM-2, and those that GEMM-2 has done before
    combine. GEMM-2 behind a kernel boundary also waits for the end of its GPU's dispatch, which counts as one more.
    """
    parts = blank(num_gpus * program.parts, PART)
    owner = np.arange(len(chunks)) // (len(chunks) // num_gpus)
    sizes = chunks["last"] - chunks["first"]
    place = owner * program.parts + chunks["part"]
    parts["sends_left"] = np.bincount(place, weights=sizes, minlength=len(parts)).astype(np.int64)
    gates = [(0, program.pays_ps[0], 0, codes.OPENS_ALL, 0, NOTHING)]
    for stage, kind in enumerate(program.gates):
        parts["stages"]["open"][:, stage] = kind == codes.GATE_FINE
        if kind == codes.GATE_FINE:
            continue
        of_gpu = kind == codes.GATE_GPU or stage == codes.OPENS_GEMM2
        left, pay_ps = int(stage == codes.OPENS_GEMM2), program.pays_ps[stage + 1]
        for part in range(program.parts):
            for gpu in range(num_gpus):
                if of_gpu or gpu == 0:
                    gates.append((left, pay_ps, 0, stage, part, gpu if of_gpu else NOTHING))
                parts["stages"]["gate"][gpu * program.parts + part, stage] = len(gates) - 1
    return parts, np.array(gates, GATE)
