"""The guide's tables are what the specs and presets say.

``python -m tests.test_guide_tables`` writes them anew: each stands between two comments that name it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dysharp_env.config import find_config, preset_names
from dysharp_env.report.catalogue import models, schedules, systems
from dysharp_env.report.keys import markdown_keys
from dysharp_env.schedules import ScheduleSpec
from dysharp_env.schedules.hardware import NEED_MEANINGS
from dysharp_env.system import SystemSpec, load_system
from dysharp_env.workload.layer import LayerSpec

DOCS = Path(__file__).resolve().parents[1] / "dysharp_env" / "docs"
PAGES = ("schedules.md", "machines-and-models.md")


def markdown(heads: Sequence[str], rows: Iterator[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)])


def whose(name: str) -> str:
    """Returns whose a schedule is: how the comment at the top of its file begins, up to a colon or full stop."""
    text = find_config("schedules", name).read_text(encoding="utf-8")
    comment = " ".join(line.removeprefix("#").strip() for line in text.partition("\nname:")[0].splitlines())
    depth = 0
    for place, sign in enumerate(comment):
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if depth == 0 and comment[place : place + 2] in (": ", ". "):
            return comment[:place].partition(", but ")[0]
    return comment


def catalogue() -> str:
    costs = ("launches", "exchanges", "barriers", "kernels between phases")
    heads = ("schedule", "what it does", "hardware", *costs, "whose")
    system = load_system("dgx-h200")

    def cells(row: dict[str, object]) -> Sequence[object]:
        paid = [f"{row[key]:.1f}" for key in ("launches_us", "exchanges_us", "barriers_us")]
        kernels = ", ".join(dict.fromkeys(row["kernels"]))
        return (f"`{row['name']}`", row["description"], row["hardware"], *paid, kernels, whose(str(row["name"])))

    return markdown(heads, (cells(row) for row in schedules(system)))


def tables() -> dict[str, str]:
    """Returns every table of the guide by its name."""
    of_system = ("name", "gpus", "sms", "fp8_tflops", "hbm_gbps", "link_gbps", "description")
    of_model = ("name", "experts", "top_k", "hidden", "moe_ff", "shared", "dispatch", "combine", "gemms", "weights")
    heads = ("system", "GPUs", "SMs", "FP8 TFLOP/s", "HBM GB/s", "link GB/s", "what it is")
    named = ("model", "experts", "top-k", "hidden", "inner", "shared", "dispatch", "combine", "GEMMs", "weights")
    return {
        "hardware": markdown(("hardware", "what it is"), ((f"`{name}`", text) for name, text in NEED_MEANINGS.items())),
        "schedules": catalogue(),
        "schedule keys": markdown_keys(ScheduleSpec),
        "systems": markdown(heads, ([row[key] for key in of_system] for row in systems())),
        "system keys": markdown_keys(SystemSpec),
        "models": markdown(named, ([row[key] for key in of_model] for row in models())),
        "model keys": markdown_keys(LayerSpec),
    }


def with_tables(text: str) -> str:
    """Returns a page with its tables written anew."""
    for name, table in tables().items():
        begin, end = f"<!-- table: {name} -->", "<!-- end of table -->"
        pattern = f"{re.escape(begin)}\n.*?{re.escape(end)}"
        text = re.sub(pattern, lambda _, said=f"{begin}\n{table}\n{end}": said, text, flags=re.DOTALL)
    return text


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_what_specs_and_presets_say(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert with_tables(text) == text


def test_every_table_is_in_the_guide_and_every_schedule_has_somebody() -> None:
    text = "".join((DOCS / page).read_text(encoding="utf-8") for page in PAGES)
    assert {*re.findall(r"<!-- table: (.*) -->", text)} == {*tables()}
    for name in preset_names("schedules"):
        assert 8 < len(whose(name)) < 220, name


if __name__ == "__main__":
    for file in PAGES:
        page = DOCS / file
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
