"""How the house is built: imports run one way without circles, and files and functions stay small.

Every check takes a root folder and returns a line for each offence, so that each can be seen to fail on a small broken
house too.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from dysharp_env.schedules.contenders import INSTALLED_AGENTS

ROOT = Path(__file__).resolve().parents[1]
# A room may import the rooms before it. At the top of agents/ every other file is a command; examples are commands of
# their own, which nobody imports.
ROOMS = {
    "dysharp_env": [
        *("files", "config", "native", "__init__", "system", "workload", "multimem", "simulator", "schedules"),
        *("workers", "report", "validation", "reproduction", "envs", "bench", "commands", "__main__"),
    ],
    "agents": [
        *("policies", "opponents", "__init__", "evaluation", "exact", "training", "distillation"),
        *("tuning", "kit", "examples", "command"),
    ],
}
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 400, 60
HEAVY = {
    *("agents", "torch", "stable_baselines3", "sb3_contrib", "tensorboard"),
    *("matplotlib", "jinja2", "perfetto", "ray"),
}
# What draws pictures, and the language model whose routing is recorded: imported inside the functions that need them.
ON_DEMAND = {
    "dysharp_env.report.drawing",
    "dysharp_env.report.gantt",
    "dysharp_env.report.causes",
    "dysharp_env.report.page.heat",
    "dysharp_env.report.page.layers",
    "dysharp_env.report.page.write",
    "dysharp_env.report.sweep_plot",
    "dysharp_env.validation.tables.picture",
    "dysharp_env.workload.tiny_moe",
}
# Imports every module that it is told and says which of the heavy ones that brought along.
PROBE = (
    "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]; print(*sys.modules, sep='\\n')"
)


def modules_of(root: Path) -> dict[str, Path]:
    """Returns the file of every module in the packages, by its dotted name."""
    paths = sorted(path for package in ROOMS for path in (root / package).rglob("*.py"))
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imported(name: str, path: Path) -> Iterator[str]:
    """Yields the dotted names of all that a module imports, inside functions and for the type checker too."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imports_of(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Returns for every module the others of the packages that it imports."""
    found: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for target in imported(name, path):
            while target not in modules and "." in target:
                target = target.rpartition(".")[0]
            found[name] |= {target} & modules.keys()
    return found


def room_of(name: str) -> str:
    """Returns the room that a module is in; a file that is run by its name is a command of ``agents``."""
    package, *rest = name.split(".")
    if not rest:
        return "__init__"
    is_run = rest[-1] == "__main__" or (len(rest) == 1 and rest[0] not in ROOMS["agents"])
    return "command" if package == "agents" and is_run else rest[0]


def unknown_rooms(root: Path) -> list[str]:
    """Names the modules that are in no room."""
    return [name for name in modules_of(root) if room_of(name) not in ROOMS[name.split(".")[0]]]


def imports_the_wrong_way(root: Path) -> list[str]:
    """Names imports of a later room, of one command by another, and of ``agents`` by the environment."""
    found = []
    for name, targets in imports_of(modules_of(root)).items():
        package, room = name.split(".")[0], room_of(name)
        for target in sorted(targets):
            target_package, target_room = target.split(".")[0], room_of(target)
            if package != target_package:
                is_wrong = package == "dysharp_env"
            elif {room, target_room} <= set(ROOMS[package]):
                is_wrong = ROOMS[package].index(target_room) > ROOMS[package].index(room)
                is_wrong |= room == target_room == "command" and name != target
            else:
                is_wrong = False  # unknown_rooms says so
            if is_wrong:
                found.append(f"{name} imports {target}")
    return found


def import_circles(root: Path) -> list[str]:
    """Names the first circle of files that import each other."""
    try:
        TopologicalSorter(imports_of(modules_of(root))).prepare()
    except CycleError as error:
        return [" imports ".join(reversed(error.args[1]))]
    return []


def long_files(root: Path) -> list[str]:
    """Names the files with too many lines."""
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules_of(root).items()}
    return [f"{name}: {lines} lines" for name, lines in lengths.items() if lines > MOST_LINES_OF_A_FILE]


def long_functions(root: Path) -> list[str]:
    """Names the functions with too many lines, from ``def`` to the end, docstring and all."""
    found = []
    for name, path in modules_of(root).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MOST_LINES_OF_A_FUNCTION:
                    found.append(f"{name}.{node.name}: {lines} lines")
    return found


def heavy_imports(root: Path) -> list[str]:
    """Names the heavy modules that importing the whole environment brings along, but for what is imported on demand."""
    names = [name for name in modules_of(root) if name.startswith("dysharp_env") and room_of(name) != "__main__"]
    names = [name for name in names if name not in ON_DEMAND]
    probe = subprocess.run([sys.executable, "-c", PROBE, *names], cwd=root, capture_output=True, text=True, check=True)
    return sorted(HEAVY & set(probe.stdout.split()))


def simulator_imports(root: Path) -> list[str]:
    """Names what the simulator imports of learning, inside functions too."""
    modules = {name: path for name, path in modules_of(root).items() if name.startswith("dysharp_env.simulator")}
    banned = HEAVY | {"gymnasium"}
    return [
        f"{name} imports {target}"
        for name, path in modules.items()
        for target in imported(name, path)
        if target.split(".")[0] in banned
    ]


def schedules_that_the_simulator_names(root: Path) -> list[str]:
    """Names the shipped schedules that a file of the simulator mentions as a word, in code or in prose."""
    names = sorted(path.stem for path in (root / "configs" / "schedules").glob("*.yaml"))
    return [
        f"{module} names {name}"
        for module, path in modules_of(root).items()
        for name in names
        if module.startswith("dysharp_env.simulator")
        and re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", path.read_text(encoding="utf-8"))
    ]


def unlisted_packages(root: Path) -> list[str]:
    """Names the packages that are on disk or in pyproject.toml, but not in both, as they are on disk."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    on_disk = {name for name, path in modules_of(root).items() if path.stem == "__init__"}
    elsewhere = set(settings.get("package-dir", {})) - {INSTALLED_AGENTS}
    listed = set(settings["packages"]) - elsewhere
    return sorted(on_disk ^ {name.replace(INSTALLED_AGENTS, "agents") for name in listed})


CHECKS = [
    *(unknown_rooms, imports_the_wrong_way, import_circles, long_files, long_functions),
    *(heavy_imports, simulator_imports, schedules_that_the_simulator_names, unlisted_packages),
]
LONG = "x = 1\n" * MOST_LINES_OF_A_FILE
# For each offence the files of a house that commits it, and what is said of it.
BROKEN: list[tuple[Callable[[Path], list[str]], dict[str, str], str]] = [
    (unknown_rooms, {"dysharp_env/cellar/wine.py": ""}, "dysharp_env.cellar.wine"),
    (unknown_rooms, {"agents/cellar/wine.py": ""}, "agents.cellar.wine"),
    (
        imports_the_wrong_way,
        {"dysharp_env/system/spec.py": "import dysharp_env.envs.spec", "dysharp_env/envs/spec.py": ""},
        "dysharp_env.system.spec imports dysharp_env.envs.spec",
    ),
    (
        imports_the_wrong_way,
        {"dysharp_env/bench/a.py": "def f():\n    from agents.kit import x", "agents/kit.py": ""},
        "dysharp_env.bench.a imports agents.kit",
    ),
    (
        imports_the_wrong_way,
        {"agents/opponents/a.py": "from agents.training import spec", "agents/training/spec.py": ""},
        "agents.opponents.a imports agents.training.spec",
    ),
    (
        imports_the_wrong_way,
        {"agents/policies/a.py": "from agents.kit import entry", "agents/kit.py": ""},
        "agents.policies.a imports agents.kit",
    ),
    (
        imports_the_wrong_way,
        {"agents/train.py": "from .demo import main", "agents/demo.py": "", "agents/exact/__main__.py": ""},
        "agents.train imports agents.demo",
    ),
    (
        import_circles,
        {
            "dysharp_env/system/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .b import B",
            "dysharp_env/system/b.py": "from dysharp_env.system.c import C",
            "dysharp_env/system/c.py": "def f():\n    from dysharp_env.system import a",
        },
        "dysharp_env.system.a imports dysharp_env.system.b imports dysharp_env.system.c imports dysharp_env.system.a",
    ),
    (long_files, {"agents/a.py": LONG, "agents/b.py": LONG + "x = 1\n"}, "agents.b: 401 lines"),
    (
        long_functions,
        {"agents/a.py": "def f():\n" + "    x = 1\n" * 59 + "def g():\n" + "    x = 1\n" * 60},
        "agents.a.g: 61 lines",
    ),
    (
        heavy_imports,
        {
            "dysharp_env/__init__.py": "def f():\n    import torch",
            "dysharp_env/envs/__init__.py": "import light",
            "light.py": "import matplotlib",
            "matplotlib.py": "",
            "torch.py": "",
        },
        "matplotlib",
    ),
    (
        simulator_imports,
        {"dysharp_env/simulator/twin/a.py": "def f():\n    import torch.nn"},
        "dysharp_env.simulator.twin.a imports torch.nn",
    ),
    (
        schedules_that_the_simulator_names,
        {
            "configs/schedules/quick.yaml": "",
            "configs/schedules/quick-two.yaml": "",
            "dysharp_env/simulator/a.py": '"""As quick_sort or not-quick."""\nif name == "quick-two":\n    pass',
        },
        "dysharp_env.simulator.a names quick-two",
    ),
    (
        unlisted_packages,
        {
            "pyproject.toml": "[tool.setuptools]\npackages = ['dysharp_agents']",
            "agents/__init__.py": "",
            "agents/exact/__init__.py": "",
        },
        "agents.exact",
    ),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_house_is_built_as_said(check: Callable[[Path], list[str]]) -> None:
    found = check(ROOT)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("check", "files", "offence"), BROKEN, ids=[f"{check.__name__}-{said}" for check, _, said in BROKEN]
)
def test_each_offence_is_found(
    check: Callable[[Path], list[str]], files: dict[str, str], offence: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert check(tmp_path) == [offence]


def test_every_check_is_seen_to_fail() -> None:
    assert {check for check, _, _ in BROKEN} == set(CHECKS)


def test_nothing_outside_configs_repeats_a_preset_folder() -> None:
    assert not (ROOT / "dysharp_env" / "configs").exists()
