"""Closed forms that the simulator has to meet: traffic and rates that follow from the protocol by hand.

Every closed form but one comes out of the engine: flits it has counted, times it has reached. The exception is explicit
addressing, which the modelled hardware does not have and the paper rejects: its row is packet arithmetic. R is the
number of distinct remote GPUs a token goes to, as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from dysharp_env.schedules import LayerRun, load_schedule, simulate
from dysharp_env.simulator.state import codes
from dysharp_env.system import SystemSpec, load_system
from dysharp_env.system.packet import PacketFormat
from dysharp_env.validation.layers import expected_remote_gpus, laid_out, one_expert_each
from dysharp_env.validation.rows import ValidationRow
from dysharp_env.workload import ScenarioSpec, Workload, load_model

# The machine of DySHARP, arXiv 2605.05607; the closed forms below are its.
SYSTEM = "gh200-nvl32"
NUM_GPUS = 32
# The paper's packets, on links that all flits get through.
PROTOCOL = {
    "link.multimem_flits": 0,
    "link.efficiency": 1.0,
    "link.efficiency_per_doubling": 0.0,
    "gpu.families.warp_queue.extra_flits": 0,
}
# Communication is all that is looked at, so the GEMMs may as well be short.
COMPUTE_SCALE = 0.001
# Random routing at this size keeps R within 0.3 % of its expectation.
TOKENS_PER_GPU = 128
COUNTED = (
    codes.DISPATCH_DATA,
    codes.DISPATCH_ACK,
    codes.COMBINE_REQUEST,
    codes.COMBINE_DATA,
    codes.COMBINE_ACK,
)


def closed_form_rows(seed: int = 0) -> Iterator[ValidationRow]:
    """Yields every closed form, simulating as it goes; ``seed`` draws the random routing."""
    yield from _useless_traffic(seed)
    yield from _bytes_saved(seed)
    yield from _payload_efficiency()
    yield from _merged_gain()
    yield from _unicast_rate()


def _predicted(name: str, expected: float, simulated: float, tolerance: float) -> ValidationRow:
    """Returns a closed form that random routing meets on average."""
    return ValidationRow("closed-form", name, expected, simulated, "predicted", tolerance)


def _exact(name: str, expected: float, simulated: float, rounding: float = 1e-12) -> ValidationRow:
    """Returns a closed form that counts must meet; ``rounding`` is relative, and that of floating point by default."""
    return ValidationRow("closed-form", name, expected, simulated, "exact", rounding * expected)


def _run(system: SystemSpec, workload: Workload, schedule: str) -> LayerRun:
    return simulate(system, workload, load_schedule(schedule), compute_scale=COMPUTE_SCALE)


def _counts(run: LayerRun, name: Literal["traffic", "payload"]) -> np.ndarray:
    """Returns the engine's (gpu, direction, purpose) flits, all of them or those of data."""
    return getattr(run.engine.state, name).reshape(-1, 2, codes.NUM_PURPOSES)


def _uniform_runs(model: str, top_k: int, seed: int, *schedules: str) -> list[LayerRun]:
    scenario = ScenarioSpec(
        system=SYSTEM, gpus=NUM_GPUS, model=model, top_k=top_k, tokens=TOKENS_PER_GPU, routing="uniform"
    ).build()
    workload = scenario.draw(seed)
    return [_run(scenario.system.with_changes(PROTOCOL), workload, schedule) for schedule in schedules]


def _useless_traffic(seed: int) -> Iterator[ValidationRow]:
    """Copies that AllGather delivers to GPUs without an expert of the token, over those it delivers where needed."""
    experts, top_k = load_model("large").experts, 8
    needed = expected_remote_gpus(experts, top_k, NUM_GPUS)
    static, unicast = (
        int(_counts(run, "payload")[:, codes.DOWN, codes.DISPATCH_DATA].sum())
        for run in _uniform_runs("large", top_k, seed, "nvls", "deepep")
    )
    expected = 100 * (NUM_GPUS - 1 - needed) / needed
    name = f"useless traffic of static NVLS, {experts} experts, {NUM_GPUS} GPUs, top-{top_k}, %"
    yield _predicted(name, expected, 100 * (static - unicast) / unicast, tolerance=0.01 * expected)


def _bytes_saved(seed: int) -> Iterator[ValidationRow]:
    """Payload that dynamic multimem keeps off the links: 2 (1 + R) vectors a token cross one, rather than 4 R."""
    for model in ("small", "large"):
        for top_k in (8, 16, 32):
            remote = expected_remote_gpus(load_model(model).experts, top_k, NUM_GPUS)
            unicast, dynamic = (
                sum(int(run.result().payload_bytes[direction]) for direction in ("up", "down"))
                for run in _uniform_runs(model, top_k, seed, "deepep", "dysharp-basic")
            )
            expected = 100 * (1 - 2 * (1 + remote) / (4 * remote))
            name = f"bytes saved by dynamic multimem, {model}, top-{top_k}, %"
            yield _predicted(name, expected, 100 * (1 - dynamic / unicast), tolerance=0.3)


def _payload_efficiency() -> Iterator[ValidationRow]:
    """Data flits over all flits, in and out of the switch, of a packet stored to eight GPUs and acknowledged by all."""
    destinations = 8
    num_gpus = destinations + 1
    system = load_system(SYSTEM, num_gpus).with_changes(PROTOCOL)
    layer = load_model("small").with_changes({"experts": num_gpus, "top_k": destinations})
    home = np.repeat(np.arange(num_gpus), 16)
    workload = laid_out(layer, num_gpus, (home[:, None] + np.arange(1, num_gpus)) % num_gpus)
    data = system.link.payload_bytes // system.link.flit_bytes
    # The store goes in once and out to each destination; each acknowledges, and the switch merges that into one.
    packets, acks = destinations + 1, destinations + 1
    for schedule, targets, text in (("nvls", 0, ""), ("dysharp-basic", 1, ", with target flits")):
        run = _run(system, workload, schedule)
        flits = _counts(run, "traffic")[:, :, [codes.DISPATCH_DATA, codes.DISPATCH_ACK]].sum()
        payload = _counts(run, "payload")[:, :, codes.DISPATCH_DATA].sum()
        expected = 100 * packets * data / (packets * (data + system.link.header_flits + targets) + acks)
        yield _exact(f"payload efficiency of a packet to 8 GPUs{text}, %", expected, float(100 * payload / flits))
    # DySHARP, arXiv 2605.05607: eight address flits take the place of one in the request and in the merged response.
    expected = 100 * packets * data / (packets * (data + 1) + acks + 2 * (8 - 1))
    explicit = PacketFormat().multicast_efficiency(destinations, address_flits=8)
    yield _exact("payload efficiency of a packet to 8 GPUs, explicit addressing, %", expected, 100 * explicit)


def _merged_gain() -> Iterator[ValidationRow]:
    """Flits per direction of unicast over those of dynamic multimem, dispatch and combine in flight together.

    A token's uplink carries a store, its acknowledgements, a read request and contributions to others' sums; its
    downlink copies, a merged acknowledgement, requests and one result. Of every 20 tokens 19 have R = 7 and one R = 6.
    """
    period, num_gpus = 20, 16
    layer = load_model("large").with_changes({"experts": num_gpus * 8, "top_k": 8})
    remote = np.where(np.arange(period) == 0, 6, 7)
    topk_ids = np.zeros((num_gpus, period, 8), np.int64)
    for home in range(num_gpus):
        for token in range(period):
            # Experts beyond the first R share those GPUs, so R is exact and every GPU sends and receives alike.
            places = np.arange(8)
            gpus = (home + 1 + (token + places % remote[token]) % (num_gpus - 1)) % num_gpus
            topk_ids[home, token] = gpus * 8 + places
    workload = laid_out(layer, num_gpus, np.tile(topk_ids, (1, 10, 1)).reshape(-1, 8))
    mean = float(remote.mean())
    for payload_bytes in (128, 256):
        system = load_system(SYSTEM, num_gpus).with_changes({**PROTOCOL, "link.payload_bytes": payload_bytes})
        unicast, dynamic = (
            int(_counts(_run(system, workload, schedule), "traffic")[:, :, COUNTED].sum(axis=(0, 2)).max())
            for schedule in ("deepep", "dysharp")
        )
        data = payload_bytes // system.link.flit_bytes
        per_direction = 2 * mean * (data + 2)  # two copies of a packet with a header and an acknowledgement
        up = (data + 2) + mean + 2 + mean * (data + 1)
        down = mean * (data + 2) + 1 + mean * 2 + (data + 1)
        expected = per_direction / max(up, down)
        name = f"gain of merged dynamic multimem in flits, {payload_bytes} B payload, R = {mean}"
        yield _exact(name, expected, unicast / dynamic)


def _unicast_rate() -> Iterator[ValidationRow]:
    """Payload over the time the links are busy with it, when every GPU sends and receives alike.

    Expected: 8 data flits of 10, the others a header and the acknowledgement of what came the other way: 360 GB/s of
    450, which is also what NCCL reaches on H100 (NVIDIA/nccl-tests issue 212).
    """
    num_gpus = 8
    system = load_system(SYSTEM, num_gpus).with_changes(PROTOCOL)
    topk_ids = np.tile(np.arange(num_gpus), (num_gpus * 256, 1))
    workload = laid_out(one_expert_each(num_gpus, top_k=num_gpus), num_gpus, topk_ids)
    run = _run(system, workload, "deepep")
    payload_bytes = run.result().payload_bytes["up"]
    busy_s = run.engine.state.uplinks["busy_ps"].sum() * 1e-12
    expected = system.link.gbps * 8 / 10
    name = f"unicast payload rate of {system.link.gbps:g} GB/s"
    # The engine rounds the time of a segment, some 30 ns, down to a picosecond.
    yield _exact(name, expected, payload_bytes / 1e9 / float(busy_s), rounding=1e-4)
