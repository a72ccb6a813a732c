"""What faults cost, and the guide's table of it.

``python -m tests.agents.test_faults`` writes the table anew from ``runs/reference/faults.json``, which
``python -m agents.faults --json runs/reference/faults.json`` measures.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from agents import faults as command
from agents.faults import BOUND, FAULTS, cell
from dysharp_env.commands.docs import FOLDER
from dysharp_env.config import preset_names
from dysharp_env.system import load_system
from dysharp_env.system.faults import read_faults

PAGE = FOLDER / "faults.md"
STORED = Path(__file__).resolve().parents[2] / "runs" / "reference" / "faults.json"
BEGIN, END = "<!-- table: faults -->", "<!-- end of table -->"


def markdown(rows: list[dict]) -> str:
    """Returns the table of stored rows."""
    heads = ["", *(name.replace("-", " ") for name in FAULTS)]
    lines = [f"| {' | '.join(heads)} |", "|---" + "|---:" * len(FAULTS) + "|"]
    for row in rows:
        name = row["name"] if row["name"] == BOUND else f"`{row['name']}`"
        lines.append(f"| {name} | {' | '.join(cell(row['ratios'][fault]) for fault in FAULTS)} |")
    return "\n".join(lines)


def with_table(text: str) -> str:
    table = markdown(json.loads(STORED.read_text(encoding="utf-8"))["rows"])
    return re.sub(f"{BEGIN}\n.*?{END}", lambda _: f"{BEGIN}\n{table}\n{END}", text, flags=re.DOTALL)


def test_the_guide_has_the_stored_table_with_every_schedule_and_fault() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert with_table(text) == text
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    assert stored["config"]["faults"] == FAULTS and {*preset_names("faults")} <= {*FAULTS}
    rows = {row["name"]: row["ratios"] for row in stored["rows"]}
    assert {BOUND, "reference", *preset_names("schedules")} == {*rows}
    assert all({*ratios} == {*FAULTS} for ratios in rows.values())
    # Only hardware that is not there stops anybody.
    for name, ratios in rows.items():
        assert all(ratio is not None for fault, ratio in ratios.items() if fault != "no-dynamic-multimem"), name
        assert (name == "dysharp") <= (ratios["no-dynamic-multimem"] is None)
    assert all(ratio >= 1 for ratio in rows[BOUND].values())
    # The guide's list of faults has the presets' settings.
    for name in preset_names("faults"):
        key, value = next(
            (key, value)
            for key, value in read_faults(name).items()
            if value != getattr(load_system("dgx-h100").faults, key)
        )
        assert f"`--faults {name}` | `faults: {{{key}: {value:g}}}`" in text


def test_the_table_is_what_the_command_measures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schedule of the stored table and the bound under some of the faults, measured again."""
    file = tmp_path / "faults.json"
    monkeypatch.setattr(command, "FAULTS", {name: FAULTS[name] for name in ("slow-link", "no-dynamic-multimem")})
    names = ["dysharp-basic"]
    assert command.main([*(f"--policy={name}" for name in names), "--json", str(file)]) == 0
    assert "CPU seconds" in capsys.readouterr().out
    found = json.loads(file.read_text(encoding="utf-8"))["rows"]
    stored = {row["name"]: row for row in json.loads(STORED.read_text(encoding="utf-8"))["rows"]}
    assert [row["name"] for row in found] == [BOUND, *names]
    for row in found:
        assert {*row["ratios"]} == {"slow-link", "no-dynamic-multimem"}
        for fault, ratio in row["ratios"].items():
            before = stored[row["name"]]["ratios"][fault]
            assert ratio == before or ratio == pytest.approx(before, rel=1e-12)


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--policy", "dysharp", "--workloads", "0"]) == 2
    assert capsys.readouterr().err == "error: workloads=0 must be at least 1\n"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
