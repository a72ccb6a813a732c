"""Tuning: what a run writes, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import csv
import html
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

from agents import tune as command
from agents.opponents.read import read_contender
from agents.training.portfolio import Member, Portfolio
from agents.tuning.header import header
from agents.tuning.policy import make
from agents.tuning.report import NAME, UNSEARCHED, summarise, verdict
from agents.tuning.search import BASE, TuneSearch, changes_of, pool
from agents.tuning.spec import TuneSpec
from agents.tuning.tasks import COLUMNS
from dysharp_env.config import ConfigError
from dysharp_env.schedules import load_schedule
from dysharp_env.schedules.opponent import Played
from dysharp_env.system import load_system
from dysharp_env.workers import Workers

SMALL = [
    "--system",
    "dgx-h100",
    "--gpus",
    "2",
    "--model",
    "deepseek-v2-lite",
    "--routing",
    "recorded",
    "--tokens",
    "4,16",
]
FEW = ["--train", "1", "--validation", "1", "--test", "1", "--minutes", "0.02", "--quiet"]
SPEC = TuneSpec(
    system="dgx-h100", gpus=2, model="deepseek-v2-lite", routing="recorded", tokens=(4, 16), minutes=1, train=2
)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run."""
    folder = tmp_path_factory.mktemp("tune") / "run"
    assert command.main([*SMALL, *FEW, "--out", str(folder), "--report", str(folder.parent / "page")]) == 0
    return folder


def test_the_folder_holds_all_that_is_promised(tuned: Path) -> None:
    names = {path.name for path in tuned.iterdir()}
    assert {"schedule.yaml", "report.md", "report.json", "picture.png", "timeline.json", "schedule.h", "tasks"} <= names
    assert load_schedule(str(tuned / "schedule.yaml")).name == NAME
    report = json.loads((tuned / "report.json").read_text())
    policies = {row["policy"] for row in report["rows"]}
    assert {NAME, "dysharp", "mega-moe", "deepep", "virtual-best"} <= policies
    assert {row["renaming"] for row in report["rows"]} == {0, 1}
    assert set(report["best_of_tokens"]) == {"4", "16"}
    assert report["best_shipped"] not in (NAME, "virtual-best")


def test_the_page_says_what_the_report_says(tuned: Path) -> None:
    page = html.unescape((tuned.parent / "page" / "index.html").read_text())
    title, done, gained, beside, *rest = (tuned / "report.md").read_text().split("\n\n")
    assert title.removeprefix("# ") in page and all(text in page for text in (done, gained, beside))
    cells = [cell.strip() for line in "\n".join(rest).splitlines() if line.startswith("| ") for cell in line.split("|")]
    assert len(cells) > 100 and all(f">{cell}<" in page for cell in cells if cell.strip("-"))


def test_the_header_compiles(tuned: Path) -> None:
    checked = [
        "gcc",
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unused",
        "-x",
        "c",
        str(tuned / "schedule.h"),
    ]
    assert subprocess.run(checked, capture_output=True, text=True).stderr == ""


def test_tasks_name_every_token_of_the_layer_once_a_home_gpu(tuned: Path) -> None:
    sent: list[int] = []
    for path in sorted((tuned / "tasks" / "16-tokens").iterdir()):
        rows = [*csv.DictReader(path.open())]
        assert tuple(rows[0]) == COLUMNS
        assert [int(row["place"]) for row in rows] == [*range(len(rows))]
        starts = [float(row["start_us"]) for row in rows]
        assert starts == sorted(starts)
        for row in rows:
            assert 0 <= int(row["first_sm"]) < int(row["first_sm"]) + int(row["sms"]) <= 132
            if row["stage"] == "dispatch":
                sent += map(int, row["tokens"].split())
    assert sorted(sent) == [*range(32)]


def test_a_run_goes_on_where_it_stopped(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((tuned / "search.json").read_text())
    settings = yaml.safe_load((tuned / "tune.yaml").read_text())
    (tuned / "tune.yaml").write_text(yaml.safe_dump({**settings, "minutes": 2 * settings["minutes"]}))
    assert command.main(["--resume", str(tuned), "--quiet"]) == 0
    after = json.loads((tuned / "search.json").read_text())
    assert after["began_with"] == before["began_with"] and after["elapsed_s"] >= before["elapsed_s"]
    assert after["steps"] >= before["steps"]
    assert "best shipped schedule" in capsys.readouterr().out


def test_what_is_refused(tmp_path: Path, tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, said in (
        (SMALL[2:], "--system is missing"),
        ([*SMALL[:-1], "4,x"], "must be numbers"),
        ([*SMALL, "--renamings", "1"], "renamings"),
        ([*SMALL, "--out", str(tuned)], "holds a run already"),
        (["--resume", str(tmp_path)], "no tune.yaml"),
    ):
        assert command.main(argv) == 2
        assert said in capsys.readouterr().err


def test_parts_share_no_layer_and_follow_the_splits_of_a_trace() -> None:
    entries = [SPEC.entry(4, part) for part in ("train", "validation", "test")]
    assert [entry.split for entry in entries] == ["train", "validation", "test"]
    seeds = [{*range(entry.seeds[0], sum(entry.seeds))} for entry in entries]
    assert not seeds[0] & seeds[1] and not seeds[1] & seeds[2]
    assert SPEC.model_copy(update={"routing": "uniform"}).entry(4, "test").split == "all"


def test_every_shipped_schedule_is_some_change_of_the_base() -> None:
    base = load_schedule(BASE)
    names = {"name", "description", "aliases", "found_by", "best_of", "plans"}
    for name in ("deepep", "mega-moe", "dysharp-copies", "llep", "nvls", "dual-batch"):
        schedule = load_schedule(name).variants()[0]
        again = base.with_changes(changes_of(schedule, base))
        assert again.model_dump(exclude=names) == schedule.model_dump(exclude=names)
    for changes in pool(base):
        base.with_changes(changes)


def test_a_search_is_never_behind_what_it_began_with_and_can_be_stored(tmp_path: Path) -> None:
    train = [problem for tokens in SPEC.tokens for problem in SPEC.problems(tokens, "train")]
    search = TuneSearch(train, SPEC.train, Workers(), seed=0)
    search.start()
    for _ in range(8):
        search.step()
    assert (search.gains() >= -1e-9).all()
    search.save(tmp_path / "s.json")
    again = TuneSearch(train, SPEC.train, Workers(), seed=0)
    again.load(tmp_path / "s.json")
    assert again.steps == 8
    assert [member.changes for member in again.candidates] == [member.changes for member in search.candidates]
    np.testing.assert_array_equal(again.portfolio.best, search.portfolio.best)
    (tmp_path / "s.json").write_text('{"steps": 1}')
    with pytest.raises(ConfigError, match="damaged"):
        again.load(tmp_path / "s.json")


def test_the_choice_of_a_plan_is_the_nearest_number_of_tokens() -> None:
    plans = [load_schedule("dysharp"), load_schedule("mega-moe")]
    text = header(plans, {64: 0, 256: 1, 1024: 1}, load_system("dgx-h100"), "a */ b")
    assert "if (tokens <= 128)\n        return 0;" in text and text.count("if (tokens") == 1
    assert "a * / b" in text


def row(policy: str, workload: str, us: float) -> Played:
    return Played(policy, None, workload, us, 10.0, 1, 0)


def test_a_report_names_the_best_and_says_when_nothing_was_gained() -> None:
    times = {
        NAME: (9.0, 18.0),
        "dysharp": (10.0, 20.0),
        "comet": (9.5, 30.0),
        "virtual-best": (9.5, 20.0),
        UNSEARCHED: (9.0, 20.0),
    }
    rows = [row(policy, name, us) for policy, both in times.items() for name, us in zip("ab", both, strict=True)]
    report = summarise([*rows, row("eplb", "a", 1.0)], {"a": 64, "b": 256}, seed=0)
    assert (report.best_shipped, report.best_of_tokens) == ("dysharp", {64: "comet", 256: "dysharp"})
    assert report.tuned.value == pytest.approx(0.9)
    assert report.tuned_over_each.value == pytest.approx((9 / 9.5 * 0.9) ** 0.5)
    assert report.tuned_over_unsearched.value == pytest.approx(0.9**0.5)
    assert "3 % or more faster" in verdict(report)
    slower = summarise(
        [*(each for each in rows if each.policy != NAME), row(NAME, "a", 10), row(NAME, "b", 20)],
        {"a": 64, "b": 256},
        seed=0,
    )
    assert verdict(slower).startswith("Nothing was surely gained")


def test_two_plans_become_a_rule_and_a_policy_that_are_read_where_schedules_are(tmp_path: Path) -> None:
    base = load_schedule(BASE)
    chosen = {4: changes_of(load_schedule("deepep-ll"), base), 16: changes_of(load_schedule("mega-moe"), base)}
    problems = [problem for tokens in SPEC.tokens for problem in SPEC.problems(tokens, "validation")]
    made = make(base, chosen, problems, tmp_path, 0, Workers())
    assert [plan.name for plan in made.plans] == ["tuned-4", "tuned-16"] and made.learned
    assert load_schedule(str(tmp_path / "schedule.yaml")) == made.schedule
    by_network = read_contender(str(tmp_path)).first
    for tokens in SPEC.tokens:
        alike = SPEC.problems(tokens, "validation")
        times = [[problem.run(plan).engine.now_ps for plan in made.plans] for problem in alike]
        best = int(np.log(times).mean(axis=0).argmin())
        assert made.learned.run(alike[0]).engine.now_ps == times[0][best]
        assert by_network.run(alike[0]).engine.now_ps == times[0][best]
        assert alike[0].run(made.schedule).engine.now_ps in times[0]
    assert load_schedule(str(tmp_path / "tuned-4.yaml")).combine == load_schedule("deepep-ll").combine


def test_every_setting_can_be_changed_of_every_shipped_schedule() -> None:
    """Also of those whose groups have all SMs, and of settings without an order."""
    base = load_schedule(BASE)
    search = Portfolio(base, lambda schedules, places: np.zeros((len(schedules), len(places))), 1, 2, seed=0)
    for changes in pool(base):
        search.members = [Member(changes, np.zeros(1))]
        for _ in range(20):
            proposal = search.propose()
            assert proposal is None or proposal.near.tolist() == [0]


def test_members_that_cannot_run_are_stored(tmp_path: Path) -> None:
    train = SPEC.model_copy(update={"tokens": (4,)}).problems(4, "train")
    search = TuneSearch(train, SPEC.train, Workers(), seed=0)
    search.began_with = [Member({"chunk_tokens": 4}, np.array([0.5, np.inf]))]
    search.save(tmp_path / "s.json")
    search.load(tmp_path / "s.json")
    assert search.began_with[0].costs.tolist() == [0.5, np.inf]
