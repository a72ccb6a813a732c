from __future__ import annotations

import json
from typing import Any

import pytest

from dysharp_env.__main__ import main
from dysharp_env.bench import environments, layers, links, processes
from dysharp_env.bench.timing import Row, Seconds

ROWS = [
    Row("first", 1234.5, "transfers/s", Seconds(2.0, 1.5)),
    Row("second [1]", 0.5, "ratio"),
]


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """Replaces measurements by one that gives two rows; returns what was asked of it."""
    asked = {}

    def stand_in(module: Any, name: str, rows: Any) -> None:
        def measure(*arguments: Any) -> Any:
            asked[name] = arguments
            return iter(rows)

        monkeypatch.setattr(module, name, measure)

    stand_in(layers, "layer_rows", ROWS)
    for module, names in (
        (layers, ("growth_rows", "set_up_rows", "network_rows")),
        (environments, ("single_rows", "vector_rows", "copy_rows")),
        (links, ("link_rows",)),
        (processes, ("start_up_rows", "cold_start_rows", "memory_rows")),
    ):
        for name in names:
            stand_in(module, name, [])
    return asked


def test_it_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--quick"]) == 0
    printed = capsys.readouterr()
    lines = [line.split("│")[1:-1] for line in printed.out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["first", "1,234", "transfers/s", "2.000", "1.500"],
        ["second [1]", "0.5", "ratio", "", ""],
    ]
    assert "first: 1,234 transfers/s\n" in printed.err


def test_json_is_all_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--quick", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "dysharp/bench/1"
    assert list(document) == ["schema", "version", "seed", "config", "rows"]
    assert document["config"]["quick"] is True and document["config"]["cpus"] >= 1
    assert document["rows"] == [row.record() for row in ROWS]


def test_quick_leaves_the_large_sizes_out(measured: dict[Any, Any]) -> None:
    main(["bench", "--quick"])
    assert measured["layer_rows"][0] == layers.QUICK_SIZES and measured["memory_rows"] == (32, 1024)
    main(["bench", "--threads", "2"])
    assert {(8, 256), (32, 8192), (256, 1024)} <= set(measured["layer_rows"][0])
    assert measured["memory_rows"] == (32, 8192) and measured["vector_rows"][2] == 2


def test_a_bad_number_of_threads_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--threads", "0"]) == 2
    assert capsys.readouterr().err == "error: threads=0 must be at least 1\n"
