"""Heat maps of links: how busy every GPU's uplink and downlink is over the time of a layer."""

from __future__ import annotations

import base64
import io

import numpy as np
from matplotlib.image import imsave

from dysharp_env.report import use
from dysharp_env.report.page.parts import Heat, percent
from dysharp_env.schedules import LayerRun

_BINS = 120
_COLOURS = "cividis"  # even in lightness and for the colour-blind; page.css has its scale
_FEW = 16  # rows that have a label each


def link_maps(name: str, run: LayerRun) -> list[Heat]:
    """Returns the uplinks and the downlinks of a finished layer whose engine kept a log, a map each."""
    end_ps = run.engine.now_ps
    uplink, _, downlink = use.logged_use(run.engine, np.linspace(0.0, end_ps, _BINS + 1))
    return [_map(f"{name}: {strip}s", sum(parts.values()), end_ps / 1e6) for strip, parts in (uplink, downlink)]


def _map(title: str, busy: np.ndarray | int, end_us: float) -> Heat:
    """Returns the map of (gpu, bin) fractions of time."""
    shares = np.clip(np.asarray(busy), 0.0, 1.0)
    stream = io.BytesIO()
    imsave(stream, shares, format="png", cmap=_COLOURS, vmin=0.0, vmax=1.0, metadata={"Software": ""})
    url = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    num_gpus = len(shares)
    each = 1 if num_gpus <= _FEW else 8
    labels = [(gpu, f"GPU {gpu}") for gpu in range(0, num_gpus, each)]
    values = [percent(mean) for mean in shares.mean(axis=1)] if num_gpus <= _FEW else []
    whole = f"{title}, {percent(shares.mean())} busy on the mean"
    return Heat(whole, url, labels, num_gpus, values, end_us)
