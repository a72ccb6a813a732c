"""TensorBoard's files of a run: curves with what they mean, pictures, texts, settings with final results, a layout."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.logger import KVWriter
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_BLOB_SEQUENCE, DATA_CLASS_SCALAR, Summary, SummaryMetadata
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboard.plugins.image import metadata as images
from tensorboard.plugins.scalar import metadata as scalars
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import custom_scalars

from .curves import LAYOUT, description
from .durable import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Setting = bool | int | float | str
# What the table of runs ends with.
FINAL = ("eval/best_ratio_to_bound", "eval/best_ratio_to_reference", "eval/ratio_to_reference", "time/elapsed_s")
_COLORSPACE_RGB = 3  # of TensorFlow's Summary.Image
_OPENED = count()  # files of this process


class EventFile:
    """A file of TensorBoard's that this thread writes to: one that cannot be written fails here and now.

    TensorBoard's own writer has a thread for it, which shows a traceback of its own on a full disk.
    """

    def __init__(self, folder: Path) -> None:
        """Begins a new file in a folder, under a name that TensorBoard looks for."""
        unique = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_OPENED)}"
        self._path = folder / f"events.out.tfevents.{unique}"
        with writing(self._path):
            self._file = self._path.open("xb", buffering=0)
        self._records = RecordWriter(self)
        self.add(file_version="brain.Event:2")

    def add(self, **content: Any) -> None:
        """Writes an event.

        Raises:
            ConfigError: There is no room for it.
        """
        self._records.write(Event(wall_time=time.time(), **content).SerializeToString())

    def write(self, data: bytes) -> None:
        """Writes bytes, as ``RecordWriter`` asks."""
        with writing(self._path):
            while data:
                data = data[self._file.write(data) :]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Board(KVWriter):
    """Writes what a run shows in TensorBoard; every tag brings its meaning along."""

    def __init__(self, folder: Path, forget_after: int | None = None) -> None:
        """Starts an event file in a run folder; ``forget_after`` hides what earlier ones say of later decisions."""
        self._events = EventFile(folder)
        if forget_after is not None:
            # TensorBoard drops what older files say of steps from that of a new session on.
            start = SessionLog(status=SessionLog.START)
            self._events.add(step=forget_after + 1, file_version="brain.Event:2")
            self._events.add(step=forget_after + 1, session_log=start)
        self._described: set[str] = set()

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Writes curves at a step."""
        summary = Summary()
        for tag, value in key_values.items():
            if isinstance(value, (int, float, np.number)) and "tensorboard" not in (key_excluded[tag] or ()):
                summary.value.add(tag=tag, simple_value=float(value), metadata=self._scalar(tag))
        self._add(summary, step)

    def _scalar(self, tag: str) -> SummaryMetadata | None:
        """Returns what goes with a curve's first point in this file, which is all that TensorBoard reads of it."""
        if tag in self._described:
            return None
        self._described.add(tag)
        metadata = scalars.create_summary_metadata("", description(tag))
        metadata.data_class = DATA_CLASS_SCALAR
        return metadata

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """Writes how (any,) numbers are spread."""
        self._add(histogram_pb(tag, values, description=description(tag)), step)

    def picture(self, tag: str, figure: Figure, step: int) -> None:
        """Writes a figure."""
        from dysharp_env.report.drawing import encoded

        width, height = (round(inches * figure.dpi) for inches in figure.get_size_inches())
        png = encoded(figure, "png")
        image = Summary.Image(height=height, width=width, colorspace=_COLORSPACE_RGB, encoded_image_string=png)
        metadata = images.create_summary_metadata("", description(tag), converted_to_tensor=False)
        metadata.data_class = DATA_CLASS_BLOB_SEQUENCE
        self._add(Summary(value=[Summary.Value(tag=tag, image=image, metadata=metadata)]), step)

    def text(self, tag: str, markdown: str) -> None:
        """Writes a text."""
        self._add(text_pb(tag, markdown, description=description(tag)), 0)

    def begin(self, settings: Mapping[str, Setting], meanings: Mapping[str, str]) -> None:
        """Writes what the run is made with, for the table of runs, and which curves stand in one chart."""
        infos = [
            api_pb2.HParamInfo(name=name, description=meanings.get(name, ""), type=_type_of(value))
            for name, value in settings.items()
        ]
        metrics = [
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=tag, description=description(tag))
            for tag in FINAL
        ]
        experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=metrics)
        start = SessionStartInfo(start_time_secs=time.time())
        for name, value in settings.items():
            kind = "bool" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"
            setattr(start.hparams[name], f"{kind}_value", value)
        self._settings(hparams.EXPERIMENT_TAG, experiment=experiment)
        self._settings(hparams.SESSION_START_INFO_TAG, session_start_info=start)
        layout = {
            section: {title: ["Multiline", [_whole(tag) for tag in tags]] for title, tags in charts.items()}
            for section, charts in LAYOUT.items()
        }
        self._add(custom_scalars(layout), 0)

    def end(self) -> None:
        """Says that the run has come to its end."""
        end = SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
        self._settings(hparams.SESSION_END_INFO_TAG, session_end_info=end)

    def _settings(self, tag: str, **content: Any) -> None:
        metadata = hparams.create_summary_metadata(HParamsPluginData(**content))
        self._add(Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=hparams.NULL_TENSOR)]), 0)

    def close(self) -> None:
        """Closes the event file."""
        self._events.close()

    def _add(self, summary: Any, step: int) -> None:
        self._events.add(summary=summary, step=step)


def code_block(text: str, language: str = "") -> str:
    """Returns text as it is, for a place that reads Markdown."""
    return f"```{language}\n{text.rstrip()}\n```"


def _whole(pattern: str) -> str:
    """Returns a pattern that matches a whole tag."""
    return f"^{pattern}$"


def _type_of(value: Setting) -> int:
    if isinstance(value, bool):
        return api_pb2.DATA_TYPE_BOOL
    return api_pb2.DATA_TYPE_STRING if isinstance(value, str) else api_pb2.DATA_TYPE_FLOAT64
