"""Tables of measurements: what is read, refused and left out, statistics by hand, the constants, and a few rows run."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest

from dysharp_env.__main__ import main
from dysharp_env.config import ConfigError, config_root
from dysharp_env.system import load_system
from dysharp_env.validation.tables import megamoe
from dysharp_env.validation.tables.constants import MOST_SET, SET_CONSTANTS
from dysharp_env.validation.tables.deepep import DeepEPLowLatency, DeepEPNormal, low_latency_sms
from dysharp_env.validation.tables.errors import Errors, Outcome, TableErrors
from dysharp_env.validation.tables.load import DATA, load_table, load_tables, table_names
from dysharp_env.validation.tables.megamoe import balanced_ids, dealt_ids, power_law_counts
from dysharp_env.validation.tables.predict import predicted, predictions
from dysharp_env.validation.tables.readings import Reading, Table
from dysharp_env.validation.tables.trtllm import AllToAll
from dysharp_env.validation.tables.trtllm import balanced_ids as balanced_alltoall_ids

NORMAL = (
    "device,hidden_size,num_token,num_topk,num_experts,dispatch_sms,dispatch_transmit_us,"
    "combine_sms,combine_transmit_us,node_num"
)
NORMAL_ROW = "NVIDIA H100 80GB HBM3,2048,4,8,128,4,25.3,8,29.9,1"
SIZES = {
    "deepep-ll-b200": (176, 352),
    "deepep-ll-h100": (176, 352),
    "deepep-normal-gb200": (2394, 4788),
    "deepep-normal-h100": (2268, 4536),
    "megamoe-gb200": (96, 96),
    "trtllm-alltoall-gb200": (1076, 1076),
    "published": (20, 20),
}


@dataclass(frozen=True)
class Line:
    """An experiment whose figures are known: a line in tokens."""

    line_through: ClassVar[tuple[int, int] | None] = (4, 8)

    tokens: int

    def at(self, tokens: int) -> Self:
        return replace(self, tokens=tokens)

    def figures(self) -> tuple[float, ...]:
        assert self.tokens <= 8
        return 5.0 + 2.0 * self.tokens, 7.0


def outcome(tokens: int, measured: float, value: float, series: str = "dispatch") -> Outcome:
    return Outcome(Reading(2, series, "any", measured, Line(tokens)), value)


def write(folder: Path, *lines: str) -> str:
    path = folder / "mine.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", SIZES)
def test_every_row_of_a_shipped_table_is_expressed(name: str) -> None:
    table = load_table(name)
    assert (table.rows, len(table.readings)) == SIZES[name]
    assert table.left_out == {}
    assert all(reading.measured > 0 for reading in table.readings)


def test_shipped_tables_are_small_and_named() -> None:
    assert set(table_names()) == set(SIZES) and table_names()[-1] == "published"
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 200_000
    assert "095f58a" in (DATA / "README.md").read_text(encoding="utf-8")
    assert [table.name for table in load_tables(["megamoe-gb200", "all", "published"])][0] == "megamoe-gb200"
    assert len(load_tables(["all", "all"])) == len(SIZES)


def test_a_row_becomes_its_experiment(tmp_path: Path) -> None:
    table = load_table(write(tmp_path, NORMAL + ",extra", NORMAL_ROW + ",x"), seed=3)
    kernel = DeepEPNormal("dgx-h100", 8, 2048, 8, 128, 4, 8, 4, 3)
    assert [(reading.series, reading.measured, reading.place) for reading in table.readings] == [
        ("dispatch", 25.3, 0),
        ("combine", 29.9, 1),
    ]
    assert {reading.experiment for reading in table.readings} == {kernel}
    assert table.readings[1].shape == "2048 values, top-8 of 128, 8 SMs" and table.readings[1].line == 2


def test_gzipped_and_marked_files_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv.gz"
    path.write_bytes(gzip.compress(f"\ufeff{NORMAL}\r\n{NORMAL_ROW}\r\n\r\n".encode()))
    assert load_table(str(path)).rows == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("NVIDIA H100 80GB HBM3", "NVIDIA L4"), "no preset for device 'NVIDIA L4'"),
        ((",29.9,1", ",29.9,2"), "more than one node"),
        ((",8,128,", ",8,129,"), "experts that do not divide by 8 GPUs"),
    ],
)
def test_what_cannot_be_expressed_is_left_out_by_name(
    change: tuple[str, str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = load_table(write(tmp_path, NORMAL, NORMAL_ROW.replace(*change), NORMAL_ROW.replace(*change)))
    assert (table.rows, table.readings, table.left_out) == (2, (), {reason: 2})
    assert main(["validate", "--table", table.name]) == 0
    assert "left out" in capsys.readouterr().out
    assert TableErrors(table, (), 0).record()["median_abs_error_pct"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((",4,8,", ",four,8,"), "line 2: num_token='four' must be a whole number from 1 on"),
        ((",4,8,", ",-4,8,"), "line 2: num_token='-4' must be a whole number from 1 on"),
        ((",4,8,", ",4.5,8,"), "line 2: num_token='4.5' must be a whole number from 1 on"),
        ((",4,8,", ",,8,"), "line 2: num_token='' must be a whole number from 1 on"),
        (("25.3", "nan"), "line 2: dispatch_transmit_us='nan' must be a time above 0, in microseconds"),
        (("25.3", "0"), "line 2: dispatch_transmit_us='0' must be a time above 0, in microseconds"),
        (("25.3", "fast"), "line 2: dispatch_transmit_us='fast' must be a time above 0, in microseconds"),
        ((",8,128,", ",129,128,"), "line 2: num_topk='129' must be at most num_experts=128"),
        (("NVIDIA H100 80GB HBM3", ""), "line 2: device='' must not be empty"),
        ((",1", ""), "line 2: 9 cells under 10 columns"),
    ],
)
def test_a_bad_cell_gives_one_line(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    before, after = change
    row = NORMAL_ROW[: -len(before)] + after if before == ",1" else NORMAL_ROW.replace(before, after, 1)
    path = write(tmp_path, NORMAL, row)
    with pytest.raises(ConfigError) as error:
        load_table(path)
    assert str(error.value) == f"'{path}', {message}"


def test_words_are_told_from_those_that_are_known(tmp_path: Path) -> None:
    table = gzip.decompress((DATA / "trtllm-alltoall-gb200.csv.gz").read_bytes()).decode().splitlines()
    path = write(tmp_path, table[0], table[1].replace("bfloat16", "int3"))
    with pytest.raises(ConfigError, match=re.escape("line 2: moe_dtype='int3' must be one of ['bfloat16', 'fp8', ")):
        load_table(path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--table", "megamoe"], "table='megamoe' is unknown; choose from ['deepep-ll-b200',"),
        (["--table", "no.csv"], "cannot read 'no.csv': No such file or directory"),
        (["--picture", "p.png"], "picture='p.png' needs a table to draw; name one with --table"),
        (["--table", "published", "--picture", "p.svg"], "picture='p.svg' must end in .png"),
        (["--table", "published", "--workers", "0"], "workers=0 must be 1 to "),
    ],
)
def test_a_bad_option_gives_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_files_of_no_kind_are_refused(tmp_path: Path) -> None:
    for lines, message in (
        ([NORMAL.replace("num_token,", ""), "1"], "nearest is DeepEP normal, without ['num_token']"),
        ([""], "columns are of no known kind"),
        ([NORMAL], "has no rows under its header"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            load_table(write(tmp_path, *lines))
    broken = tmp_path / "broken.csv.gz"
    broken.write_bytes(b"no gzip")
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, why in ((broken, "is not a whole table: it is no gzip file"), (binary, "is no text in UTF-8")):
        with pytest.raises(ConfigError, match=why):
            load_table(str(path))


def test_statistics_by_hand() -> None:
    outcomes = [outcome(1, 100, value) for value in (90, 100, 105, 130, 101)]
    errors = Errors.of(outcomes)
    # Absolute errors 0, 1, 5, 10, 30; the 90th percentile lies 0.6 of the way from the fourth to the fifth.
    assert errors.values == 5
    assert (errors.median_abs_pct, errors.p90_abs_pct) == pytest.approx((5, 22))
    assert errors.median_pct == pytest.approx(1)


def test_errors_by_tokens_and_series_and_the_worst() -> None:
    outcomes = (outcome(8, 10, 11), outcome(1, 10, 8), outcome(8, 10, 10, "combine"))
    judged = TableErrors(Table("mine", 2, tuple(each.reading for each in outcomes), {}), outcomes, 0)
    record = judged.record()
    assert [(each["tokens"], each["values"]) for each in record["by_tokens"]] == [(1, 1), (8, 2)]
    assert [each["series"] for each in record["by_series"]] == ["combine", "dispatch"]
    assert [each["error_pct"] for each in record["worst"]] == pytest.approx([-20, 10, 0])
    assert (record["table"], record["rows"], record["constants_set"]) == ("mine", 2, 0)
    json.dumps(record, allow_nan=False)


def test_long_experiments_are_continued_in_a_straight_line() -> None:
    assert predicted(Line(100)) == pytest.approx((205, 7))
    assert predicted(Line(3)) == (11, 7)
    readings = [Reading(2, "any", "", 1.0, Line(tokens), place) for tokens in (3, 100) for place in (0, 1)]
    assert predictions(readings) == pytest.approx([11, 7, 205, 7])


@pytest.mark.parametrize(
    "experiment",
    [
        DeepEPNormal("gb200-nvl72", 4, 2048, 8, 256, 4, 4, 8192),
        AllToAll("gb200-nvl72", 4, "NVLinkOneSided", "alltoall_combine", "nvfp4", 7168, 8, 256, 4096),
    ],
)
def test_continued_and_full_runs_agree(experiment: Any) -> None:
    assert experiment.tokens > experiment.line_through[1]
    assert predicted(experiment) == pytest.approx(experiment.figures(), rel=0.005)


def test_low_latency_kernels_start_an_sm_for_each_group_of_experts() -> None:
    assert [low_latency_sms(experts, 132) for experts in (8, 128, 160, 256, 384, 512)] == [8, 128, 80, 128, 128, 128]
    assert low_latency_sms(512, 148) == 128


def test_few_low_latency_sms_take_longer() -> None:
    few, many = (DeepEPLowLatency("dgx-h100", 8, 2048, 2, experts, 64).figures()[0] for experts in (8, 128))
    assert few > 1.05 * many


def test_balanced_all_to_all_sends_every_rank_as_much() -> None:
    kernel = AllToAll("gb200-nvl72", 4, "NVLinkTwoSided", "alltoall_dispatch", "fp8", 7168, 8, 256, 16)
    ids = balanced_alltoall_ids(kernel)
    assert ids.shape == (64, 8)
    assert set(np.bincount(ids.ravel() // 64)) == {128}
    assert all(len(set(row)) == 8 for row in ids.tolist())


def test_balanced_layers_spread_few_tokens_over_all_ranks() -> None:
    # 4 tokens, top-6 of 384: strides of 64, and 16 apart as there are fewer tokens than a stride.
    ids = balanced_ids(4, 6, 384)
    assert ids[:, 0].tolist() == [0, 16, 32, 48] and ids[1].tolist() == [16, 80, 144, 208, 272, 336]
    assert set(np.bincount(balanced_ids(128, 6, 384).ravel(), minlength=384)) == {2}


@pytest.mark.parametrize(("ranks", "tokens", "busiest"), [(4, 32768, 1.30), (8, 32768, 1.94), (16, 32768, 2.01)])
def test_power_law_loads_ranks_as_the_collector_s_draw_did(ranks: int, tokens: int, busiest: float) -> None:
    """The measured layers take 1.24, 1.82 and 1.87 times as long as balanced ones of that many tokens."""
    counts = power_law_counts(ranks * tokens, 6, 384, ranks, 1.01, np.random.default_rng(0))
    loads = counts.reshape(ranks, -1).sum(axis=1)
    assert counts.sum() == ranks * tokens * 6 and loads.argmax() == 0
    assert loads[0] / loads.mean() == pytest.approx(busiest, abs=0.01)


def test_dealt_rows_have_distinct_experts_and_the_counts() -> None:
    for tokens in (4, 64, 1000):
        counts = power_law_counts(tokens, 6, 384, 4, 1.01, np.random.default_rng(0))
        ids = dealt_ids(counts, tokens, 6)
        assert np.array_equal(np.bincount(ids.ravel(), minlength=384), counts) and counts.max() <= tokens
        assert all(len(set(row)) == 6 for row in ids.tolist())


def test_constants_that_were_set_are_those_of_the_presets() -> None:
    assert len(SET_CONSTANTS) < MOST_SET
    places = [(constant.key, name) for constant in SET_CONSTANTS for name in constant.systems]
    assert len(places) == len(set(places))
    for constant in SET_CONSTANTS:
        for name in constant.systems:
            assert constant.value_in(load_system(name)) == constant.value, f"{constant.key} of {name}"
        assert set(constant.tables) <= set(table_names())
        assert constant.generation in ("Hopper", "Blackwell", "all")
    (around,) = (constant for constant in SET_CONSTANTS if not constant.systems)
    assert around.key == f"{megamoe.__name__.removeprefix('dysharp_env.')}.AROUND_US"
    assert around.value == megamoe.AROUND_US


def keys_called_set(text: str) -> set[str]:
    """Returns the keys of a preset whose comment, behind or above them, says that they were set."""
    keys, is_set = set(re.findall(r"^\s*(\w+): [^#\n]+# .*\bset by\b", text, re.MULTILINE)), False
    for line in text.splitlines():
        if comment := re.match(r"\s*# (.*)", line):
            is_set = is_set or comment[1].startswith("set: ")
        elif key := re.match(r"\s*(\w+):", line):
            keys |= {key[1]} if is_set else set()
            is_set = False
    return keys


def test_every_constant_that_a_preset_calls_set_is_listed() -> None:
    text = "  # set: rows\n  # more\n  one: {a: 1}\n  two: 2  # us; set by rows\n  three: 3  # read\n"
    assert keys_called_set(text) == {"one", "two"}
    # A family's comment stands for all of its constants.
    listed = {
        (part, name) for constant in SET_CONSTANTS for name in constant.systems for part in constant.key.split(".")
    }
    for path in sorted((config_root() / "systems").glob("*.yaml")):
        for key in keys_called_set(path.read_text(encoding="utf-8")):
            assert (key, path.stem) in listed, f"{path.name}: {key}"


def test_a_few_rows_of_every_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Small rows from all over the tables are predicted to some degree; how well, the command says of all rows."""
    argv = []
    for name in SIZES:
        if name == "published":
            continue
        rows = list(csv.reader(io.StringIO(gzip.decompress((DATA / f"{name}.csv.gz").read_bytes()).decode())))
        tokens = rows[0].index("num_token" if "num_token" in rows[0] else "num_tokens")
        small = [row for row in rows[1:] if int(row[tokens]) <= 64]
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(",".join(row) for row in [rows[0], *small[:: len(small) // 4]]), encoding="utf-8")
        argv += ["--table", str(path)]
    picture = tmp_path / "errors.png"
    assert main(["validate", *argv, "--json", "-", "--picture", str(picture), "--seed", "1"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "dysharp/validate/1" and document["rows"] == [] and document["seed"] == 1
    assert len(document["tables"]) == len(SIZES) - 1
    for table in document["tables"]:
        assert 4 <= table["rows"] <= 5 and table["left_out"] == {} and table["constants_set"] >= 0
        assert 0 < table["median_abs_error_pct"] < 80
    assert picture.read_bytes().startswith(b"\x89PNG")
