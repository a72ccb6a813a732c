"""Imports run one way: a room uses rooms listed before it, never after; the simulator knows no Gymnasium, no torch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = [
    *("config", "system", "workload", "multimem", "simulator", "schedules"),
    *("report", "validation", "reproduction", "envs", "bench", "commands"),
]
SOURCES = sorted((ROOT / "dysharp_env").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Returns the dotted names of everything a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_rooms_before_it(path: Path):
    room = path.relative_to(ROOT / "dysharp_env").parts[0].removesuffix(".py")
    for name in imported(path):
        top, *rest = name.split(".")
        assert top != "agents", f"{path.name} imports {name}"
        if top == "dysharp_env" and rest[0] in ROOMS and room in ROOMS:
            assert ROOMS.index(rest[0]) <= ROOMS.index(room), f"{room} imports {name}"


def test_the_simulator_knows_no_gymnasium_no_torch_and_no_schedule():
    for path in (ROOT / "dysharp_env" / "simulator").rglob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & {"gymnasium", "torch", "stable_baselines3"}, path
        assert "dysharp-basic" not in path.read_text(encoding="utf-8"), path


def test_nothing_outside_configs_repeats_a_preset_folder():
    assert not (ROOT / "dysharp_env" / "configs").exists()
