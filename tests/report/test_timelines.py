from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.report.moves import Moves
from dysharp_env.report.paid import Payer
from dysharp_env.report.schedule import ScheduleTable
from dysharp_env.report.timelines import replayed, timeline_of, write_by_gpu, write_timeline
from dysharp_env.report.timelines.chrome import chrome_json
from dysharp_env.report.timelines.counters import asked_ps, sent_as
from dysharp_env.report.timelines.decisions import MOST_SHOWN
from dysharp_env.report.timelines.groups import RowUse
from dysharp_env.report.timelines.log import SUM, Log
from dysharp_env.report.timelines.model import ALL_GPUS, Timeline
from dysharp_env.report.timelines.perfetto import perfetto_trace
from dysharp_env.schedules import LayerRun, Problem, load_schedule
from dysharp_env.schedules.opponent import ScheduleOpponent
from dysharp_env.simulator.result import segment_name
from dysharp_env.simulator.state import codes
from dysharp_env.workload import ScenarioSpec
from tests.simulator.copy_rules import copied_case

SCHEDULES = ["dysharp", "deepep", "mega-moe", "dysharp-team", "nvls", "comet", "deepep+moonep"]


def problem_of(resolution: str = "token", **changes: Any) -> Problem:
    options = {"system": "gh200-nvl32", "gpus": 4, "model": "small", "tokens": 48, "routing": "uniform", **changes}
    scenario = ScenarioSpec(**options).build()
    return Problem.of(scenario.system, scenario.draw(0), resolution=resolution)


PROBLEM = problem_of()
_runs: dict[str, LayerRun] = {}


def run_of(schedule: str) -> LayerRun:
    if schedule not in _runs:
        _runs[schedule] = PROBLEM.run(load_schedule(schedule), logging=True)
    return _runs[schedule]


def timeline(schedule: str, **options: Any) -> Timeline:
    run = run_of(schedule)
    return timeline_of(run.engine, "a title", schedule=run.schedule, system=PROBLEM.system, **options)


@pytest.fixture
def protos() -> ModuleType:
    pytest.importorskip("perfetto")
    from perfetto.protos.perfetto.trace import perfetto_trace_pb2

    return perfetto_trace_pb2


class Read:
    """A Perfetto trace as its packets say it: tracks, their slices, instants and values, and flows of slices."""

    def __init__(self, protos: ModuleType, content: bytes) -> None:
        self.tracks: dict[int, Any] = {}
        self.slices: dict[int, list[tuple[str, int, int, dict[str, Any], tuple[int, ...]]]] = defaultdict(list)
        self.instants: dict[int, list[tuple[str, int, dict[str, Any]]]] = defaultdict(list)
        self.values: dict[int, list[tuple[int, float]]] = defaultdict(list)
        names: dict[tuple[int, str, int], str] = {}
        begun: dict[int, Any] = {}
        default: dict[int, int] = {}
        for packet in protos.Trace.FromString(content).packet:
            sequence = packet.trusted_packet_sequence_id
            if packet.HasField("track_descriptor"):
                self.tracks[packet.track_descriptor.uuid] = packet.track_descriptor
            if packet.HasField("trace_packet_defaults"):
                default[sequence] = packet.trace_packet_defaults.track_event_defaults.track_uuid
            for table in ("event_names", "debug_annotation_names"):
                for each in getattr(packet.interned_data, table):
                    names[sequence, table, each.iid] = each.name
            if not packet.HasField("track_event"):
                continue
            event, track = packet.track_event, default[sequence]

            def value(annotation: Any, sequence: int = sequence) -> Any:
                kind = annotation.WhichOneof("value")
                if kind:
                    return getattr(annotation, kind)
                if annotation.array_values:
                    return [value(each) for each in annotation.array_values]
                return arguments(annotation.dict_entries)

            def arguments(annotations: Any, sequence: int = sequence) -> dict[str, Any]:
                return {names[sequence, "debug_annotation_names", each.name_iid]: value(each) for each in annotations}

            if event.type == event.TYPE_SLICE_BEGIN:
                name = names[sequence, "event_names", event.name_iid]
                assert track not in begun
                begun[track] = (name, packet.timestamp, arguments(event.debug_annotations), tuple(event.flow_ids))
            elif event.type == event.TYPE_SLICE_END:
                name, start_ns, args, flows = begun.pop(track)
                assert packet.timestamp >= start_ns
                self.slices[track].append((name, start_ns, packet.timestamp, args, flows))
            elif event.type == event.TYPE_INSTANT:
                name = names[sequence, "event_names", event.name_iid]
                self.instants[track].append((name, packet.timestamp, arguments(event.debug_annotations)))
            else:
                self.values[track].append((packet.timestamp, event.double_counter_value))
        assert not begun

    def named(self, gpu: int, prefix: str) -> list[int]:
        """Returns the tracks of a GPU whose names begin so."""
        found = []
        for uuid, track in self.tracks.items():
            parent = self.tracks.get(track.parent_uuid)
            if parent is not None and parent.process.pid == gpu + 2 and track.name.startswith(prefix):
                found.append(uuid)
        return found

    def all(self, gpu: int, prefix: str) -> list[tuple[str, int, int, dict[str, Any], tuple[int, ...]]]:
        return [each for track in self.named(gpu, prefix) for each in self.slices[track]]


def chrome_lanes(content: bytes) -> dict[tuple[int, int], list[tuple[float, float]]]:
    lanes = defaultdict(list)
    for event in json.loads(content)["traceEvents"]:
        if event["ph"] == "X":
            # To the picosecond, as it is meant.
            lanes[event["pid"], event["tid"]].append(
                (round(event["ts"] * 1e6), round((event["ts"] + event["dur"]) * 1e6))
            )
    return lanes


def assert_apart(lanes: Iterable[list[tuple[float, float]]]) -> None:
    count = 0
    for spans in lanes:
        count += len(spans)
        assert spans == sorted(spans)
        assert all(earlier[1] <= later[0] for earlier, later in zip(spans, spans[1:], strict=False))
        assert all(start <= end for start, end in spans)
    assert count > 10


@pytest.mark.parametrize("detail", ["full", "aggregated"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_slices_of_a_lane_never_overlap(schedule: str, detail: str, protos: ModuleType, tmp_path: Path) -> None:
    made = timeline(schedule, detail=detail)
    assert made.is_aggregated == (detail == "aggregated")
    assert_apart([each[1:3] for each in track.slices] for track in made.tracks)
    assert_apart(chrome_lanes(chrome_json(made)).values())
    read = Read(protos, perfetto_trace(made))
    assert_apart([(start_ns, end_ns) for _, start_ns, end_ns, *_ in slices] for slices in read.slices.values())
    write_by_gpu(tmp_path / "k", "kineto", made, run_of(schedule).engine)
    for path in sorted((tmp_path / "k").iterdir()):
        assert_apart(chrome_lanes(path.read_bytes()).values())


@pytest.mark.parametrize("detail", ["full", "aggregated"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_perfetto_adds_up_to_the_result(schedule: str, detail: str, protos: ModuleType) -> None:
    run = run_of(schedule)
    engine, result, makespan_us = run.engine, run.result(), run.engine.now_ps / 1e6
    read = Read(protos, perfetto_trace(timeline(schedule, detail=detail)))
    assert [
        read.tracks[uuid].process.process_name for uuid in read.tracks if read.tracks[uuid].HasField("process")
    ] == [
        "layer",
        *(f"GPU {gpu}" for gpu in range(4)),
    ]
    ((_, start_ns, end_ns, totals, _),) = read.all(ALL_GPUS, "whole layer")
    assert (start_ns, end_ns) == (0, round(engine.now_ps / 1000))
    for kind in ("wire", "payload"):
        known = getattr(result, f"{kind}_bytes")
        assert [totals[f"{kind}_bytes_{way}"] for way in ("up", "down")] == [known["up"], known["down"]]
    wholes = [read.all(gpu, "whole layer")[0][3] for gpu in range(4)]
    for name, key, share in (
        ("uplink", "uplink_busy_us", makespan_us),
        ("downlink", "downlink_busy_us", makespan_us),
        ("hbm", "hbm_busy_us", makespan_us),
        ("sm", "sm_time_us", makespan_us * int(engine.state.root["num_sms"][0])),
    ):
        shares = [whole[key] / share for whole in wholes]
        assert np.mean(shares) == pytest.approx(result.utilisation[name]["mean"], rel=1e-9)
        assert max(shares) == pytest.approx(result.utilisation[name]["max"], rel=1e-9)
    log = Log(engine).rows
    # What is drawn is all data that the result counts, GPU by GPU, and with control flits all there is.
    for gpu, whole in enumerate(wholes):
        for way, lane in (("up", "uplink"), ("down", "downlink")):
            drawn = [args for *_, args, _ in read.all(gpu, lane)]
            data = sum(whole.get(f"wire_bytes_{way}.{name}", 0) for name in codes.PURPOSES if _is_drawn(name))
            assert sum(args["wire_bytes"] for args in drawn) == data > 0
            assert sum(args["payload_bytes"] for args in drawn) == whole[f"payload_bytes_{way}"]
            mine = (log["resource"] == (codes.LOG_UP if way == "up" else codes.LOG_DOWN)) & (log["gpu"] == gpu)
            busy_ps = int((log["end_ps"] - log["start_ps"])[mine].sum())
            if detail == "aggregated":
                assert sum(args["busy_ps"] for args in drawn) == busy_ps
            else:
                took_ns = sum(end_ns - start_ns for _, start_ns, end_ns, *_ in read.all(gpu, lane))
                assert len(drawn) == mine.sum() and abs(took_ns - busy_ps / 1e3) < len(drawn)
    for stage, name in (("dispatch", "dispatch"), ("gemm1", "GEMM-1"), ("gemm2", "GEMM-2"), ("combine", "combine")):
        ((_, start_ns, end_ns, _, _),) = read.all(ALL_GPUS, f"phase: {name}")
        assert (start_ns / 1e3, end_ns / 1e3) == pytest.approx(result.phases_us[stage], abs=1e-3)


def _is_drawn(purpose: str) -> bool:
    return purpose.endswith("_data") or purpose == "eviction"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_counters_add_up_to_the_log(schedule: str) -> None:
    engine = run_of(schedule).engine
    counters = {(each.gpu, each.name): each for each in timeline(schedule).counters}
    log = Log(engine)
    now_ps = engine.now_ps
    for gpu in range(4):
        sms = [
            counters[gpu, name].integral(now_ps)
            for name in ("SMs working", "SMs waiting for HBM", "SMs communicating")
            if (gpu, name) in counters
        ]
        assert sum(sms) == pytest.approx(float(engine.state.gpus["sm_busy_ps"][gpu]), rel=1e-6)
        hbm_ps = int(engine.state.gpus["hbm_busy_ps"][gpu]) - max(
            int(engine.state.gpus["hbm_free_ps"][gpu]) - now_ps, 0
        )
        assert counters[gpu, "HBM busy"].integral(now_ps) / 100 == pytest.approx(hbm_ps, rel=1e-6)
        for resource, name in ((codes.LOG_UP, "uplink"), (codes.LOG_DOWN, "downlink")):
            mine = (log.rows["resource"] == resource) & (log.rows["gpu"] == gpu)
            took_ps = (log.rows["end_ps"] - log.rows["start_ps"])[mine].sum()
            assert counters[gpu, f"{name} busy with data"].integral(now_ps) / 100 == pytest.approx(took_ps, rel=1e-5)
            moved = counters[gpu, f"{name} data on the wire"].integral(now_ps) / 1000
            assert moved == pytest.approx(log.wire_bytes[mine].sum(), rel=1e-5)
        assert all(counters[gpu, name].values.min() > -1e-6 for _, name in counters)
        assert counters[gpu, "L2 hits of GEMM inputs"].values.max() <= 100


@pytest.mark.parametrize("schedule", [*SCHEDULES, "dysharp-push"])
def test_nothing_leaves_a_queue_before_it_came(schedule: str) -> None:
    log = Log(run_of(schedule).engine)
    up = np.flatnonzero((log.rows["resource"] == codes.LOG_UP) & (log.what <= SUM))
    assert (asked_ps(log, up) <= log.rows["start_ps"][up]).all() and (asked_ps(log, up) > 0).all()
    down = np.flatnonzero((log.rows["resource"] == codes.LOG_DOWN) & (log.what == 0))
    started = dict(zip(log.nodes[up].tolist(), log.rows["start_ps"][up].tolist(), strict=True))
    waited = [log.rows["start_ps"][row] - started[sent] for row, sent in zip(down, sent_as(log, down), strict=True)]
    assert min(waited) >= log.engine.costs.hop_ps


@pytest.mark.parametrize("resolution", ["token", "packet"])
def test_log_names_segments_as_results_do(resolution: str) -> None:
    problem = problem_of(resolution, tokens=12)
    log = Log(problem.run(load_schedule("dysharp-team"), logging=True).engine)
    state = log.engine.state
    for row in np.flatnonzero(log.rows["resource"] <= codes.LOG_REDUCE)[::7].tolist():
        named = segment_name(state, int(log.nodes[row]))
        assert (named.token, named.place, named.plane) == (log.token[row], log.place[row], log.plane[row])
        if named.what in ("copy", "partial"):
            assert named.gpu == log.expert_gpu[row]


def test_weights_of_copies_are_told() -> None:
    engine = copied_case("unicast", [(0, 1), (2, 2)], [(3, 1)] * 4).engine(logging=True).run()
    made = timeline_of(engine)
    slices = {track.name: list(track.slices) for track in made.tracks if track.gpu in (1, 2)}
    names = {each.name for track in made.tracks for each in track.slices}
    assert {"weights of GEMM-1 copy 2", "weights of GEMM-2 copy 3", "weight"} <= names
    moved = [each.args for track in made.tracks if track.name == "downlink" for each in track.slices]
    assert {args["expert"] for args in moved if "weight_tile" in args} == {2, 3}
    assert "weights to come" in slices
    plain = timeline_of(copied_case("unicast", [(0, 1)], [(2, 1)] * 4).engine(logging=False).run())
    assert not plain.counters and {track.of for track in plain.tracks} == {"gemms", "other"}


def test_rows_say_what_they_took() -> None:
    # Experts have several tiles, the later of which find their weights in L2.
    engine = problem_of(tokens=400).run(load_schedule("deepep"), logging=True).engine
    use = RowUse(engine, Moves(engine))
    rows = [each for track in timeline_of(engine).tracks if track.name == "GEMM SMs" for each in track.slices]
    assert len(rows) == 2 * len({each.name.split()[-1] for each in rows})
    assert sum(each.args["sm_time_us"] for each in rows) == pytest.approx(engine.state.gpus["sm_busy_ps"].sum() / 1e6)
    blocks = engine.state.root["gemms"]["blocks"][0]
    assert {each.args["thread_blocks"] for each in rows} == set(blocks.tolist())
    assert all(1 <= each.args["most_sms"] <= min(132, each.args["thread_blocks"]) for each in rows)
    hbm = Log(engine).rows
    is_read = (hbm["resource"] == codes.LOG_HBM) & (hbm["purpose"] != codes.HBM_WRITE)
    of_rows = (hbm["purpose"] == codes.HBM_WEIGHTS) | (hbm["item"] >= int(engine.state.root["tile_blocks"][0]))
    chunks = int(engine.state.root["chunk_blocks"][0])
    tiles = is_read & of_rows & (hbm["item"] < chunks)
    # All that GEMMs read; combine reads results (the third block of a tile) too.
    third = (hbm["item"] - int(engine.state.root["tile_blocks"][0])) % codes.BLOCKS_PER_TILE == codes.TILE_OUT
    tiles &= ~(third & (hbm["purpose"] == codes.HBM_READ))
    assert use.l2.missed_bytes.sum() == hbm["amount"][tiles].sum() > 0
    assert (use.l2.missed_bytes <= use.l2.needed_bytes).all()
    assert use.l2.missed_bytes.sum() < 0.9 * use.l2.needed_bytes.sum()


def test_what_is_paid_is_named_and_ends_as_its_stage_opens() -> None:
    for schedule, expected in (
        ("dysharp", {"kernel launch", "start of a fused kernel", "exchange of token counts"}),
        ("deepep", {"kernel launch", "launch of the next kernel", "layout", "activation"}),
    ):
        run = run_of(schedule)
        paid = [track for track in timeline(schedule).tracks if track.name.startswith("paid")]
        assert expected <= {each.name for track in paid for each in track.slices}
        opened_ps = int(run.engine.state.gates["pay_ps"][0])
        first = [each for track in paid if track.gpu == ALL_GPUS for each in track.slices if each.end_ps <= opened_ps]
        assert sum(each.end_ps - each.start_ps for each in first) == opened_ps
        assert opened_ps <= run.engine.state.root["dispatch_first"][0]
    # Phases: GEMM-1 starts the moment that what is paid before it is over.
    run, rows = run_of("deepep"), run_of("deepep").engine.state.tiles["rows"]
    ends = {each.end_ps for track in paid for each in track.slices}
    for stage in ("gemm1", "gemm2", "combine"):
        if any(getattr(run.schedule.pays, stage)):
            assert int(run.engine.state.root[f"{stage}_first"][0]) in ends, stage
    assert len(rows)


@pytest.mark.parametrize("schedule", ["deepep", "nccl", "comet", "dysharp-two-chunks"])
def test_rows_start_when_what_is_paid_before_them_is_over(schedule: str) -> None:
    run = PROBLEM.run(load_schedule(schedule), logging=True)
    state, exact = run.engine.state, 0
    rows, gpu = state.tiles["rows"]["start_ps"], state.experts["gpu"][state.tiles["expert"]]
    paid = [each for each in Payer.of(run).spans() if each.stage in ("gemm1", "gemm2")]
    last = {(each.stage, each.gpu, each.end_ps) for each in paid} - {(p.stage, p.gpu, p.start_ps) for p in paid}
    for stage, its_gpu, opens_ps in last:
        starts_ps = rows[(gpu == its_gpu) | (its_gpu == codes.NOTHING), int(stage == "gemm2")]
        exact += opens_ps in starts_ps
    # Rows of a second part may find the SMs at those of the first.
    assert len(last) >= 2 and exact >= (len(last) if run.engine.program.parts == 1 else len(last) // 2)


def test_flows_go_the_way_of_their_tokens() -> None:
    for schedule, crossing in (
        ("dysharp", ["uplink", "reduction unit", "downlink"]),
        ("deepep", ["uplink", "downlink"]),
    ):
        engine, made = run_of(schedule).engine, timeline(schedule, tokens=3)
        steps = defaultdict(list)
        for track in made.tracks:
            for each in track.slices:
                for flow in each.flows:
                    steps[flow].append((each.start_ps, track, each))
        tokens = np.unique(np.linspace(0, engine.workload.num_tokens - 1, 3).round().astype(int))
        assert len(steps) == engine.workload.experts_of_token[tokens].sum()
        seen = set()
        for flow in steps.values():
            flow.sort(key=lambda step: (step[0], step[1].gpu, step[1].rank))
            names = [track.name for _, track, _ in flow]
            tiles = [each for _, track, each in flow if track.name == "GEMM SMs"]
            assert [each.name.split()[0] for each in tiles] == ["GEMM-1", "GEMM-2"]
            assert tiles[0].name.split()[1:] == tiles[1].name.split()[1:] and names[0] == "dispatch SMs"
            (place,) = {track.gpu for _, track, _ in flow if track.name == "GEMM SMs"}
            token = {each.args["token"] for *_, each in flow if "token" in each.args}
            if len(names) > 3 and names.count("uplink") == 2:
                out, back = names.index("uplink"), len(names) - 1 - names[::-1].index("uplink")
                assert names[out : out + 2] == ["uplink", "downlink"] and names[back:] == crossing
                assert len(token) == 1 and flow[out + 1][1].gpu == place == flow[back][1].gpu
                home = int(engine.state.tokens["home"][token.pop()])
                assert flow[0][1].gpu == flow[out][1].gpu == flow[-1][1].gpu == home
                seen.add((home, place))
        assert len(seen) > 3


def test_flows_of_chrome_begin_and_end_in_slices_that_they_go_through() -> None:
    events = json.loads(chrome_json(timeline("dysharp", tokens=2)))["traceEvents"]
    starts = {(e["pid"], e["tid"], e["ts"]) for e in events if e["ph"] == "X"}
    flows = [event for event in events if event["ph"] in "stf"]
    assert all((event["pid"], event["tid"], event["ts"]) in starts for event in flows)
    for phase in "sf":
        ids = [event["id"] for event in flows if event["ph"] == phase]
        assert len(ids) == len(set(ids)) == len({event["id"] for event in flows})


@pytest.mark.parametrize("schedule", ["dysharp-tuned", "dysharp-open", "dysharp-copies"])
def test_all_kinds_of_decisions_are_replayed(schedule: str) -> None:
    run = PROBLEM.run(load_schedule(schedule))
    again, taken = replayed(PROBLEM, ScheduleOpponent(load_schedule(schedule)))
    assert again.engine.now_ps == run.engine.now_ps and len(taken) == run.engine.decisions


@pytest.mark.parametrize("schedule", ["dysharp", "mega-moe", "deepep"])
def test_decisions_are_told_with_their_candidates(schedule: str, protos: ModuleType) -> None:
    again, taken = replayed(PROBLEM, ScheduleOpponent(load_schedule(schedule)))
    engine = run_of(schedule).engine
    assert again.engine.now_ps == engine.now_ps and len(taken) == engine.decisions > 50
    assert [each.time_ps for each in taken] == sorted(each.time_ps for each in taken)
    for each in taken:
        assert each.legal >= 2 and len(each.others) == min(each.legal - 1, MOST_SHOWN)
        assert all(each.chosen.score >= other.score for other in each.others)
    read = Read(protos, perfetto_trace(timeline(schedule, decisions=taken)))
    shown = [one for gpu in range(4) for track in read.named(gpu, "decisions") for one in read.instants[track]]
    assert len(shown) == len(taken)
    first = min(shown, key=lambda one: one[1])
    assert set(first[2]) >= {"candidates", "chosen", "others"}
    assert {"name", "score"} <= set(first[2]["chosen"]) and first[2]["chosen"]["name"] == first[0]
    # Rows that were chosen are rows that start then.
    starts = {(each.name, each.start_ps) for track in timeline(schedule).tracks for each in track.slices}
    rows = [each for each in taken if each.kind == "gemm" and each.chosen.name != "hold"]
    assert rows and all((each.chosen.name, each.time_ps) in starts for each in rows)


def test_compressed_is_the_same_and_a_layer_gives_the_same_bytes(tmp_path: Path, protos: ModuleType) -> None:
    made = timeline("dysharp")
    for name in ("t.json", "t.json.gz", "t.pftrace", "again.json.gz", "t.perfetto-trace"):
        write_timeline(tmp_path / name, made)
    assert gzip.decompress((tmp_path / "t.json.gz").read_bytes()) == (tmp_path / "t.json").read_bytes()
    assert (tmp_path / "again.json.gz").read_bytes() == (tmp_path / "t.json.gz").read_bytes()
    assert (tmp_path / "t.pftrace").read_bytes() == (tmp_path / "t.perfetto-trace").read_bytes()
    assert (tmp_path / "t.pftrace").stat().st_size < 0.6 * (tmp_path / "t.json").stat().st_size
    with pytest.raises(ConfigError, match="must end in .json, .json.gz, .pftrace or .perfetto-trace"):
        write_timeline(tmp_path / "t.txt", made)
    ScheduleTable.of(run_of("dysharp").engine).to_timeline(tmp_path / "table.json", "of a table")
    assert json.loads((tmp_path / "table.json").read_bytes())["otherData"]["title"] == "of a table"


def test_aggregated_is_smaller_and_leaves_out_what_it_says() -> None:
    full, aggregated = timeline("deepep"), timeline("deepep", detail="aggregated")
    assert len(chrome_json(aggregated)) < 0.3 * len(chrome_json(full))
    assert not any(each.flows for track in aggregated.tracks for each in track.slices)
    assert aggregated.notes[-1].startswith("aggregated") and full.notes == aggregated.notes[:-1]
    busy_ps = sum(
        each.args["busy_ps"] for track in aggregated.tracks if track.name.startswith("uplink") for each in track.slices
    )
    log = Log(run_of("deepep").engine).rows
    mine = log["resource"] == codes.LOG_UP
    assert busy_ps == (log["end_ps"] - log["start_ps"])[mine].sum()
