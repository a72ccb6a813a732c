"""A table of results as ``agents.evaluate --json`` wrote it, to be held against rows that were played again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dysharp_env.files import ConfigError, read_mapping, shown
from dysharp_env.schedules.opponent import Played
from dysharp_env.simulator.hardware import PS_PER_US

from .decision_list import DecisionList
from .table import summarise

_ROW = TypeAdapter(Played)


class StoredTable:
    """Rows and summaries of a results table; it notes which rows have been held against a decision list."""

    def __init__(self, path: Path) -> None:
        """Reads the JSON file of an evaluation.

        Raises:
            ConfigError: It cannot be read, or holds something else.
        """
        document = read_mapping(path)
        if document.get("schema") != "dysharp/evaluate/1":
            raise ConfigError(f"'{path}' is no table of results: its schema is '{shown(str(document.get('schema')))}'")
        rows = document.get("rows")
        if not isinstance(rows, list):
            raise ConfigError(f"'{path}' is damaged: rows must be a list")
        # One by one, so that of many wrong ones the first is told at once.
        self.rows = [_row_of(row, f"'{path}' is damaged: rows.{place}") for place, row in enumerate(rows)]
        self._document = document
        self._left = {_key(row): row for row in self.rows}

    def fault_of(self, decisions: DecisionList, lower_bound_ps: int) -> str | None:
        """Returns why the table does not say what a replayed row says, or None; the bound is that of its layer."""
        key = decisions.policy, decisions.seed, decisions.workload, decisions.renaming
        row = self._left.pop(key, None)
        if row is None:
            return "the table has no such row, or another list has proved it"
        if round(row.makespan_us * PS_PER_US) != decisions.makespan_ps:
            return f"the table says {row.makespan_us:g} us, the replay {decisions.makespan_ps / PS_PER_US:g} us"
        if row.asked != len(decisions.choices):
            return f"the table says that {row.asked} decisions were asked, and {len(decisions.choices)} are stored"
        bound_us = lower_bound_ps / PS_PER_US
        if row.lower_bound_us != bound_us:
            return f"the table's lower bound is {row.lower_bound_us:g} us, and {bound_us:g} us can be proved"
        return None

    def faults(self) -> list[str]:
        """Returns what else is wrong: rows that no list proves, and summaries that do not follow from the rows."""
        found = [f"no list proves {_shown_key(key)}" for key in self._left]
        stored = self._document.get("summary")
        summaries = stored if isinstance(stored, list) else []
        for summary in summaries:
            if not self._follows(summary):
                names = [shown(str(summary.get(name))) for name in ("policy", "against")] if _is_named(summary) else []
                found.append(f"the summary of {' against '.join(names) or 'nobody'} does not follow from the rows")
        return found

    def _follows(self, summary: Any) -> bool:
        if not _is_named(summary):
            return False
        try:
            derived = summarise(self.rows, summary["against"], self._document.get("seed", 0))
        except ConfigError:
            return False
        return any(asdict(each) == summary for each in derived)


def _row_of(row: Any, where: str) -> Played:
    try:
        return _ROW.validate_python(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f".{each}" for each in first["loc"])
        raise ConfigError(f"{where}{place}: {first['msg']}") from None


def _is_named(summary: Any) -> bool:
    return isinstance(summary, dict) and all(isinstance(summary.get(name), str) for name in ("policy", "against"))


def _key(row: Played) -> tuple[str, int | None, str, int]:
    return row.policy, row.seed, row.workload, row.renaming


def _shown_key(key: tuple[str, int | None, str, int]) -> str:
    policy, seed, workload, renaming = key
    return f"{shown(policy)}{'' if seed is None else f' (seed {seed})'} on {shown(workload)}, renaming {renaming}"
