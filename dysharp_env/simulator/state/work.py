"""What a layer has to do before it starts, as records: GPUs, token chunks, units, parts and their gates."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dysharp_env.simulator.costs import Costs
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import NOTHING
from dysharp_env.simulator.state.observation import COMBINE, DISPATCH, GEMM
from dysharp_env.simulator.state.records import CHUNK, GATE, GPU, PART, UNIT, blank
from dysharp_env.workload.workload import Workload


class HomeChunks(NamedTuple):
    """The chunks of all home GPUs, (home chunk,) int64 each."""

    home: np.ndarray  # their GPU
    place: np.ndarray  # among those of their GPU
    part: np.ndarray  # where parts are of tokens, else 0
    first: np.ndarray  # place of their first token in ``order``
    last: np.ndarray  # the end of their tokens


def count_chunks(workload: Workload, program: Program) -> np.ndarray:
    """Returns (gpu,) int64 how many chunks each GPU's own tokens are in."""
    return -(-workload.tokens_of_gpu // program.chunk_tokens)


def home_chunks(workload: Workload, program: Program) -> HomeChunks:
    """Returns the chunks of each GPU's own tokens, numbered GPU by GPU without a gap."""
    counts = count_chunks(workload, program)
    home = np.repeat(np.arange(workload.num_gpus), counts)
    place = np.arange(len(home)) - _starts(counts)[home]
    of_tokens = program.parts_by == codes.BY_TOKENS
    part = place * program.parts // counts[home] if of_tokens else np.zeros_like(place)
    first = workload.first_token[home] + place * program.chunk_tokens
    last = np.minimum(first + program.chunk_tokens, workload.first_token[home + 1])
    return HomeChunks(home, place, part, first, last)


def gpus_of(workload: Workload, chunks: np.ndarray, program: Program) -> np.ndarray:
    """Returns the GPUs before any work is counted, and without their experts, which follow the routing."""
    gpus = blank(workload.num_gpus, GPU)
    for kind, sms in ((DISPATCH, program.dispatch_sms), (COMBINE, program.combine_sms), (GEMM, program.gemm_sms)):
        gpus["groups"]["wanted_sms"][:, kind] = sms
    gpus["groups"]["sms"][:, GEMM] = gpus["free_sms"] = program.gemm_sms
    gpus["early_tokens"] = program.min_partial_tokens
    gpus["first_token"], gpus["num_tokens"] = workload.first_token[:-1], workload.tokens_of_gpu
    gpus["num_chunks"] = count_chunks(workload, program)
    gpus["first_chunk"] = _starts(gpus["num_chunks"])
    gpus["items_waiting"] = workload.tokens_of_gpu if program.combine.reads else 0
    sizes = chunks["last"] - chunks["first"]
    gpus["sends"] = np.bincount(chunks["gpu"], weights=sizes, minlength=workload.num_gpus)
    unsent = np.bincount(chunks["gpu"], minlength=workload.num_gpus)
    some, starts = unsent > 0, _starts(unsent)
    gpus["unsent"]["head"][some] = starts[some]
    gpus["unsent"]["tail"][some] = (starts + unsent - 1)[some]
    return gpus


def chunks_of(workload: Workload, program: Program) -> np.ndarray:
    """Returns the chunks that each GPU dispatches, in the order of its tokens.

    A GPU that stores has its own tokens' chunks. One that reads has every GPU's, itself first and then its neighbours
    round, a chunk of each that has one in turn, so that readers do not meet at one home GPU. Parts follow each other;
    where they are of peers or experts, every part goes through all chunks.
    """
    num_gpus, homes = workload.num_gpus, home_chunks(workload, program)
    gpu, chunk = homes.home, np.arange(len(homes.home))
    if program.dispatch.reads:
        gpu, chunk = np.repeat(np.arange(num_gpus), len(chunk)), np.tile(chunk, num_gpus)
    part = np.repeat(np.arange(program.rounds), len(chunk))
    gpu, chunk = np.tile(gpu, program.rounds), np.tile(chunk, program.rounds)
    if program.parts_by == codes.BY_TOKENS:
        part = homes.part[chunk]
    order = np.lexsort(((homes.home[chunk] - gpu) % num_gpus, homes.place[chunk], part, gpu))
    gpu, chunk, part = gpu[order], chunk[order], part[order]
    chunks = blank(len(order), CHUNK)
    chunks["gpu"], chunks["part"] = gpu, part
    chunks["first"], chunks["last"] = homes.first[chunk], homes.last[chunk]
    follows = np.flatnonzero(gpu[1:] == gpu[:-1]) + 1
    chunks["prev"][follows] = follows - 1
    chunks["next"][follows - 1] = follows
    return chunks


def links_of(workload: Workload, costs: Costs, record: np.dtype, times: int) -> np.ndarray:
    """Returns uplinks, or so many times as many ports, with what is wrong with them."""
    gpus, planes = np.divmod(np.arange(workload.num_gpus * costs.planes), costs.planes)
    links = blank(times * len(gpus), record)
    links["permille"] = np.tile(list(map(costs.faults.permille, gpus.tolist(), planes.tolist())), times)
    return links


def units_of(workload: Workload, program: Program) -> np.ndarray:
    """Returns the units; the part of each is that of the pairs that its tokens or partial sums belong to.

    Where parts are of experts those are in several; combine then has no gates that would tell.
    """
    num_gpus, homes = workload.num_gpus, home_chunks(workload, program)
    repeats = 1 if program.combine.reads else num_gpus
    units = blank(repeats * len(homes.home), UNIT)
    if program.parts_by == codes.BY_PEERS:
        offset = (np.arange(num_gpus)[:, None] - homes.home) % num_gpus
        units["part"] = (offset * program.parts // num_gpus).reshape(-1)
    else:
        units["part"] = np.tile(homes.part, repeats)
    return units


def parts_and_gates(num_gpus: int, chunks: np.ndarray, program: Program) -> tuple[np.ndarray, np.ndarray]:
    """Returns what each part has to send from each GPU, and the gates of its stages.

    The gates are the whole of what a schedule says of phases. What they count is added as the routing is followed:
    tokens that arrive before GEMM-1, slots that GEMM-1 has done before GEMM-2, and those that GEMM-2 has done before
    combine. GEMM-2 behind a kernel boundary also waits for the end of its GPU's dispatch, which counts as one more.
    """
    parts = blank(num_gpus * program.parts, PART)
    sizes = chunks["last"] - chunks["first"]
    place = chunks["gpu"].astype(np.int64) * program.parts + chunks["part"]
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


def _starts(counts: np.ndarray) -> np.ndarray:
    """Returns where each of so many things begins, if they follow each other."""
    return np.cumsum(counts) - counts
