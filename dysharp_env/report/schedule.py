"""The finished schedule as a table: the first thing users of a scheduling environment ask for."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from dysharp_env.files import write_text
from dysharp_env.multimem import ScheduleRow
from dysharp_env.report.timelines import timeline_of, write_timeline
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.result import schedule_table


class ScheduleTable(tuple[ScheduleRow, ...]):
    """The rows of a schedule in order of start; ``ScheduleRow`` documents the columns."""

    engine: Engine

    @classmethod
    def of(cls, engine: Engine) -> ScheduleTable:
        """Returns the schedule of an engine, finished or not."""
        table = cls(schedule_table(engine))
        table.engine = engine
        return table

    def to_csv(self, path: str | Path) -> None:
        """Writes a header and one line per row; an unfinished end is ``nan``.

        Raises:
            ConfigError: The file cannot be written.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(ScheduleRow._fields)
        writer.writerows(self)
        write_text(path, text.getvalue())

    def to_timeline(self, path: str | Path, title: str = "") -> None:
        """Writes a timeline, by how the name ends: .json, .json.gz, .pftrace or .perfetto-trace; see docs/timelines.md.

        Links, SMs and memory show if the engine kept a log.

        Raises:
            ConfigError: The name ends in something else, or the file cannot be written.
        """
        write_timeline(path, timeline_of(self.engine, title))
