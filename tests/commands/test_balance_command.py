from __future__ import annotations

import json
from pathlib import Path

import pytest

from dysharp_env.__main__ import main

SMALL = ["balance", "--model", "small", "--top-k", "4", "--gpus", "4", "--routing", "power-law:1.0", "--count", "2"]
SCHEDULES = ["--schedule", "deepep", "--schedule", "deepep+moonep", "--schedule", "deepep+moonep:1.2"]


def test_it_shows_a_line_a_schedule_and_from_how_many_tokens_on_each_pays(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, *SCHEDULES, "--sweep", "16,64"]) == 0
    output = capsys.readouterr().out
    assert output.count("forced balance") == 2 and output.count("deepep+moonep:1.2") == 3
    assert "deepep+moonep beats deepep " in output


def test_rows_compare_with_forced_balance_of_the_first_schedule(tmp_path: Path) -> None:
    target = tmp_path / "balance.json"
    assert main([*SMALL, *SCHEDULES, "--sweep", "64", "--json", str(target)]) == 0
    document = json.loads(target.read_text())
    assert document["schema"] == "dysharp/balance/1"
    rows = {(row["seed"], row["schedule"]): row for row in document["rows"]}
    assert len(rows) == 6
    for seed in (0, 1):
        plain, exact, bounded = (rows[seed, name] for name in ("deepep", "deepep+moonep", "deepep+moonep:1.2"))
        assert plain["copies"] == 0 < bounded["copies"] <= exact["copies"]
        assert exact["imbalance"] < 1.01 < bounded["imbalance"] <= 1.2 < plain["imbalance"]
        assert plain["balanced_us"] == exact["balanced_us"] < plain["makespan_us"]
        for row in (plain, exact, bounded):
            assert row["share"] == row["balanced_us"] / row["makespan_us"]
            assert row["lower_bound_us"] <= row["makespan_us"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sweep", "16,x"], "sweep='16,x' must be different whole numbers, such as tokens=8,16,32"),
        (["--sweep", "16,16"], "sweep='16,16' must be different whole numbers, such as tokens=8,16,32"),
        (["--sweep", "tokens=0"], "sweep='tokens=0' must be different whole numbers, such as tokens=8,16,32"),
        (["--sweep", "gpus=2,4"], "'gpus' is unknown; choose from ['tokens']"),
        (["--count", "0"], "count=0 must be at least 1"),
        (["--schedule", "deepep", "--schedule", "deepep+moonp"], "planner='moonp' is unknown"),
    ],
)
def test_bad_options_give_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
