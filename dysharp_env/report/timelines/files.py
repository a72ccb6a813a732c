"""Writes a timeline to where a user wants it: one file by its ending, or a folder with a file for each GPU."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Literal

from dysharp_env.config import ConfigError
from dysharp_env.files import write_bytes
from dysharp_env.report.timelines.chakra import chakra_traces
from dysharp_env.report.timelines.chrome import chrome_json
from dysharp_env.report.timelines.kineto import kineto_json
from dysharp_env.report.timelines.model import Timeline
from dysharp_env.report.timelines.perfetto import perfetto_trace
from dysharp_env.simulator.engine import Engine

# How names of files end, and what is then written.
CHROME, CHROME_GZIP, PERFETTO = (".json",), (".json.gz",), (".pftrace", ".perfetto-trace")
SUFFIXES = (*CHROME, *CHROME_GZIP, *PERFETTO)
Format = Literal["kineto", "chakra"]  # a folder, with a file for each GPU
FORMATS: tuple[Format, ...] = ("kineto", "chakra")
DETAILS = ("auto", "full", "aggregated")
OPENED_WITH = {
    "kineto": "a PyTorch profiler trace for each GPU; for HolisticTraceAnalysis set HTA_DISABLE_NS_ROUNDING=1",
    "chakra": "a Chakra execution trace for each GPU; whole microseconds, no packets, nothing of what is paid",
    None: "open it at https://ui.perfetto.dev",
}


def check_target(target: str, kind: str | None) -> None:
    """Checks where a timeline is to go, before anything long is started.

    Args:
        target: A file that ends in one of ``SUFFIXES``; of a format in ``FORMATS`` a folder, there already or not.
        kind: The format, None for a file.

    Raises:
        ConfigError: It is neither, or cannot be written to.
    """
    path = Path(target)
    if kind is None:
        if not target.endswith(SUFFIXES):
            endings = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
            raise ConfigError(f"timeline='{target}' must end in {endings}; a folder needs timeline_format")
        return
    if os.path.exists(path) and not os.path.isdir(path):
        raise ConfigError(f"timeline='{target}' must be a folder: timeline_format='{kind}' writes a file for each GPU")
    if not os.path.exists(path) and not os.path.isdir(path.parent):
        raise ConfigError(f"cannot write timeline='{target}': the folder '{path.parent}' does not exist")
    if not os.access(path if os.path.exists(path) else path.parent, os.W_OK):
        raise ConfigError(f"cannot write timeline='{target}': it is not writable")


def write_timeline(path: str | Path, timeline: Timeline) -> None:
    """Writes a timeline to a file: a Chrome trace (compressed or not), or a Perfetto trace, by how its name ends.

    Raises:
        ConfigError: The name ends in something else, or the file cannot be written.
        ModuleNotFoundError: The package that a format needs is not installed.
    """
    name = str(path)
    check_target(name, None)
    if name.endswith(PERFETTO):
        content = perfetto_trace(timeline)
    else:
        content = chrome_json(timeline)
        if name.endswith(CHROME_GZIP):
            # Without the time of writing: the same layer gives the same bytes.
            content = gzip.compress(content, mtime=0)
    write_bytes(path, content)


def write_by_gpu(folder: str | Path, kind: str, timeline: Timeline, engine: Engine) -> None:
    """Writes a file for each GPU into a folder, which is made if it is not there.

    Args:
        folder: The folder.
        kind: One of ``FORMATS``.
        timeline: The layer, which ``kineto`` shows.
        engine: The layer, finished and with a log, which ``chakra`` shows.

    Raises:
        ConfigError: The format cannot tell this schedule, or a file cannot be written.
        ModuleNotFoundError: The package that a format needs is not installed.
    """
    path = Path(folder)
    check_target(str(folder), kind)
    if kind == "chakra":
        contents, name = chakra_traces(engine, timeline.title), "layer.{}.et"
    else:
        contents, name = [kineto_json(timeline, gpu) for gpu in range(timeline.num_gpus)], "rank{}.json"
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write '{path}': {error.strerror}") from None
    for gpu, content in enumerate(contents):
        write_bytes(path / name.format(gpu), content)
