from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from dysharp_env import __version__
from dysharp_env.__main__ import COMMANDS, main
from dysharp_env.commands import validate
from dysharp_env.config import preset_names
from dysharp_env.schedules.ideal import RESOURCES
from dysharp_env.validation.rows import ValidationRow
from dysharp_env.workload import ScenarioSpec

TINY = ("--gpus", "4", "--tokens", "16")
RUN_KEYS = [
    *(
        "schedule",
        "hardware",
        "variant",
        "layer",
        "makespan_us",
        "lower_bound_us",
        "family_bound_us",
        "ratio",
        "phases_us",
        "wire_bytes",
    ),
    "payload_bytes",
    *("utilisation", "events", "decisions", "wall_s"),
]


def test_simulate_prints_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *TINY]) == 0
    out = capsys.readouterr().out
    assert out.startswith("dysharp on 4 GPUs of dgx-h100: deepseek-v2-lite, top-6 of 64 experts, 16 tokens per GPU")
    for text in ("makespan", "Stages, us", "GEMM-2", "Traffic of all GPUs, MB", "combine request", "busiest GPU"):
        assert text in out


def test_simulate_json_is_all_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *TINY, "--seed", "3", "--schedule", "deepep", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["schema", "version", "seed", "config", "runs", "totals"]
    assert (document["schema"], document["version"], document["seed"]) == ("dysharp/simulate/1", __version__, 3)
    assert document["config"]["scenario"]["tokens"] == 16 and document["config"]["system"]["num_gpus"] == 4
    (run,) = document["runs"]
    assert list(run) == RUN_KEYS
    assert run["schedule"] == "deepep" and run["ratio"] == pytest.approx(run["makespan_us"] / run["lower_bound_us"])
    assert list(run["phases_us"]) == ["dispatch", "gemm1", "gemm2", "combine"]
    assert run["phases_us"]["combine"][1] == run["makespan_us"]
    for kind in ("wire_bytes", "payload_bytes"):
        assert list(run[kind]) == ["up", "down", "by_purpose"]
        assert run[kind]["up"] + run[kind]["down"] == sum(run[kind]["by_purpose"].values())
    assert {name: list(use) for name, use in run["utilisation"].items()} == {
        name: ["mean", "max"] for name in ("uplink", "downlink", "sm", "hbm")
    }


def test_simulate_follows_its_seed(capsys: pytest.CaptureFixture[str]) -> None:
    def makespan_us(seed: int) -> float:
        main(["simulate", *TINY, "--seed", str(seed), "--json", "-"])
        return json.loads(capsys.readouterr().out)["runs"][0]["makespan_us"]

    assert makespan_us(0) == makespan_us(0) != makespan_us(1)


def test_simulate_writes_every_file(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"json": "r.json", "timeline": "t.json", "csv": "s.csv", "picture": "p.png"}
    options = [part for option, name in files.items() for part in (f"--{option}", name)]
    assert main(["simulate", *TINY, *options]) == 0
    assert sorted(os.listdir()) == sorted(files.values())
    out = capsys.readouterr().out
    assert all(f"wrote {name}" in out for name in files.values())
    assert json.loads((empty_folder / "r.json").read_text())["schema"] == "dysharp/simulate/1"
    assert (empty_folder / "p.png").read_bytes().startswith(b"\x89PNG")
    assert (empty_folder / "s.csv").read_text().startswith("item,stage,gpu,resource,tokens,expert,start_us,end_us\n")
    assert "traceEvents" in json.loads((empty_folder / "t.json").read_text())


def test_compute_scale_leaves_communication_alone(capsys: pytest.CaptureFixture[str]) -> None:
    busy = []
    for scale in ("1", "0.001"):
        main(["simulate", *TINY, "--compute-scale", scale, "--json", "-"])
        run = json.loads(capsys.readouterr().out)["runs"][0]
        busy.append(run["utilisation"]["sm"]["mean"] * run["makespan_us"])
    assert busy[1] < 0.01 * busy[0]


def test_compare_runs_every_preset_and_sorts_by_makespan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *TINY]) == 0
    out = capsys.readouterr().out
    lines = [line.split("│") for line in out.splitlines() if line.startswith("│")]
    table = {cells[1].strip(): [cell.strip() for cell in cells[3:]] for cells in lines}
    assert set(table) == set(preset_names("schedules"))
    makespans = [float(cells[0]) for cells in table.values()]
    assert makespans == sorted(makespans)
    assert "vs deepep" in out and table["deepep"][3] == "1.000x"
    # Over the bound of any schedule, and over that of its own program.
    assert all(float(cells[1]) >= float(cells[2]) >= 1 for cells in table.values())


def test_compare_json_and_against(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *TINY, "--schedule", "nvls", "--schedule", "dysharp", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "dysharp/compare/1" and document["config"]["against"] == "nvls"
    assert [run["schedule"] for run in document["runs"]] == ["nvls", "dysharp"]
    assert all(list(run) == RUN_KEYS for run in document["runs"])


@pytest.mark.parametrize("command", ["simulate", "compare"])
def test_resolution_is_recorded(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    events = []
    for resolution in ("token", "packet"):
        options = ["--schedule", "deepep", "--resolution", resolution, "--json", "-"]
        assert main([command, *TINY, *options]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["config"]["resolution"] == resolution
        events.append(document["runs"][0]["events"])
    assert events[1] > 5 * events[0]


def test_packets_have_a_lane_for_every_plane(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--gpus", "2", "--tokens", "8", "--resolution", "packet", "--timeline", "t.json", "--picture", "p.png"]
    assert main(["simulate", *options]) == 0
    events = json.loads((empty_folder / "t.json").read_text())["traceEvents"]
    lanes = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert {f"uplink, plane {plane}" for plane in range(4)} < lanes
    last_us = {}
    for event in sorted((event for event in events if event["ph"] == "X"), key=lambda event: event["ts"]):
        lane = event["pid"], event["tid"]
        assert event["ts"] >= last_us.get(lane, 0.0) - 1e-6
        last_us[lane] = event["ts"] + event["dur"]


def test_several_layers_have_a_row_each_and_a_total(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--gpus", "4", "--tokens", "16,0,9,5", "--layer-index", "3,1")
    pair = ("--schedule", "deepep", "--schedule", "dysharp")
    assert main(["compare", *options, *pair, "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["config"]["scenario"]["tokens"] == [16, 0, 9, 5]
    runs = document["runs"]
    assert [(run["layer"], run["schedule"]) for run in runs] == [
        *((layer, name) for layer in (3, 1) for name in ("deepep", "dysharp")),
    ]
    for total in document["totals"]:
        mine = [run for run in runs if run["schedule"] == total["schedule"]]
        assert total["layers"] == 2 and total["makespan_us"] == sum(run["makespan_us"] for run in mine)
        assert total["lower_bound_us"] == sum(run["lower_bound_us"] for run in mine)
        assert total["ratio"] == total["makespan_us"] / total["lower_bound_us"]
    # Both commands run the same.
    assert main(["simulate", *options, "--schedule", "deepep", "--json", "-"]) == 0
    assert [run["makespan_us"] for run in json.loads(capsys.readouterr().out)["runs"]] == [
        run["makespan_us"] for run in runs if run["schedule"] == "deepep"
    ]
    assert main(["compare", *options, *pair]) == 0
    out = capsys.readouterr().out
    assert "0 to 16 tokens per GPU, recorded layers=3,1 split=all seed=0; lower bound" in out
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert [cells[0] for cells in lines[:3]] == ["3", "1", "total"] and lines[0][2:] == [
        f"{run['makespan_us']:.1f}" for run in runs[:2]
    ]
    assert {cells[0] for cells in lines[3:]} == {"deepep", "dysharp"} and "All 2 layers, fastest first" in out
    assert main(["simulate", *options]) == 0
    assert "2 layers: makespans" in capsys.readouterr().out


def test_compare_leaves_out_presets_without_hardware(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    from dysharp_env.config import config_root

    system = yaml.safe_load((config_root() / "systems" / "dgx-h100.yaml").read_text())
    system["switch"] |= {"dispatch_primitives": ["unicast"], "combine_primitives": ["unicast"]}
    (empty_folder / "plain.yaml").write_text(yaml.safe_dump(system))
    assert main(["compare", *TINY, "--system", "plain.yaml", "--json", "-"]) == 0
    captured = capsys.readouterr()
    names = [run["schedule"] for run in json.loads(captured.out)["runs"]]
    assert "deepep" in names and not {"dysharp", "nvls"} & set(names)
    assert "left out: schedule='nvls' needs dispatch 'broadcast'" in captured.err
    assert main(["compare", *TINY, "--system", "plain.yaml", "--schedule", "nvls"]) == 2


def test_compare_draws_all_that_are_named(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = ("--schedule", "deepep", "--schedule", "dysharp", "--schedule", "nvls")
    assert main(["compare", *TINY, *named, "--picture", "three.svg"]) == 0
    assert (empty_folder / "three.svg").read_bytes().startswith(b"<?xml")
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrote three.svg: ")]
    assert set(said.removeprefix("wrote three.svg: ").split(", ")) == {"deepep", "dysharp", "nvls"}


def test_compare_draws_the_fastest_of_all_and_what_they_are_compared_with(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *TINY, "--against", "nccl", "--picture", "p.png", "--json", "r.json"]) == 0
    runs = sorted(json.loads((empty_folder / "r.json").read_text())["runs"], key=lambda run: run["makespan_us"])
    said = f"wrote p.png: {', '.join(run['schedule'] for run in runs[:3])}, nccl"
    assert said in capsys.readouterr().out.splitlines()


def test_explain_says_what_binds_and_what_was_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *TINY, "--schedule", "deepep", "--schedule", "dysharp"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("deepep on 4 GPUs of dgx-h100") and "dysharp on 4 GPUs of dgx-h100" in out
    for text in (
        "what binds: ",
        "If it were ideal",
        "count exchange",
        "Critical path of the last token home",
        "GEMM-2",
    ):
        assert out.count(text) >= 2


@pytest.mark.parametrize("command", ["simulate", "compare", "explain"])
def test_results_say_which_variant_won(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = [command, *TINY, "--schedule", "tutel"]
    assert main([*options, "--json", "-"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["variant"] in [{"parts.count": count} for count in (2, 4, 8)]
    assert main(options) == 0
    note = f"tutel: parts.count={run['variant']['parts.count']}, the fastest of its variants"
    assert note in capsys.readouterr().out.splitlines()
    assert main([command, *TINY, "--schedule", "deepep", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["variant"] is None


def test_explain_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *TINY, "--seed", "2", "--schedule", "deepep", "--schedule", "dysharp", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["schema", "version", "seed", "config", "runs"]
    assert (document["schema"], document["version"], document["seed"]) == ("dysharp/explain/1", __version__, 2)
    assert [run["schedule"] for run in document["runs"]] == ["deepep", "dysharp"]
    for run in document["runs"]:
        assert list(run) == ["schedule", "variant", "makespan_us", "lower_bound_us", "binds", "idealised", "path"]
        assert run["binds"] in RESOURCES
        whats = [ideal["what"] for ideal in run["idealised"]]
        assert len(set(whats)) == len(whats) and {*RESOURCES, "everything", "HBM", "launches"} <= set(whats)
        for ideal in run["idealised"]:
            assert list(ideal) == ["what", "makespan_us", "saved_us", "saved_pct"]
            assert ideal["makespan_us"] + ideal["saved_us"] == pytest.approx(run["makespan_us"])
            assert ideal["saved_pct"] == pytest.approx(100 * ideal["saved_us"] / run["makespan_us"])
        assert all(list(step) == ["what", "start_us", "end_us", "waited_for"] for step in run["path"])
        assert all(before["end_us"] == after["start_us"] for before, after in pairwise(run["path"]))
        assert (run["path"][0]["start_us"], run["path"][-1]["end_us"]) == (0.0, run["makespan_us"])


def test_compare_says_which_hardware_each_needs(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("dysharp", "deepep", "moe-hub")
    argv = ["compare", *TINY, *(f"--schedule={name}" for name in names)]
    assert main([*argv, "--json", "-"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert {run["schedule"]: run["hardware"] for run in runs} == {
        **{"dysharp": "dynamic-multimem", "deepep": "today", "moe-hub": "hub"}
    }
    assert main(argv) == 0
    assert " dynamic-multimem " in capsys.readouterr().out


def test_compare_sweeps(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "small", "--routing", "uniform", "--gpus", "4", "--schedule", "deepep", "--schedule", "nccl"]
    argv = ["compare", *options, "--sweep", "tokens=512,32", "--plot", "p.svg", "--json", "s.json"]
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("4 GPUs of dgx-h100: small, top-8 of 64 experts, uniform\n")
    lines = captured.out.splitlines()
    assert lines[-3] == "fastest, by tokens per GPU: nccl at 32, deepep at 512"
    assert lines[-2].startswith("deepep overtakes nccl between 32 and 512 tokens per GPU, near ")
    assert lines[-1] == "wrote p.svg: the sweep"
    assert (empty_folder / "p.svg").read_bytes().startswith(b"<?xml")
    document = json.loads((empty_folder / "s.json").read_text())
    assert [point["value"] for point in document["points"]] == [32, 512]
    assert [(run["tokens"], run["schedule"]) for run in document["runs"]] == [
        *((tokens, name) for tokens in (32, 512) for name in ("deepep", "nccl"))
    ]
    (crossing,) = document["crossings"]
    assert (crossing["faster"], crossing["below"], crossing["above"]) == ("deepep", 32, 512)
    assert main(["compare", *options[2:], "--tokens", "16", "--sweep", "model=small,olmoe", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [point["value"] for point in document["points"]] == ["small", "olmoe"] and document["crossings"] == []


@pytest.mark.parametrize("command", ["simulate", "explain"])
def test_pictures_need_no_backend_and_come_after_the_table(command: str, empty_folder: Path) -> None:
    code = "import sys, types; from dysharp_env.__main__ import main; from dysharp_env.files import writing as files;"
    # There alone: what is compiled is stored by the same function of the real one.
    code += "files.os = types.SimpleNamespace(**vars(files.os)); files.os.replace = lambda *_: sys.exit('TABLE FIRST');"
    code += f"main({[command, *TINY, '--picture', 'p.png']})"
    environment = {**os.environ, "MPLBACKEND": "module://no_such_backend"}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert child.stderr == "TABLE FIRST\n" and "makespan" in child.stdout and os.listdir() == []


def test_explain_draws(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *TINY, "--picture", "p.png"]) == 0
    assert (empty_folder / "p.png").read_bytes().startswith(b"\x89PNG") and "wrote p.png" in capsys.readouterr().out


def test_validate_fails_if_a_row_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    good = ValidationRow("g", "good", 2.0, 2.0, "exact", 0.0)
    bad = ValidationRow("g", "bad", 2.0, 2.5, "predicted", 0.4)
    for rows, status in (([good], 0), ([good, bad], 1)):
        monkeypatch.setattr(validate, "validation_rows", lambda seed, rows=rows: iter(rows))
        assert main(["validate", "--json", "-"]) == status
        document = json.loads(capsys.readouterr().out)
        assert document["schema"] == "dysharp/validate/1"
        assert [row["pass"] for row in document["rows"]] == [row is good for row in rows]
    assert document["rows"][1] == {
        **{"group": "g", "name": "bad", "expected": 2.0, "simulated": 2.5, "error_pct": 25.0},
        **{"role": "predicted", "pass": False},
    }
    assert main(["validate"]) == 1
    assert "1 of 2 rows pass" in capsys.readouterr().out


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    index = capsys.readouterr().out
    assert all(f"    {name} " in index or f"    {name}\n" in index for _, name, _ in COMMANDS)
    for argv, text in ((["--version"], __version__), (["simulate", "--help"], "0.001"), (["--help"], "validate")):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 0 and text in capsys.readouterr().out


def test_every_field_of_a_scenario_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"model": "small", "top_k": 4, "layer_index": None, "direction": "backward", "compute_scale": 0.5}
    given = [f"--{name.replace('_', '-')}={value}" for name, value in fields.items() if value is not None]
    assert main(["simulate", *TINY, "--routing", "uniform", *given, "--json", "-"]) == 0
    scenario = json.loads(capsys.readouterr().out)["config"]["scenario"]
    assert list(scenario) == list(ScenarioSpec.model_fields)
    assert {name: scenario[name] for name in fields} == fields
