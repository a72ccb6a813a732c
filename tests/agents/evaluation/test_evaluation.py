"""Evaluation: pairing, intervals, the JSON contract, and what is refused."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from agents import evaluate as command
from agents import train as training
from agents.evaluation.statistics import geometric_mean
from agents.evaluation.table import beats_on_every_workload, makespans, summarise
from agents.opponents.players import Chooser
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import Problem, load_schedule
from dysharp_env.schedules.opponent import Played, ScheduleOpponent
from dysharp_env.simulator.state.observation import DECISION_KINDS
from dysharp_env.workload.suite import load_suite


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("runs")
    for seed in ("0", "1"):
        settings = ["--set", "total_decisions=512", "--quiet"]
        assert training.main(["--config", "smoke", "--run-dir", str(root), "--seed", seed, *settings]) == 0
    return sorted(str(path) for path in root.iterdir())


def row(policy: str, workload: str, makespan_us: float, seed: int | None = None) -> Played:
    return Played(policy, seed, workload, makespan_us, 10.0, 1, 1)


def test_summary_of_hand_worked_rows() -> None:
    rows = [row("a", "w1", 20.0), row("a", "w2", 40.0)]
    rows += [row("b", "w1", 10.0, 0), row("b", "w2", 80.0, 0), row("b", "w1", 10.0, 1), row("b", "w2", 20.0, 1)]
    reference, other = summarise(rows, "a")
    assert (reference.geomean_ratio, reference.ci_low, reference.ci_high, reference.wins) == (1.0, 1.0, 1.0, 0)
    # Ratios: seed 0: 1/2 and 2; seed 1: 1/2 and 1/2. Their geometric mean is (1/4)^(1/4) = 0.7071.
    assert other.geomean_ratio == pytest.approx(0.5**0.5)
    assert other.mean_ratio_to_bound == pytest.approx((1 + 8 + 1 + 2) / 4)
    # Geometric means over seeds are 1/2 and 1: one win and one draw.
    assert (other.wins, other.workloads, other.seeds) == (1, 2, 2)
    assert other.ci_low <= other.geomean_ratio <= other.ci_high
    assert beats_on_every_workload(rows, "b", "a") == (1, 2)  # means over seeds: 10 < 20, 50 > 40


def test_ratios_are_of_geometric_means_over_renamings() -> None:
    rows = [row("a", "w", 10.0), replace(row("a", "w", 40.0), renaming=1)]
    rows += [row("b", "w", 10.0), replace(row("b", "w", 10.0), renaming=1)]
    assert makespans(rows, "a") == pytest.approx(np.array([[20.0]])) and makespans(rows[:1], "a").tolist() == [[10.0]]
    _, other = summarise(rows, "a")
    assert other.geomean_ratio == pytest.approx(0.5) and (other.wins, other.workloads) == (1, 1)


def test_what_names_of_gpus_move_is_a_mean(tmp_path: Path) -> None:
    argv = ["--suite", "smoke", "--policy", "nvls", "--json", str(tmp_path / "e.json")]
    found = []
    for renamings in ("1", "3"):
        assert command.main([*argv, "--renamings", renamings]) == 0
        found.append(json.loads((tmp_path / "e.json").read_text()))
    alone, several = found
    assert [line for line in several["rows"] if line["renaming"] == 0] == alone["rows"]
    assert several["config"]["renamings"] == 3 and len(several["rows"]) == 3 * len(alone["rows"])
    assert len({line["makespan_us"] for line in several["rows"]}) > len(alone["rows"])


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        _, low, high = geometric_mean(rng.normal(-0.2, 0.1, (1, 25)), trial, resamples=1000)
        covered += low <= np.exp(-0.2) <= high
    assert 0.88 <= covered / 200 <= 0.99
    assert geometric_mean(np.full((2, 5), 0.3), 0)[1:] == pytest.approx((np.exp(0.3), np.exp(0.3)))


def test_choices_do_not_depend_on_what_is_played_beside_them() -> None:
    problems = Problem.of_suite(load_suite("smoke").draw())
    spec = EnvSpec(max_candidates=16)
    together = Chooser(spec, 5).play(problems)
    assert together[:2] == Chooser(spec, 5).play(problems[:2])
    assert [item.ratio for item in Chooser(spec, 6).play(problems)] != [item.ratio for item in together]


def test_first_choices_with_only_dispatch_exposed_are_the_base_schedule() -> None:
    """The paper's dispatch rule is natural token order, so always taking the first chunk is its schedule."""
    problems = Problem.of_suite(load_suite("smoke").draw())
    played = Chooser(EnvSpec(exposed=("dispatch",))).play(problems)
    expected = ScheduleOpponent(load_schedule("dysharp")).play(problems)
    assert [item.makespan_us for item in played] == [item.makespan_us for item in expected]


def test_json_holds_every_policy_on_every_workload(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    policies = ["random", "first", "deepep", ",".join(runs)]
    options = [option for policy in policies for option in ("--policy", policy)]
    argv = ["--suite", "smoke", *options, "--seeds-of-random", "2", "--renamings", "2", "--json", "-", "--seed", "4"]
    assert command.main(argv) == 0
    text = capsys.readouterr().out
    result = json.loads(text)
    assert result["schema"] == "dysharp/evaluate/1" and result["seed"] == 4 and result["version"]
    assert list(result) == ["schema", "version", "seed", "config", "rows", "summary", "charged", "breakdown"]
    assert result["charged"] == [] and result["breakdown"] == []
    workloads = [item.name for item in load_suite("smoke").draw()]
    seeds: dict[str, list[Any]] = {}
    for line in result["rows"]:
        names = ["policy", "seed", "workload", "makespan_us", "lower_bound_us", "decisions", "asked"]
        assert list(line) == [*names, "busiest_decisions", "charged_us", "family_bound_us", "renaming"]
        assert line["charged_us"] is None
        assert line["makespan_us"] >= line["family_bound_us"] >= line["lower_bound_us"] > 0
        seeds.setdefault(line["policy"], []).append((line["seed"], line["renaming"], line["workload"]))
    expected = {"random": [4, 5], "first": [None], "deepep": [None], "smoke": [0, 1], "dysharp": [None]}
    renamed = [(renaming, w) for renaming in (0, 1) for w in workloads]
    assert {
        policy: [(seed, *each) for seed in given for each in renamed] for policy, given in expected.items()
    } == seeds
    # The same workload has one bound, whoever played it.
    bounds = {(line["workload"], line["lower_bound_us"]) for line in result["rows"]}
    assert len(bounds) == len(workloads)
    by_policy = {line["policy"]: line for line in result["summary"]}
    assert by_policy["smoke"]["seeds"] == 2 and by_policy["dysharp"]["geomean_ratio"] == 1.0
    assert command.main(argv) == 0
    assert capsys.readouterr().out == text


def test_table_json_file_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", str(tmp_path / "e.json"), "--plot", str(tmp_path / "e.png"), "--report", str(tmp_path / "page")]
    assert command.main(["--suite", "smoke", "--policy", "nvls", "--policy", "random", *files]) == 0
    out = capsys.readouterr().out
    assert "nvls" in out and "random" in out and "dysharp" in out
    assert json.loads((tmp_path / "e.json").read_text())["config"]["against"] == ["dysharp"]
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "page" / "index.html").read_text()
    summary = json.loads((tmp_path / "e.json").read_text())["summary"]
    best = min(summary, key=lambda line: line["geomean_ratio"])
    assert f"{best['policy']} is the fastest on the mean of 4 workloads: " in page
    for line in summary:
        interval = f"{line['geomean_ratio']:.3f} (95 %: {line['ci_low']:.3f} to {line['ci_high']:.3f})"
        assert (interval in page) == (line["policy"] != "dysharp")
    assert "By what binds, against dysharp" in page and "python -m agents.evaluate --suite smoke" in page


def test_tables_against_several_charged_and_by_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--against", "nvls", "--against", "dysharp", "--by", "skew,gpus", "--decision-us", "2.5"]
    assert command.main(["--suite", "smoke", "--policy", "first", *options, "--json", str(tmp_path / "e.json")]) == 0
    out = capsys.readouterr().out
    for against in ("nvls", "dysharp"):
        assert re.search(f"workloads, time / {against} on the same workload *\n", out)
        assert " ".join(out.split()).count(f"Suite smoke, 2.5 us for {','.join(DECISION_KINDS)}: 4 workloads") == 2
        assert f"By skew: time / {against}" in out and f"By gpus: time / {against}" in out
    result = json.loads((tmp_path / "e.json").read_text())
    assert [line["against"] for line in result["summary"]] == ["nvls"] * 3 + ["dysharp"] * 3
    by_policy = {(line["policy"], line["against"]): line for line in result["charged"]}
    plain = {(line["policy"], line["against"]): line for line in result["summary"]}
    first, nvls = ("first", "dysharp"), ("nvls", "dysharp")
    assert by_policy[first]["geomean_ratio"] > plain[first]["geomean_ratio"]
    assert by_policy[nvls] == plain[nvls]
    assert {line["by"] for line in result["breakdown"]} == {"skew", "gpus"}
    groups = [line for line in result["breakdown"] if (line["by"], line["against"]) == ("gpus", "dysharp")]
    logs = [np.log(line["geomean_ratio"]) * line["workloads"] for line in groups if line["policy"] == "nvls"]
    assert np.exp(sum(logs) / 4) == pytest.approx(plain[nvls]["geomean_ratio"])


def test_runs_of_one_policy_must_be_different_seeds(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--suite", "smoke", "--policy", f"{runs[0]},{runs[0]}"]) == 2
    assert "must differ in their seed, but have seeds [0, 0]" in capsys.readouterr().err


def schedule_file(folder: Path, file: str, **changes: object) -> str:
    """Writes the base schedule with some settings replaced."""
    path = folder / file
    path.write_text(yaml.safe_dump({**load_schedule("dysharp").model_dump(mode="json"), **changes}))
    return str(path)


def test_a_changed_copy_that_keeps_its_name_is_not_compared_with_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = schedule_file(tmp_path, "my.yaml", sms={"dispatch": 1, "combine": 1})
    assert command.main(["--suite", "smoke", "--policy", mine]) == 2
    expected = f"error: policy='{mine}' is named 'dysharp' like against='dysharp'; rename it\n"
    assert capsys.readouterr() == ("", expected)
    other = schedule_file(tmp_path, "other.yaml", sms={"dispatch": 2, "combine": 2})
    assert command.main(["--suite", "smoke", "--policy", mine, "--policy", other]) == 2
    expected = f"error: policy='{other}' is named 'dysharp' like policy='{mine}'; rename it\n"
    assert capsys.readouterr() == ("", expected)
    # Renamed, it is a contender of its own; the reference under another path is still the reference.
    renamed = schedule_file(tmp_path, "my.yaml", sms={"dispatch": 1, "combine": 1}, name="mine")
    same = schedule_file(tmp_path, "same.yaml")
    assert command.main(["--suite", "smoke", "--policy", renamed, "--policy", same, "--json", "-"]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert [line["policy"] for line in summary] == ["mine", "dysharp"]
    assert summary[0]["geomean_ratio"] != 1.0


def test_two_runs_of_one_name_are_not_one_policy_unless_joined(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--suite", "smoke", "--policy", runs[0], "--against", runs[1]]) == 2
    text = f"policy='{runs[0]}' is named 'smoke' like against='{runs[1]}'; rename it, or join run folders"
    assert text in capsys.readouterr().err
    assert command.main(["--suite", "smoke", "--policy", runs[0], "--against", os.path.relpath(runs[0])]) == 0


def test_names_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["[/red]", "[bold]b", "$x_"]
    policies = [schedule_file(tmp_path, f"{i}.yaml", name=name) for i, name in enumerate(names)]
    suite = tmp_path / "suite.yaml"
    entry = {"model": "olmoe", "gpus": 4, "tokens": 16, "routing": "uniform", "seeds": [0, 2]}
    suite.write_text(yaml.safe_dump({"name": "[/blue]$y_", "workloads": [entry]}))
    options = [word for policy in policies[1:] for word in ("--policy", policy)]
    argv = ["--suite", str(suite), *options, "--against", policies[0], "--plot", str(tmp_path / "p.png")]
    assert command.main(argv) == 0
    out = capsys.readouterr().out
    assert (
        all(name in out for name in names)
        and "Suite [/blue]$y_: 2 workloads" in out
        and "time / [/red] on the same" in out
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--policy", "runs/none"], "run folder 'runs/none' does not exist"),
        (["--policy", "randm"], "(did you mean 'random'?)"),
        (["--policy", "random", "--suite", "EMPTY"], "the suite is empty; list at least one entry under 'workloads'"),
        (["--policy", "random", "--suite", "nowhere"], "suite='nowhere' is unknown"),
        (["--policy", "random", "--against", "dyshap"], "(did you mean 'dysharp'?)"),
        (["--policy", "random", "--policy", "random"], "policy='random' is given twice"),
        (["--policy", "random", "--seeds-of-random", "0"], "seeds-of-random=0 must be at least 1"),
        (["--policy", "random", "--renamings", "0"], "renamings=0 must be at least 1"),
        (["--policy", "random", "--by", "gpu"], "by='gpu' is unknown; choose from ['gpus', 'model', 'tokens',"),
        (["--policy", "random", "--decision-us", "0"], "decision-us=0 must be above 0 and at most 1000"),
        (["--policy", "random", "--against", "dysharp", "--against", "nope"], "schedule='nope' is unknown"),
        (["--policy", "random", "--seed", "-1"], "seed=-1 must not be negative"),
        (["--policy", "random", "--json", "no/such/file.json"], "cannot write json='no/such/file.json'"),
        (["--policy", "random", "--plot", "picture.gif"], "plot='picture.gif' must end in .png or .svg or .pdf"),
        (["--policy", "FOLDER"], "is not a run folder: it has no config.yaml"),
    ],
)
def test_a_mistake_is_one_line(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("name: empty\nworkloads: []\n")
    places = {"EMPTY": str(empty), "FOLDER": str(tmp_path)}
    assert command.main(["--suite", "smoke", *(places.get(word, word) for word in argv)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err
