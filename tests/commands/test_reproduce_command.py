from __future__ import annotations

import json
from pathlib import Path

import pytest

from dysharp_env import __version__
from dysharp_env.__main__ import main

QUICK = ("reproduce", "--quick", "--table", "tile", "--calibration", "paper")


@pytest.fixture(autouse=True)
def quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dysharp_env.commands.reproduce.QUICK_DIVISOR", 64)


def test_a_table_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK]) == 0
    out = capsys.readouterr().out
    assert out.startswith("quick: 1/64 of the tokens per GPU")
    last = "quick: the published values are of 64 times the tokens, and these counts say only that everything runs"
    assert out.splitlines()[-1].startswith(last)
    for text in ("tile", "published", "simulated", "time of 64-token tiles over 128", "paper: tiles of 128 tokens"):
        assert text in out


def test_a_table_as_json_is_all_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--seed", "3", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["schema", "version", "seed", "config", "rows"]
    assert (document["schema"], document["version"], document["seed"]) == ("dysharp/reproduce/1", __version__, 3)
    assert document["config"]["tokens_divisor"] == 64
    assert document["config"]["calibrations"][0]["changes"]["gpu.gemm_efficiency"] == 1.0
    rows = document["rows"]
    keys = ["table", "name", "statistic", "published", "simulated", "ratio", "calibration", "notes"]
    assert [list(row) for row in rows] == [keys, keys]
    assert all(row["published"] is None and row["ratio"] is None and row["simulated"] > 0 for row in rows)


def test_calibrations_are_kept_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--calibration", "measured", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["calibration"] for row in rows] == ["paper", "paper", "measured", "measured"]
    assert rows[0]["simulated"] != rows[2]["simulated"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--table", "layers"], "table='layers' is unknown; choose from ['layer', "),
        (["--calibration", "papers"], "calibration='papers' is unknown; choose from ['measured', 'paper']"),
        (["--calibration", "missing.yaml"], "calibration file 'missing.yaml' does not exist"),
        (["--workers", "0"], "workers=0 must be 1 to "),
        (["--workers", "x"], "argument --workers: invalid int value: 'x'"),
        (["--seed", "-1"], "seed=-1 must not be negative"),
        (["--json", "missing/r.json"], "cannot write json='missing/r.json'"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith(f"error: {message}")
