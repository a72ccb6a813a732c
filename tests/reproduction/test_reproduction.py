from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import pytest

from dysharp_env.config import ConfigError, preset_names
from dysharp_env.reproduction import published
from dysharp_env.reproduction.calibration import DEFAULT_CALIBRATIONS, load_calibration
from dysharp_env.reproduction.claims import Claim, Measure, Row, evaluate, statistic_of, summary_lines
from dysharp_env.reproduction.experiments import PASSES, Experiments, Point
from dysharp_env.reproduction.steps.layers import LayerCase, LayerTimes, simulate_cases
from dysharp_env.reproduction.tables import NINE, TABLES
from dysharp_env.system import load_system
from dysharp_env.workers import Processes, Workers
from dysharp_env.workload import load_model

LAYER = load_model("small")
BUSY = {"uplink": 0.5, "downlink": 0.6, "sm": 0.25, "hbm": 0.1}


def case(schedule: str, tokens: int = 16) -> LayerCase:
    return LayerCase(load_system("dgx-h100", 4), LAYER, tokens, "uniform", 0, schedule)


def times(makespan_us: float) -> LayerTimes:
    return LayerTimes(round(makespan_us * 1e6), 1, {}, 0, BUSY)


def measure(*cases: LayerCase) -> Measure:
    return Measure(cases, lambda results: sum(results[each].makespan_ps for each in cases) / 1e6)


def test_statistics_by_hand() -> None:
    assert statistic_of("max", [1.5, 4.0, 2.0]) == 4.0
    assert statistic_of("geomean", [1.0, 2.0, 4.0]) == pytest.approx(2.0)
    assert statistic_of("value", [1.25]) == 1.25
    with pytest.raises(ValueError):
        statistic_of("value", [1.0, 2.0])


def test_a_claim_compares_pairs() -> None:
    slow, fast, other = case("deepep"), case("dysharp"), case("comet")
    results = {slow: times(30), fast: times(10), other: times(20)}
    pairs = ((measure(slow), measure(fast)), (measure(slow, other), measure(fast)))
    row = evaluate(Claim("layer", "x", "max", 5.0, pairs), "paper", results)
    assert row.record() == {
        "table": "layer",
        "name": "x",
        "statistic": "max",
        "published": 5.0,
        "simulated": 5.0,
        "ratio": 1.0,
        "calibration": "paper",
        "notes": "",
    }
    row = evaluate(Claim("layer", "x", "geomean", None, pairs, stated="grows"), "paper", results)
    assert row.simulated == pytest.approx(15**0.5)
    assert (row.ratio, row.notes) == (None, "paper: grows")


def test_a_miss_says_what_was_busy() -> None:
    slow, fast = case("deepep"), case("dysharp")
    results = {slow: times(30), fast: times(10)}
    claim = Claim("layer", "x", "value", 2.5, ((measure(slow), measure(fast)),))
    assert evaluate(claim, "paper", results).notes == "links/SMs/HBM busy %: deepep 60/25/10, dysharp 60/25/10"


def test_the_summary_counts_what_is_near_and_looks_at_the_order() -> None:
    def row(name: str, published: float | None, simulated: float, statistic: Any = "geomean") -> Row:
        return Row("layer", name, statistic, published, simulated, "paper", "")

    rows = [row("a", 2.0, 2.1), row("b", 1.5, 1.2), row("a", 3.0, 3.31, "max"), row("c", None, 9.0)]
    assert summary_lines(rows) == [
        "paper, layer: 1 of 3 published values within 10 %; order of geomeans as published: yes"
    ]
    rows[1] = row("b", 1.5, 2.2)
    assert summary_lines(rows)[0].endswith("order of geomeans as published: no, b, a")
    assert summary_lines([row("c", None, 9.0)]) == []


def test_the_best_of_several_is_taken_for_each_layer() -> None:
    tutel = case("tutel")
    chunks = [dataclasses.replace(tutel, schedule_changes=(("best_of", ()), ("parts.count", n))) for n in (2, 4, 8)]
    results = simulate_cases([tutel, *chunks], Workers(), lambda *_: None)
    assert results[tutel].makespan_ps == min(results[each].makespan_ps for each in chunks)


@pytest.mark.parametrize("workers", [Workers(), Processes(2)])
def test_each_case_is_simulated_once(workers: Workers) -> None:
    cases = [case("deepep"), case("dysharp"), case("deepep"), case("deepep", tokens=32)]
    seen = []
    with workers:
        results = simulate_cases(cases, workers, lambda done, total, which: seen.append((done, total, which)))
    assert [entry[:2] for entry in seen] == [(1, 3), (2, 3), (3, 3)]
    assert {entry[2] for entry in seen} == set(results) == set(cases)
    assert results[case("dysharp")].makespan_ps > 0
    assert results == simulate_cases(cases, Workers(), lambda *_: None)


def end_process(_: LayerCase) -> None:
    os._exit(1)


def test_a_process_that_ends_early_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dysharp_env.reproduction.steps.layers.simulate_case", end_process)
    with pytest.raises(
        ConfigError, match=r"^workers=2: a process ended early, most likely for want of memory; use fewer$"
    ):
        simulate_cases([case("deepep"), case("dysharp")], Processes(2), lambda *_: None)


@pytest.mark.parametrize("table", TABLES)
def test_every_table_names_schedules_that_exist(table: str) -> None:
    claims = [*TABLES[table](Experiments(load_calibration("paper")))]
    assert claims and {claim.table for claim in claims} == {table}
    assert {each.schedule for claim in claims for each in claim.cases} <= set(preset_names("schedules"))
    assert len({(claim.name, claim.statistic) for claim in claims}) == len(claims)
    for claim in claims:
        assert len(claim.pairs) == (1 if claim.statistic == "value" else len(NINE))


def test_published_numbers_are_the_paper_s() -> None:
    claims = [*TABLES["end-to-end"](Experiments(load_calibration("paper")))]
    found = {(claim.name, claim.statistic): claim.published for claim in claims}
    assert found["dysharp over dualpipe", "max"] == 1.88
    assert found["dysharp over comet", "geomean"] == 1.59
    assert len(found) == 14
    assert published.LAYER_SPEEDUPS["deepep"] == (2.77, 2.26)


def test_points_become_cases() -> None:
    runs = Experiments(load_calibration("paper"), divisor=8)
    point = Point("medium", 16, gpus=64, changes=(("link.planes", 18),), layer_changes=(("tile_tokens", 64),))
    forward, backward = runs.layer(point, "dysharp", PASSES).cases
    assert (forward.system.num_gpus, forward.system.link.planes, forward.tokens) == (64, 18, 4096 // 8)
    assert (forward.layer.top_k, forward.layer.tile_tokens) == (16, 64)
    assert (forward.layer.direction, backward.layer.direction) == ("forward", "backward")
    assert forward.system.gpu.gemm_efficiency == 1.0 and forward.system.overheads.count_exchange_us == 0
    (decode,) = runs.decode(point, "dysharp").cases
    assert decode.tokens == runs.steps.decode_sequences


def test_overlap_across_layers_is_made_of_the_same_layers() -> None:
    runs = Experiments(load_calibration("paper"))
    alone, paired = (runs.training(Point("small", 8), name).cases for name in ("deepep", "dualpipe"))
    sms = runs.steps.overlap_sms
    assert {case.schedule_changes for case in alone} == {()}
    assert {case.schedule_changes for case in paired} == {(("sms.dispatch", sms), ("sms.combine", sms))}
    assert [dataclasses.replace(case, schedule_changes=()) for case in paired] == [*alone]


@pytest.mark.parametrize("name", DEFAULT_CALIBRATIONS)
def test_calibrations_change_physical_constants_only(name: str) -> None:
    calibration = load_calibration(name)
    assert calibration.name == name
    assert {key.split(".")[0] for key in calibration.changes} <= {"gpu", "link", "switch", "overheads"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nsystem: dgx-h100\nchanges: {gpu.l3_mb: 1}\n", "unknown key 'gpu.l3_mb' (did you mean 'gpu.l2_mb'?)"),
        ("name: x\nsystem: dgx-h100\nchanges: {gpu.l2_mb: -1}\n", "gpu.l2_mb=-1"),
        ("name: x\nsystem: dgx\n", "system='dgx' is unknown"),
        ("name: x\n", "key 'system' is missing"),
    ],
)
def test_a_wrong_calibration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_calibration(str(path))
