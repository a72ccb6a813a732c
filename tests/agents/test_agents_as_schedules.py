"""An agent is a schedule everywhere: commands take its name, Python loads it, the wheel carries the shipped one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from agents import load_agent
from agents.evaluate import main as evaluate
from agents.opponents.players import FunctionOpponent
from agents.opponents.read import read_contender
from agents.policies.card import reference_runs
from dysharp_env.__main__ import main
from dysharp_env.config import ConfigError
from dysharp_env.schedules import Problem
from dysharp_env.simulator.engine import Decision
from dysharp_env.workload import ScenarioSpec

ROOT = Path(__file__).parents[2]
TINY = {"gpus": 4, "tokens": 16, "routing": "uniform"}
OPTIONS = [part for name, value in TINY.items() for part in (f"--{name}", str(value))]
FUNCTIONS = """
def warm_first(decision):
    return decision.best(decision.feature("weights_in_l2") + decision.feature("size"))


warm_first.env = {"schedule": "dysharp-l2", "exposed": ["gemm"], "hold": False}


def last(decision):
    return decision.mask.nonzero()[0][-1]


def none(decision):
    return len(decision.mask)


def unknown(decision):
    return 0


unknown.env = {"shedule": "dysharp"}
number = 7
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_own_rules.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_own_rules", raising=False)
    return "my_own_rules"


def problem() -> Problem:
    scenario = ScenarioSpec(**TINY).build()
    return Problem.of(scenario.system, scenario.draw(0))


def printed(argv: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*argv, *OPTIONS, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


SORTS = ["reference", "RUN", "RULE", "random", "first", "look-ahead:dysharp", "FUNCTIONS:warm_first", "FUNCTIONS:last"]


@pytest.mark.parametrize("command", ["simulate", "compare", "explain"])
@pytest.mark.parametrize("given", SORTS)
def test_commands_play_whoever_is_named(
    given: str, command: str, functions: str, row_run: str, rule_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = given.replace("RUN", row_run).replace("RULE", rule_file).replace("FUNCTIONS", functions)
    document = printed([command, "--schedule", given], capsys)
    contender = read_contender(given)
    (run,), (described,) = document["runs"], document["config"]["schedules"]
    played = contender.opponents[0].run(problem())
    assert (run["schedule"], run["makespan_us"]) == (contender.name, played.engine.now_ps / 1e6)
    assert (described["name"], described["given"]) == (contender.name, given)
    assert described["schedule"]["name"] == contender.opponents[0].base.name
    assert described["asked"]["kinds"] == [*contender.opponents[0].exposure.kinds]
    if command != "explain":
        assert run["lower_bound_us"] <= run["family_bound_us"] <= run["makespan_us"]


def test_names_stand_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["dysharp", "reference", "random"]
    given = [part for name in names for part in ("--schedule", name)]
    document = printed(["compare", *given, "--against", "reference"], capsys)
    assert [run["schedule"] for run in document["runs"]] == names and document["config"]["against"] == "reference"
    assert main(["compare", *given, *OPTIONS, "--against", "reference"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "vs reference" in lines[3] and "random: seed 0, the first of 0, 1, 2" in lines
    # Random choices are asked what the agent is asked.
    _, reference, random = document["config"]["schedules"]
    assert random["asked"] == reference["asked"] and random["schedule"] == reference["schedule"]
    picture = tmp_path / "p.png"
    assert main(["simulate", "--schedule", "reference", *OPTIONS, "--picture", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_evaluate_takes_the_same_names_under_the_same_option(
    functions: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["reference", f"{functions}:last"]
    given = [part for name in names for part in ("--schedule", name)]
    assert evaluate(["--suite", "smoke", *given, "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {row["policy"] for row in document["rows"]} == {*names, "dysharp"}
    first = document["config"]["policies"][0]
    assert first["runs"] == [str(path) for path in reference_runs()]


def test_a_function_chooses_by_names_as_one_does_by_numbers(functions: str) -> None:
    asked: list[Decision] = []

    def by_numbers(decision: Decision) -> int:
        asked.append(decision)
        assert decision.kind_name == "gemm" and decision.context_value("is_gemm") == 1
        return int(decision.features[: decision.num_candidates, [2, 5]].sum(axis=1).argmax())

    by_numbers.env = {"schedule": "dysharp-l2", "exposed": ["gemm"], "hold": False}  # type: ignore[attr-defined]
    mine = FunctionOpponent.of(by_numbers, "mine").run(problem())
    named = read_contender(f"{functions}:warm_first").first.run(problem())
    assert mine.result() == named.result() and mine.engine.asked == len(asked) > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("my_own_rules:none", "'my_own_rules:none' answers a decision of kind dispatch with 32; legal rows are [0, 1"),
        ("my_own_rules:unknown", "'my_own_rules:unknown': env: unknown key 'shedule' (did you mean 'schedule'?)"),
        ("my_own_rules:number", "schedule='my_own_rules:number': module 'my_own_rules' has no function 'number'"),
        ("my_own_rules.more:last", "schedule='my_own_rules.more:last': Python finds no module 'my_own_rules.more'"),
        ("no_such_rules:last", "schedule='no_such_rules:last': Python finds no module 'no_such_rules'"),
        ("runs/none", "run folder 'runs/none' does not exist"),
        ("none.json", "cannot read 'none.json'"),
        ("look-ahead:dysharpp", "schedule='dysharpp' is unknown"),
        ("refrence", "(did you mean 'reference'?)"),
        ("dysharpp+moonep:multicast", "schedule='dysharpp+moonep:multicast' is unknown; choose from ['random', "),
    ],
)
def test_a_name_that_stands_for_nobody_is_one_line(
    given: str, message: str, functions: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *OPTIONS, "--schedule", given]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err


def test_a_mistake_in_a_function_s_own_module_is_shown_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_rules.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        read_contender("broken_rules:last")


def test_an_agent_plays_in_python_what_the_command_shows(capsys: pytest.CaptureFixture[str]) -> None:
    scheduled = load_agent("reference").schedule(**TINY, seed=3)
    (run,) = printed(["simulate", "--schedule", "reference", "--seed", "3"], capsys)["runs"]
    assert scheduled.makespan_us == run["makespan_us"] and scheduled.result.family_bound_us == run["family_bound_us"]
    assert len(scheduled.table) > 0 and len([*scheduled.decisions()]) == scheduled.run.engine.asked > 0
    with pytest.raises(ConfigError, match="^schedule: unknown key 'token' \\(did you mean 'tokens'"):
        load_agent("dysharp").schedule(token=3)


def test_the_guide_s_function_is_asked_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "dysharp_env" / "docs" / "suites-and-evaluation.md").read_text(encoding="utf-8")
    (function,) = re.findall(r"```python\n(def warm_first.*?)```", page, flags=re.DOTALL)
    (tmp_path / "guide_rules.py").write_text(function)
    monkeypatch.syspath_prepend(tmp_path)
    contender = read_contender("guide_rules:warm_first")
    assert contender.first.exposure.kinds == ("dispatch", "gemm")
    assert contender.first.run(problem()).engine.done


def test_schedules_bring_no_torch_along() -> None:
    code = "import sys; from dysharp_env.__main__ import main; import agents;"
    code += f"main({['simulate', *OPTIONS, '--schedule', 'deepep+moonep']}); print('torch' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert child.stdout.endswith("False\n")


def test_the_wheel_carries_the_shipped_agent(tmp_path: Path) -> None:
    """Built offline from a copy of what git tracks, unpacked, and loaded with nothing else of the checkout in reach."""
    source, wheels, site = (tmp_path / name for name in ("source", "wheels", "site"))
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("what is shipped is known from git")
    for name in listed.stdout.split("\0"):
        if name and (ROOT / name).is_file() and not name.startswith("tests/"):
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*pip, "--wheel-dir", str(wheels), str(source)], capture_output=True, text=True)
    if "setuptools" in built.stderr and built.returncode:
        pytest.skip("building needs setuptools")
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    assert len([*(site / "dysharp_agents" / "shipped").rglob("*.safetensors")]) == len(reference_runs())
    assert not [*(site / "dysharp_agents" / "shipped").rglob("events.*")]
    # So that type checkers see the annotations of both.
    assert all((site / package / "py.typed").is_file() for package in ("dysharp_agents", "dysharp_env"))
    # Playing would compile the engine again, which takes a minute.
    code = "import dysharp_agents as agents; players = agents.load_agent('reference').contender.opponents;"
    code += "print(agents.__file__, *(player.seed for player in players), players[0].network.linear.sum())"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    players = load_agent("reference").contender.opponents
    expected = [
        site / "dysharp_agents" / "__init__.py",
        *(player.seed for player in players),
        players[0].network.linear.sum(),
    ]
    assert child.stdout.split() == [*map(str, expected)]
