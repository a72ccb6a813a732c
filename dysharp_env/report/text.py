"""A running or finished layer as a few lines of text, for ``render_mode="ansi"`` and for debugging in a terminal."""

from __future__ import annotations

import numpy as np

from dysharp_env.schedules import LayerRun
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.state import codes, observation
from dysharp_env.simulator.state.codes import GEMM1, GEMM2

_BAR_WIDTH = 10
_BLOCKS = " ▏▎▍▌▋▊▉█"
_MAX_GPUS = 16


def describe_state(run: LayerRun) -> str:
    """Returns the time, who decides, and for each GPU how far its stages are and what its links and SMs have to do.

    ``sent`` and ``combined`` count a GPU's own tokens; ``received``, ``GEMM-1`` and ``GEMM-2`` count (token, expert)
    pairs of the experts it holds. ``uplink`` and ``downlink`` are how long what is queued now keeps the link busy,
    ``SMs`` is how many of the GEMM group run thread blocks. At most 16 GPUs are listed.
    """
    engine = run.engine
    state = engine.state
    gpus = state.gpus
    num_gpus, tokens = engine.workload.num_gpus, engine.workload.tokens_of_gpu
    slots = np.zeros(num_gpus)
    np.add.at(slots, state.experts["gpu"], state.experts["total"])
    done = {
        "sent": _fraction(gpus["sends"], gpus["sends"] - gpus["tokens_sent"]),
        "received": _fraction(slots, gpus["arrivals_left"]),
        "GEMM-1": _fraction(slots, gpus["slots_left"][:, GEMM1]),
        "GEMM-2": _fraction(slots, gpus["slots_left"][:, GEMM2]),
        "combined": _fraction(tokens, tokens - gpus["combined"]),
    }
    uplink_us, downlink_us = (
        np.array([_backlog_ps(engine, place, link) for place, link in enumerate(links)])
        .reshape(num_gpus, -1)
        .max(axis=1)
        / 1e6
        for links in (state.uplinks, state.ports[: len(state.uplinks)])
    )
    busy_sms = gpus["groups"]["sms"][:, observation.GEMM] - gpus["free_sms"]

    columns = " ".join(f"{name:<{_BAR_WIDTH + 5}}" for name in done)
    lines = [_headline(run), f"{'':7}{columns} {'uplink':>8} {'downlink':>8} {'SMs':>4}"]
    for gpu in range(min(num_gpus, _MAX_GPUS)):
        bars = " ".join(f"{_bar(fraction[gpu])} {fraction[gpu]:4.0%}" for fraction in done.values())
        queues = f"{uplink_us[gpu]:6.1f}us {downlink_us[gpu]:6.1f}us {busy_sms[gpu]:4d}"
        lines.append(f"GPU {gpu:<3}{bars} {queues}")
    if num_gpus > _MAX_GPUS:
        lines.append(f"... and {num_gpus - _MAX_GPUS} more GPUs")
    return "\n".join(lines)


def _headline(run: LayerRun) -> str:
    engine = run.engine
    root = engine.state.root[0]
    now_us, bound_us = engine.now_ps / 1e6, run.lower_bound_ps / 1e6
    combined = engine.workload.num_tokens - int(root["tokens_left"])
    when = f"t = {now_us:.1f} us ({now_us / bound_us:.2f} x lower bound)"
    text = f"{when}, {combined}/{engine.workload.num_tokens} tokens combined"
    if engine.done:
        return f"{text}, done"
    kind = int(root["pending_kind"])
    if kind == codes.NOTHING:
        return text
    # The first split is for all.
    is_first = kind == observation.SPLIT and not root["split_done"]
    who = "all GPUs" if is_first else f"GPU {int(root['pending_gpu'])}"
    return f"{text}; {who} decides: {observation.DECISION_KINDS[kind]}, {int(root['num_legal'])} legal answers"


def _backlog_ps(engine: Engine, place: int, link: np.void) -> int:
    """Returns how long a link, of which ``place`` says the GPU and plane, is busy with what it has and what waits."""
    costs = engine.costs.on_link(*divmod(place, engine.costs.planes))
    return max(int(link["free_ps"]) - engine.now_ps, 0) + costs.wire_ps(int(link["queued_flits"]))


def _fraction(total: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Returns the done fraction of each GPU's tokens or (token, expert) pairs; a GPU that has none is done."""
    return 1.0 - left / np.maximum(total, 1)


def _bar(fraction: float) -> str:
    eighths = round(min(max(float(fraction), 0.0), 1.0) * _BAR_WIDTH * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (_BLOCKS[rest] if rest else "")).ljust(_BAR_WIDTH, "·")
