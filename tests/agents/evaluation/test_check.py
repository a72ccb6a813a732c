"""Stored decision lists are confirmed by the twin, and what was changed in them is noticed."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents import check, evaluate, train
from agents.evaluation.decision_list import AskedSpec, DecisionList, read_decisions, routing_digest, write_decisions
from dysharp_env.config import find_config
from dysharp_env.schedules import Exposure, Problem, Starter, load_schedule
from dysharp_env.simulator import engine as engine_module
from dysharp_env.simulator.state.observation import SPLIT
from dysharp_env.workload import Placement, ScenarioSpec, Workload, load_model
from dysharp_env.workload.suite import SuiteEntry

SUITE = """
name: tiny
workloads:
  - {model: olmoe, gpus: 2, tokens: 5, routing: uniform, seeds: [3, 2], compute_scale: 0.5}
"""

FEWER_COSTS = {"pays.dispatch": ("launch", "count_exchange")}


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the rows of a learned policy, random and first choices, look-ahead, and two schedules."""
    root = tmp_path_factory.mktemp("check")
    (root / "tiny.yaml").write_text(SUITE)
    settings = ["--set", "total_decisions=512", "--quiet", "--seed", "2"]
    assert train.main(["--config", "smoke", "--run-dir", str(root / "runs"), *settings]) == 0
    (run,) = (root / "runs").iterdir()
    policies = [
        option for name in (str(run), "random", "first", "tutel", "look-ahead:dysharp") for option in ("--policy", name)
    ]
    argv = ["--suite", str(root / "tiny.yaml"), *policies, "--seeds-of-random", "1", "--rollouts", "50", "--seed", "4"]
    argv += ["--renamings", "2"]
    assert evaluate.main([*argv, "--decisions", str(root / "lists"), "--json", str(root / "rows.json")]) == 0
    return root / "lists"


def rows_of(lists: Path) -> list[dict[str, Any]]:
    return json.loads((lists.parent / "rows.json").read_text())["rows"]


def test_every_row_of_the_table_is_stored_and_confirmed(
    lists: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = [read_decisions(path) for path in lists.iterdir()]
    rows = rows_of(lists)
    assert len(stored) == len(rows) == 24
    for row in rows:
        key = tuple(row[name] for name in ("policy", "seed", "workload", "renaming"))
        (match,) = [d for d in stored if (d.policy, d.seed, d.workload, d.renaming) == key]
        assert match.makespan_ps == round(row["makespan_us"] * 1e6)
        assert len(match.choices) == (row["asked"])
        assert row["asked"] <= row["decisions"]
    assert sum(bool(d.choices) for d in stored) == 16  # all but those of the two schedules
    assert all(len(d.schedule.best_of) == (d.policy == "tutel") for d in stored)

    def must_not_run(_: Any) -> None:
        raise AssertionError("the checker uses the engine")

    monkeypatch.setattr(engine_module, "advance", must_not_run)
    assert check.main([str(lists)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "24 of 24 rows confirmed, all of shipped parts"
    assert all(line.startswith("confirmed") for line in lines[:24])
    parts = [line.partition(", sha256 ")[0] for line in lines[24:-1]]
    schedules = [f"shipped: schedule '{name}'" for name in ("dysharp", "tutel")]
    assert parts == ["shipped: model 'olmoe'", "shipped: routing 'uniform'", *schedules, "shipped: system 'dgx-h100'"]


def test_a_table_is_proved_by_its_lists_alone(lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = lists.parent / "rows.json"
    assert check.main([str(lists), "--table", str(table)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{table}: all 24 rows are proved, and its summaries follow from them"

    document = json.loads(table.read_text())
    document["summary"][0]["geomean_ratio"] *= 0.9
    names = document["summary"][0]["policy"], document["summary"][0]["against"]
    document["rows"][-1]["makespan_us"] -= 1e-6
    document["rows"][-2]["lower_bound_us"] *= 1.1
    document["rows"].append({**document["rows"][0], "renaming": 2})
    forged = tmp_path / "forged.json"
    forged.write_text(json.dumps(document))
    assert check.main([str(lists), "--table", str(forged)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert sum("the table says" in line for line in out) == 1
    assert sum("the table's lower bound is" in line for line in out) == 1
    unproved = [line.partition(": ")[2] for line in out if line.startswith("NOT PROVED")]
    assert unproved[0].startswith("no list proves") and unproved[0].endswith("renaming 2")
    assert f"the summary of {names[0]} against {names[1]} does not follow from the rows" in unproved


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[]", "must hold a mapping"),
        ("{}", "is no table of results: its schema is 'None'"),
        ('{"schema": "dysharp/evaluate/1", "rows": [{"policy": 3}]}', "is damaged: rows.0.policy"),
        ('{"schema": "dysharp/evaluate/1"}', "is damaged: rows must be a list"),
    ],
)
def test_a_damaged_table_gives_one_line(
    lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, expected: str
) -> None:
    (tmp_path / "table.json").write_text(content)
    assert check.main([str(lists), "--table", str(tmp_path / "table.json")]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


def test_changes_of_group_sizes_are_replayed(tmp_path: Path) -> None:
    exposure = Exposure(("split", "combine"), True, splits=((8, 11), (1, 1, 40), (40, 8, 2)), split_moments=5)
    schedule, scenario = (
        load_schedule("dysharp-order"),
        ScenarioSpec(model="olmoe", gpus=2, tokens=9, routing="uniform"),
    )
    built = scenario.build()
    workload = built.draw(5)
    engine = Starter(built.system, workload.layer, schedule, exposure=exposure).start(workload).engine
    rng, choices, resized = np.random.default_rng(1), [], 0
    while (asked := engine.advance()) is not None:
        choices.append(int(rng.choice(np.flatnonzero(asked.mask))))
        resized += asked.kind == SPLIT and len(choices) > 1 and choices[-1] > 0
        engine.decide(choices[-1])
    stored = DecisionList(
        policy="random",
        seed=1,
        workload=SuiteEntry(**scenario.model_dump()).name_of(built, workload),
        scenario=scenario,
        workload_seed=5,
        routing_sha256=routing_digest(workload),
        schedule=schedule,
        asked=AskedSpec.of(exposure),
        choices=tuple(choices),
        makespan_ps=engine.now_ps,
    )
    write_decisions(tmp_path / "list.json.gz", stored)
    read = read_decisions(tmp_path / "list.json.gz")
    assert resized > 3 and read.asked.exposure() == exposure
    assert check.fault_of(read) is None
    first = 1 - choices[0] if choices[0] < 2 else 0
    assert check.fault_of(read.model_copy(update={"choices": (first, *choices[1:])})) is not None


def change(lists: Path, tmp_path: Path, policy: str, edit: Callable[[DecisionList], dict[str, Any]]) -> Path:
    """Returns a file that holds the first list of a policy with some fields edited."""
    original = next(d for d in map(read_decisions, sorted(lists.iterdir())) if d.policy == policy)
    path = tmp_path / "changed.json.gz"
    write_decisions(path, original.model_copy(update=edit(original)))
    return path


def free_of_charge(decisions: DecisionList) -> dict[str, Any]:
    """Returns the list of a schedule that pays nothing, under its name, with the makespan that it then has."""
    schedule = decisions.schedule.with_changes({"pays.dispatch": ("launch",)})
    scenario = decisions.scenario.build()
    problem = Problem.of(scenario.system, scenario.draw(decisions.workload_seed)).renamed(decisions.renaming)
    run = problem.start(schedule)
    run.engine.run()
    return {"schedule": schedule, "makespan_ps": run.engine.now_ps}


def longer(decisions: DecisionList) -> dict[str, Any]:
    return {"choices": (*decisions.choices, 0)}


@pytest.mark.parametrize(
    ("policy", "edit", "expected"),
    [
        ("tutel", lambda d: {"makespan_ps": d.makespan_ps + 1}, "the stored makespan is"),
        ("random", lambda d: {"makespan_ps": d.makespan_ps - 1}, "the stored makespan is"),
        ("random", lambda d: {"choices": (31, *d.choices[1:])}, "choice 0 takes row 31, which is not legal"),
        ("random", lambda d: {"choices": (9999, *d.choices[1:])}, "choice 0 takes row 9999, which is not legal"),
        ("random", longer, "it is over after"),
        ("tutel", longer, "it is over after 0 choices, but 1 are stored"),
        ("random", lambda d: {"choices": d.choices[:-1]}, "it goes on after all"),
        ("first", lambda d: {"renaming": 1 - d.renaming}, "draw another routing"),
        ("first", lambda d: {"workload_seed": d.workload_seed + 7}, "it says that it played 'dgx-h100 x2 olmoe"),
        ("first", lambda d: {"routing_sha256": "0" * 64}, "draw another routing"),
        ("first", lambda d: {"workload": "held-out, the hardest"}, "it says that it played 'held-out, the hardest'"),
        ("first", lambda d: {"scenario": d.scenario.with_changes({"tokens": 6})}, "it says that it played"),
        ("first", lambda d: {"scenario": d.scenario.with_changes({"system": "dgx-b200"})}, "it says that it played"),
        ("dysharp", lambda d: {"policy": "reference"}, "it says that 'reference' played, but nobody was asked"),
        ("random", lambda d: {"policy": "dysharp"}, "somebody was asked, which no schedule does"),
        ("random", lambda d: {"asked": AskedSpec()}, "it says that 'random' played, but nobody was asked"),
        ("random", lambda d: {"asked": d.asked.with_changes({"kinds": ("gemm",)})}, ""),
        ("dysharp", free_of_charge, "its schedule has the name 'dysharp' of a shipped one, and is another"),
        (
            "first",
            lambda d: {
                "schedule": d.schedule.with_changes({"name": "mine", "pays.dispatch": ("launch", "count_exchange")})
            },
            "the stored makespan is",
        ),
    ],
)
def test_what_was_changed_is_noticed(
    lists: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    policy: str,
    edit: Callable[[DecisionList], dict[str, Any]],
    expected: str,
) -> None:
    path = change(lists, tmp_path, policy, edit)
    assert check.main([str(path)]) == 1
    line, *_, total = capsys.readouterr().out.splitlines()
    assert line.startswith(f"NOT CONFIRMED  {path}: ") and expected in line
    assert total.startswith("0 of 1 rows confirmed")


def test_who_is_only_said_to_have_played_is_not_in_the_table(
    lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = ["--table", str(lists.parent / "rows.json")]
    for forged in ({"policy": "reference"}, {"seed": 77}):
        path = change(lists, tmp_path, "random", lambda _, forged=forged: forged)  # type: ignore[misc]
        assert check.main([str(path)]) == 0
        assert check.main([str(path), *table]) == 1
        assert "the table has no such row" in capsys.readouterr().out


def test_what_is_printed_is_escaped(lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "sure\nconfirmed" + "x" * 300
    path = change(lists, tmp_path, "random", lambda _: {"policy": name, "workload": name})
    assert check.main([str(path)]) == 1
    out = capsys.readouterr().out
    assert "sure\\nconfirmed" in out and out.count("x" * 250) == 0
    assert sum(line.startswith("confirmed") for line in out.splitlines()) == 0
    path = change(lists, tmp_path, "random", lambda _: {"policy": "\x1b[2Jconfirmed"})
    assert check.main([str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.endswith(
        r"a text holds the character '\x1b', which cannot be shown" "\n"
    )


def test_a_system_file_with_the_name_of_a_preset_is_told(
    lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = find_config("systems", "dgx-h100").read_text()
    for name, said in (("mine", "NOT SHIPPED: system 'mine'"), ("dgx-h100", "its system has the name 'dgx-h100'")):
        system = tmp_path / f"{name}.yaml"
        system.write_text(text.replace("num_sms: 132", "num_sms: 131"))
        assert system.read_text() != text

        def with_system(d: DecisionList, system: Path = system) -> dict[str, Any]:
            return {"scenario": d.scenario.with_changes({"system": str(system)})}

        assert check.main([str(change(lists, tmp_path, "first", with_system))]) == 1
        assert said in capsys.readouterr().out


def test_other_choices_do_not_pass(lists: Path) -> None:
    """Many a choice of a random row, changed by itself, ends at another time; the others change no makespan."""
    original = next(d for d in map(read_decisions, sorted(lists.iterdir())) if d.policy == "random")
    changed = [
        original.model_copy(update={"choices": (*original.choices[:at], 1 - choice, *original.choices[at + 1 :])})
        for at, choice in enumerate(original.choices)
        if choice < 2
    ]
    faults = [check.fault_of(decisions) for decisions in changed]
    assert sum(fault is not None for fault in faults) >= 10


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"not gzip", "is not a whole decision list: it is no gzip file"),
        (gzip.compress(b"{}" * 100, mtime=0)[:-9], "is not a whole decision list: its end is missing or damaged"),
        (gzip.compress(b"[1]", mtime=0), "is not a decision list: it holds no JSON object"),
        (gzip.compress(b'{"choices": [1', mtime=0), "is damaged: it is not JSON"),
        (gzip.compress(b"\xff\xfe\xfa", mtime=0), "is no text in UTF-8"),
        (gzip.compress(b'{"format": "other/1"}', mtime=0), "is not a decision list: format='other/1' must be"),
        (gzip.compress(b"{}", mtime=0), "are missing"),
    ],
)
def test_damaged_files_give_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, expected: str
) -> None:
    path = tmp_path / "damaged.json.gz"
    path.write_bytes(content)
    assert check.main([str(path)]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_missing_files_and_folders_give_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([str(tmp_path / "none.json.gz")]) == 2
    assert check.main([str(tmp_path)]) == 2
    assert evaluate.main(["--policy", "first", "--decisions", str(tmp_path / "a" / "b")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors == [
        f"error: cannot read '{tmp_path / 'none.json.gz'}': No such file or directory",
        f"error: folder '{tmp_path}' holds no decision list (*.json.gz)",
        f"error: cannot write decisions='{tmp_path / 'a' / 'b'}': No such file or directory",
    ]


def test_a_digest_tells_homes_and_replicas_apart() -> None:
    layer = load_model("small", 2).with_changes({"experts": 2})
    ids = np.array([[0, 1], [1, 0], [0, 1]])
    plain, other = Placement(2, np.array([0, 1])), Placement(2, np.array([0, 1]), np.array([1, 0]))
    digests = {
        routing_digest(Workload(layer, np.array(tokens), ids, placement, "by hand"))
        for tokens, placement in (([1, 2], plain), ([2, 1], plain), ([1, 2], other))
    }
    assert len(digests) == 3
