"""What is listed, and files that are written, edited and used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dysharp_env.__main__ import main
from dysharp_env.config import ConfigError, preset_names
from dysharp_env.report.catalogue import KINDS, policies
from dysharp_env.schedules import load_schedule
from dysharp_env.system import load_system
from dysharp_env.workload.layer import load_model
from dysharp_env.workload.routing import routing_names
from dysharp_env.workload.suite import load_suite


def listed(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["list", *argv, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_everything_that_ships_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if ": " in line)
    for kind in ("systems", "models", "schedules", "suites"):
        names = preset_names(kind)
        assert lines[f"{kind} ({len(names)})"] == ", ".join(names)
    assert all(name in lines[f"routing ({len(routing_names()) + 2})"] for name in (*routing_names(), "recorded"))
    assert any(head.startswith("policies (") for head in lines) and len(lines) == len(KINDS)


def test_rows_say_what_files_say(capsys: pytest.CaptureFixture[str]) -> None:
    document = listed(capsys, "systems")
    assert document["schema"] == "dysharp/list/1"
    rows = {row["name"]: row for row in document["systems"]}
    assert (rows["dgx-h200"]["gpus"], rows["dgx-h200"]["link_gbps"], rows["dgx-h200"]["multimem"]) == (
        8,
        450,
        "dynamic",
    )
    rows = {row["name"]: row for row in listed(capsys, "models")["models"]}
    assert (rows["kimi-k2"]["experts"], rows["kimi-k2"]["top_k"], rows["kimi-k2"]["shared"]) == (384, 8, 1)
    assert rows["gpt-oss-20b"]["weights"] == "mxfp4"
    on = ("--system", "gb200-nvl72", "--gpus", "72")
    rows = {row["name"]: row for row in listed(capsys, "schedules", *on)["schedules"]}
    system = load_system("gb200-nvl72", 72)
    assert rows["mega-moe"]["barriers_us"] == 2 * system.overhead_us("barrier")
    assert (rows["moe-hub"]["hardware"], rows["dysharp-open"]["hardware"]) == ("hub", "today or dynamic-multimem")
    rows = {row["name"]: row for row in listed(capsys, "suites")["suites"]}
    assert rows["smoke"]["workloads"] == len(load_suite("smoke").draw())
    assert "unseen model" in rows["held-out"]["labels"]


def test_a_table_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "systems"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("11 systems") and all(name in out for name in preset_names("systems"))


def test_run_folders_are_found(empty_folder: Path) -> None:
    best = empty_folder / "runs" / "mine" / "seed-3" / "best"
    best.mkdir(parents=True)
    card = {"name": "mine", "seed": 3, "env": {"schedule": "dysharp"}, "validation_ratio": 1.25}
    (best / "policy.json").write_text(json.dumps(card))
    (empty_folder / "runs" / "broken" / "best").mkdir(parents=True)
    (empty_folder / "runs" / "broken" / "best" / "policy.json").write_text("{")
    last = list(policies())[-1]
    text = "run 'mine', seed 3, on dysharp, 1.250 of the bound on validation"
    assert last == {"name": "runs/mine/seed-3", "description": text}
    assert next(policies())["name"] == "reference"


@pytest.mark.parametrize(
    ("kind", "presets", "load"),
    [
        ("system", ("dgx-h200", "gb300-nvl72"), load_system),
        ("model", ("deepseek-v3", "olmoe", "gpt-oss-20b"), load_model),
        ("suite", ("smoke", "skew"), load_suite),
        ("schedule", ("dysharp", "tutel", "moonep", "dysharp-open"), load_schedule),
    ],
)
def test_a_template_is_the_preset_under_another_name(
    kind: str, presets: tuple[str, ...], load: Any, empty_folder: Path
) -> None:
    for preset in presets:
        assert main(["new", kind, "mine", "--from", preset, "--force"]) == 0
        given, mine = load(preset).model_dump(), load("mine.yaml").model_dump()
        for key in ("name", "description", "aliases", "source", "found_by"):
            given.pop(key, None)
            mine.pop(key, None)
        assert given == mine
        text = (empty_folder / "mine.yaml").read_text()
        assert text.startswith(f"# A {kind} of your own, with the values of {preset}.")
        assert "Required." in text


def test_from_templates_to_a_layer(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "system", "my-board", "--out", "board.yaml"]) == 0
    assert main(["new", "model", "my-model", "--from", "olmoe", "--out", "model.yaml"]) == 0
    assert "python -m dysharp_env compare --model model.yaml" in capsys.readouterr().out
    board = empty_folder / "board.yaml"
    board.write_text(board.read_text().replace("num_gpus: 8", "num_gpus: 4").replace("gbps: 450", "gbps: 225"))
    options = ["--system", "board.yaml", "--model", "model.yaml", "--routing", "uniform", "--tokens", "16"]
    assert main(["simulate", *options, "--json", "-"]) == 0
    config = json.loads(capsys.readouterr().out)["config"]
    assert (config["system"]["num_gpus"], config["system"]["link"]["gbps"], config["layer"]["name"]) == (
        4,
        225,
        "my-model",
    )


def test_all_keys_that_are_wrong_are_told_at_once(empty_folder: Path) -> None:
    assert main(["new", "model", "mine"]) == 0
    file = empty_folder / "mine.yaml"
    text = file.read_text()
    for key, other in (("hidden:", "hiden:"), ("top_k:", "# top_k:"), ("experts:", "expert:")):
        text = text.replace(f"\n{key}", f"\n{other}")
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_model("mine.yaml")
    said = str(error.value)
    assert said.startswith(
        "mine.yaml: unknown keys 'hiden' (did you mean 'hidden'?), 'expert' (did you mean 'experts'?); known keys are ["
    )
    assert said.endswith("]; keys 'hidden', 'experts', 'top_k' are missing")
