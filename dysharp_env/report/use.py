"""What every GPU's links, SMs and memory are in use for over time, as fractions of each: what pictures and pages draw.

Links and memory are known only if the engine keeps a log; without one, there is only how many chunks and rows the SM
groups have under way, relative to their most. Beside use there is what L2 is worth: of the bytes that the running rows
read as they started, the part that was there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dysharp_env.report.moves import Moves, Trips
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.result import schedule_table
from dysharp_env.simulator.state import codes, observation
from dysharp_env.simulator.state.codes import BLOCKS_PER_TILE, GEMM2, NOTHING

# A strip: its name, and by stage the (gpu, bin) fractions that are in use.
Strip = tuple[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Block:
    """One GPU's strips, or the mean of all: for each strip its name and the used fraction by stage, (bin,) each.

    ``gpu`` is which GPU's, NOTHING for the mean.
    """

    gpu: int
    strips: tuple[tuple[str, dict[str, np.ndarray]], ...]

    @property
    def name(self) -> str:
        """Whose they are, for people."""
        return "all GPUs" if self.gpu == NOTHING else f"GPU {self.gpu}"


def blocks(engine: Engine, max_gpus: int, end_us: float, bins: int) -> list[Block]:
    """Returns the strips to draw up to a time in so many bins: every GPU, or the mean of all and a few."""
    num_gpus = engine.workload.num_gpus
    use = strips_of(engine, end_us, bins)

    chosen = chosen_gpus(engine, max_gpus)
    everyone = [] if len(chosen) == num_gpus else [NOTHING]
    return [block_of(use, gpu) for gpu in (*everyone, *chosen)]


def block_of(use: list[Strip], gpu: int) -> Block:
    """Returns one GPU's share of strips, or of NOTHING the mean of all."""

    def of_gpu(used: np.ndarray) -> np.ndarray:
        return used.mean(axis=0) if gpu == NOTHING else used[gpu]

    return Block(gpu, tuple((strip, {stage: of_gpu(used) for stage, used in parts.items()}) for strip, parts in use))


def chosen_gpus(engine: Engine, most: int) -> list[int]:
    """Returns so many GPUs, evenly spread over the system, with the one that is last home if the layer is over."""
    num_gpus = engine.workload.num_gpus
    if num_gpus <= most:
        return list(range(num_gpus))
    chosen = np.linspace(0, num_gpus - 1, most).round().astype(int)
    if engine.done:
        last = last_gpu(engine)
        chosen[np.argmin(np.abs(chosen - last))] = last
    return np.unique(chosen).tolist()


def last_gpu(engine: Engine) -> int:
    """Returns the GPU whose token was the last that came home."""
    tokens = engine.state.tokens[:-1]
    return int(tokens["home"][np.argmax(tokens["combine_end"])])


def strips_of(engine: Engine, end_us: float, bins: int) -> list[Strip]:
    """Returns all that is known of every GPU up to a time in so many bins, (gpu, bin) each.

    Of the GEMM group's SMs the part whose thread blocks wait for HBM is ``stalled``, and that whose thread blocks
    communicate ``communication``; ``hits`` is what rows found in L2 of what they read.
    """
    edges_ps = np.linspace(0.0, end_us * 1e6, bins + 1)
    if not engine.state.root["logging"][0]:
        return table_use(engine, edges_ps)
    uplink, _, downlink = logged_use(engine, edges_ps)
    return [
        *(uplink, ("GEMM SMs", _gemm_use(engine, edges_ps)), downlink, ("HBM", _hbm_use(engine, edges_ps))),
        ("L2 hits", {"hits": _l2_hits(engine, edges_ps)}),
    ]


def logged_use(engine: Engine, edges_ps: np.ndarray) -> list[Strip]:
    """Returns for uplinks, SMs and downlinks the used fraction by stage, (gpu, bin) each, from the engine's log."""
    root = engine.state.root[0]
    log = engine.state.log[: int(root["log_size"])]
    resource, gpu, purpose, amount = (log[name] for name in ("resource", "gpu", "purpose", "amount"))
    start, end = log["start_ps"], log["end_ps"]
    num_gpus = engine.workload.num_gpus

    def used(chosen: np.ndarray, weight: np.ndarray) -> np.ndarray:
        args = (gpu[chosen], start[chosen], end[chosen], weight[chosen])
        return np.clip(fractions(num_gpus, *args, edges_ps), 0.0, 1.0)

    once = np.full(len(log), 1 / engine.costs.planes)
    is_dispatch, is_weights = purpose == codes.DISPATCH_DATA, purpose == codes.WEIGHT_DATA
    stages = {"dispatch": is_dispatch, "combine": ~is_dispatch & ~is_weights}
    if len(engine.state.copies):
        stages["copying"] = is_weights
    links = {
        name: {stage: used((resource == code) & is_stage, once) for stage, is_stage in stages.items()}
        for name, code in (("uplink", codes.LOG_UP), ("downlink", codes.LOG_DOWN))
    }
    blocks = amount / _most_gemm_sms(engine)
    sms = {f"gemm{stage}": used((resource == codes.LOG_SM) & (purpose == stage), blocks) for stage in (1, 2)}
    return [("uplink", links["uplink"]), ("SMs", sms), ("downlink", links["downlink"])]


def everything_of(engine: Engine, gpu: int, end_us: float, bins: int) -> Block:
    """Returns all strips of one GPU up to a time in so many bins, from the engine's log.

    Beside what ``blocks`` shows, these are the vectors that dispatch and combine groups have under way, relative to the
    most; of the GEMM group the part whose thread blocks wait for HBM (``stalled``) or communicate; and HBM.
    """
    edges_ps = np.linspace(0.0, end_us * 1e6, bins + 1)
    uplink, _, downlink = logged_use(engine, edges_ps)
    moves = Moves(engine)
    strips = [
        *(
            ("dispatch SMs", {"dispatch": _under_way(engine, moves.dispatched(), edges_ps)}),
            uplink,
            ("GEMM SMs", _gemm_use(engine, edges_ps)),
        ),
        *(
            ("HBM", _hbm_use(engine, edges_ps)),
            ("L2 hits", {"hits": _l2_hits(engine, edges_ps)}),
            downlink,
            ("combine SMs", {"combine": _under_way(engine, moves.combined(), edges_ps)}),
        ),
    ]
    return block_of(strips, gpu)


def _under_way(engine: Engine, trips: Trips, edges_ps: np.ndarray) -> np.ndarray:
    """Returns how many vectors are under way, over the most there are, (gpu, bin)."""
    weights = np.ones(len(trips.gpu))
    count = fractions(engine.workload.num_gpus, trips.gpu, trips.taken_ps, trips.arrived_ps, weights, edges_ps)
    return np.clip(count / max(count.max(), 1e-9), 0.0, 1.0)


def _gemm_use(engine: Engine, edges_ps: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the used fraction of the GEMM groups: thread blocks that wait for HBM, communicate, and then compute."""
    rows, lost = Moves(engine).blocks
    weight, fed_ps = rows["amount"] / _most_gemm_sms(engine), rows["start_ps"] + lost.hbm_ps
    free_ps = fed_ps + lost.communication_ps

    def used(mine: np.ndarray, since_ps: np.ndarray, until_ps: np.ndarray) -> np.ndarray:
        num_gpus = engine.workload.num_gpus
        means = fractions(num_gpus, rows["gpu"][mine], since_ps[mine], until_ps[mine], weight[mine], edges_ps)
        return np.clip(means, 0.0, 1.0)

    computing = {f"gemm{stage}": used(rows["purpose"] == stage, free_ps, rows["end_ps"]) for stage in (1, 2)}
    beside = {"stalled": used(rows["purpose"] > 0, rows["start_ps"], fed_ps)}
    if lost.communication_ps.any():
        beside["communication"] = used(rows["purpose"] > 0, fed_ps, free_ps)
    return {**computing, **beside}


def _hbm_use(engine: Engine, edges_ps: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the used fraction of HBM for each of ``HBM_PURPOSES``."""
    log = engine.state.log[: int(engine.state.root["log_size"][0])]
    rows = log[log["resource"] == codes.LOG_HBM]

    def used(mine: np.ndarray) -> np.ndarray:
        times = (mine["gpu"], mine["start_ps"], mine["end_ps"], np.ones(len(mine)))
        return np.clip(fractions(engine.workload.num_gpus, *times, edges_ps), 0.0, 1.0)

    return {name: used(rows[rows["purpose"] == purpose]) for purpose, name in enumerate(codes.HBM_PURPOSES)}


def row_hits(engine: Engine) -> tuple[np.ndarray, np.ndarray]:
    """Returns what every row has read and what of that L2 held as it started, (tile, GEMM) bytes each; 0 before that.

    A row reads its expert's matrix and its tile: tokens, or what GEMM-1 made of them. Weights that were fetched ahead
    were there.
    """
    state, root = engine.state, engine.state.root[0]
    started = state.tiles["rows"]["start_ps"] >= 0
    gemms = root["gemms"]
    read = gemms["weight_bytes"] + state.tiles["count"][:, None] * gemms["token_in_bytes"]
    missed = np.zeros(started.shape, np.int64)
    log = state.log[: int(root["log_size"])]
    is_hbm = log["resource"] == codes.LOG_HBM
    inputs = log[is_hbm & (log["purpose"] == codes.HBM_READ)]
    tile, what = np.divmod(inputs["item"] - int(root["tile_blocks"]), BLOCKS_PER_TILE)
    of_row = (tile >= 0) & (tile < len(state.tiles)) & (what <= GEMM2)
    np.add.at(missed, (tile[of_row], what[of_row]), inputs["amount"][of_row])
    # A row asks for its matrix right before its first thread blocks start; only uses of HBM lie between.
    places = np.flatnonzero(is_hbm & (log["purpose"] == codes.HBM_WEIGHTS))
    blocks = np.flatnonzero(log["resource"] == codes.LOG_SM)
    place = np.searchsorted(blocks, places)
    places, block = places[place < len(blocks)], blocks[place[place < len(blocks)]]
    others = np.cumsum(~is_hbm)
    tile, gemm = log["item"][block], log["purpose"][block] - 1
    matrix = state.experts["number"][state.tiles["expert"][tile]].astype(np.int64) * 2 + gemm
    mine = (others[places] == others[block] - 1) & (log["item"][places] == matrix)
    mine &= log["start_ps"][block] == state.tiles["rows"]["start_ps"][tile, gemm]
    np.add.at(missed, (tile[mine], gemm[mine]), log["amount"][places[mine]])
    return np.where(started, read, 0), np.where(started, np.clip(read - missed, 0, None), 0)


def _l2_hits(engine: Engine, edges_ps: np.ndarray) -> np.ndarray:
    """Returns what the rows that run found in L2 of what they read, (gpu, bin); 0 while none runs."""
    state = engine.state
    read, found = row_hits(engine)
    tile, gemm = np.nonzero(read)
    rows = state.tiles["rows"][tile, gemm]
    end_ps = np.where(rows["end_ps"] < 0, engine.now_ps, rows["end_ps"])
    gpu = state.experts["gpu"][state.tiles["expert"][tile]]
    took_ps = np.maximum(end_ps - rows["start_ps"], 1)
    times = (engine.workload.num_gpus, gpu, rows["start_ps"], end_ps)
    of_all, of_found = (fractions(*times, each[tile, gemm] / took_ps, edges_ps) for each in (read, found))
    return np.divide(of_found, of_all, out=np.zeros_like(of_all), where=of_all > 1e-9).clip(0.0, 1.0)


def _most_gemm_sms(engine: Engine) -> int:
    """Returns the size of the GEMM group, the largest if it changes while the layer runs."""
    root, splits = engine.state.root[0], engine.state.splits
    if root["split_moments"] > 0 and len(splits) > 0:
        return int(root["num_sms"] - (splits["dispatch_sms"] + splits["combine_sms"]).min())
    # Those that move weights are yet to come back.
    return int((engine.state.gpus["groups"]["sms"][:, observation.GEMM] + engine.state.movers["sms"]).max())


def table_use(engine: Engine, edges_ps: np.ndarray) -> list[Strip]:
    """Returns dispatch chunks, GEMM rows and combine chunks under way, over the most there are, from the table."""
    num_gpus = engine.workload.num_gpus
    rows = schedule_table(engine)
    strips: list[Strip] = []
    for strip, names in (("dispatch", ("dispatch",)), ("SMs", ("gemm1", "gemm2")), ("combine", ("combine",))):
        stages = {}
        for stage in names:
            chosen = [row for row in rows if row.stage == stage]
            gpu = np.array([row.gpu for row in chosen], np.int64)
            start = np.array([row.start_us for row in chosen]) * 1e6
            end = np.array([engine.now_ps if math.isnan(row.end_us) else row.end_us * 1e6 for row in chosen])
            stages[stage] = fractions(num_gpus, gpu, start, end, np.ones(len(chosen)), edges_ps)
        most = max(sum(stages.values()).max(), 1.0)  # type: ignore[union-attr]
        strips.append((strip, {stage: used / most for stage, used in stages.items()}))
    return strips


def fractions(
    num_gpus: int, gpu: np.ndarray, start: np.ndarray, end: np.ndarray, weight: np.ndarray, edges: np.ndarray
) -> np.ndarray:
    """Returns the (gpu, bin) mean over each bin of the summed weights of the intervals that cover it."""
    means = np.zeros((num_gpus, len(edges) - 1))
    for index in range(num_gpus):
        mine = gpu == index
        area = _area_before(edges, start[mine], weight[mine]) - _area_before(edges, end[mine], weight[mine])
        means[index] = np.diff(area) / np.diff(edges)
    return means


def _area_before(edges: np.ndarray, since: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Returns at each edge the area under a sum of steps, each of which rises by its weight at ``since`` and stays."""
    order = np.argsort(since, kind="stable")
    height = np.concatenate(([0.0], np.cumsum(weight[order])))
    moment = np.concatenate(([0.0], np.cumsum(weight[order] * since[order])))
    place = np.searchsorted(since[order], edges)
    return height[place] * edges - moment[place]
