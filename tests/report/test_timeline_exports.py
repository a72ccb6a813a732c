"""Timelines that other tools read: PyTorch profiler traces and Chakra execution traces, a file for each GPU."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dysharp_env.__main__ import main
from dysharp_env.commands import MISTAKE
from dysharp_env.report.timelines import timeline_of, write_by_gpu
from dysharp_env.report.timelines.chakra import COMPUTE, RECEIVE, SEND, VERSION, messages
from dysharp_env.schedules import LayerRun, Problem, load_schedule
from dysharp_env.simulator.state import codes
from dysharp_env.workload import ScenarioSpec

TINY = ["--gpus", "2", "--tokens", "8"]


def run_of(schedule: str) -> LayerRun:
    scenario = ScenarioSpec(system="dgx-h100", gpus=4, model="small", tokens=32, routing="uniform").build()
    return Problem.of(scenario.system, scenario.draw(0)).run(load_schedule(schedule), logging=True)


def written(schedule: str, kind: str, folder: Path) -> tuple[LayerRun, list[bytes]]:
    run = run_of(schedule)
    write_by_gpu(folder, kind, timeline_of(run.engine, "a title", schedule=run.schedule), run.engine)
    paths = sorted(folder.iterdir())
    names = [f"rank{gpu}.json" if kind == "kineto" else f"layer.{gpu}.et" for gpu in range(4)]
    assert [path.name for path in paths] == names
    return run, [path.read_bytes() for path in paths]


def overlap_of(events: list[dict[str, Any]]) -> float:
    """Returns the share of the time with communication in which there is computation too, of kernels of one rank."""
    edges = sorted({round(us * 1e6) for event in events for us in (event["ts"], event["ts"] + event["dur"])})
    covered = {}
    for is_communication in (True, False):
        steps = np.zeros(len(edges))
        for event in events:
            if event["name"].startswith("ncclDevKernel_") == is_communication:
                since, until = (round(us * 1e6) for us in (event["ts"], event["ts"] + event["dur"]))
                steps[np.searchsorted(edges, since)] += 1
                steps[np.searchsorted(edges, until)] -= 1
        covered[is_communication] = np.cumsum(steps)[:-1] > 0
    lengths = np.diff(edges)
    return float(lengths[covered[True] & covered[False]].sum() / lengths[covered[True]].sum())


def kernels_of(content: bytes) -> list[dict[str, Any]]:
    return [event for event in json.loads(content)["traceEvents"] if event["ph"] == "X"]


def test_profiler_traces_are_as_holistic_trace_analysis_reads_them(tmp_path: Path) -> None:
    run, contents = written("dysharp", "kineto", tmp_path / "k")
    for rank, content in enumerate(contents):
        document = json.loads(content)
        assert document["distributedInfo"] == {"backend": "nccl", "rank": rank, "world_size": 4}
        assert f'"rank": {rank}' in content.decode().splitlines()[0]  # where it looks for it
        events = kernels_of(content)
        assert {event["cat"] for event in events} == {"kernel"}
        assert all(event["args"]["device"] == rank == event["pid"] for event in events)
        assert all(event["args"]["stream"] == event["tid"] > 0 for event in events)
        numbers = [event["args"]["correlation"] for event in events]
        assert sorted(numbers) == list(range(1, len(events) + 1))
        names = {event["name"].rstrip("0123456789").strip() for event in events}
        links = {f"ncclDevKernel_{what}_{link}" for what in ("dispatch", "combine") for link in ("uplink", "downlink")}
        assert links <= names and {"GEMM-1 tile", "GEMM-2 tile"} <= names
        # All data of the GPU's uplink.
        up = run.engine.state.traffic.reshape(4, 2, -1)[rank, codes.UP]
        drawn = sum(event["args"]["wire_bytes"] for event in events if event["name"].endswith("_uplink"))
        data = up[[codes.DISPATCH_DATA, codes.COMBINE_DATA]].sum() * run.engine.costs.packet.flit_bytes
        assert drawn == data


def test_holistic_trace_analysis_finds_the_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = pytest.importorskip("hta.trace_analysis")
    monkeypatch.setenv("HTA_DISABLE_NS_ROUNDING", "1")
    _, contents = written("dysharp", "kineto", tmp_path / "k")
    found = analysis.TraceAnalysis(trace_dir=str(tmp_path / "k")).get_comm_comp_overlap(visualize=False)
    for rank, content in enumerate(contents):
        (percentage,) = found[found["rank"] == rank]["comp_comm_overlap_pctg"]
        assert percentage == pytest.approx(100 * overlap_of(kernels_of(content)), abs=0.02)


def test_overlap_is_there_where_it_should_be(tmp_path: Path) -> None:
    _, fused = written("dysharp", "kineto", tmp_path / "fused")
    _, phased = written("deepep", "kineto", tmp_path / "phased")
    assert min(overlap_of(kernels_of(content)) for content in fused) > 0.01
    assert max(overlap_of(kernels_of(content)) for content in phased) == 0


def read_chakra(content: bytes) -> tuple[Any, list[Any]]:
    kinds, found, place = messages(), [], 0
    while place < len(content):
        size = shift = 0
        while True:
            byte = content[place]
            size |= (byte & 127) << shift
            place, shift = place + 1, shift + 7
            if byte < 128:
                break
        found.append(content[place : place + size])
        place += size
    assert place == len(content)
    return kinds["GlobalMetadata"].FromString(found[0]), [kinds["Node"].FromString(each) for each in found[1:]]


def attributes(message: Any) -> dict[str, Any]:
    return {each.name: getattr(each, each.WhichOneof("value")) for each in message.attr}


@pytest.mark.parametrize("schedule", ["deepep", "mega-moe"])
def test_execution_traces_hold_what_depends_on_what(schedule: str, tmp_path: Path) -> None:
    pytest.importorskip("google.protobuf")
    run, contents = written(schedule, "chakra", tmp_path / "c")
    state = run.engine.state
    sent, received = {}, {}
    for rank, content in enumerate(contents):
        metadata, nodes = read_chakra(content)
        assert metadata.version == VERSION and attributes(metadata)["rank"] == rank
        assert "whole microseconds" in attributes(metadata)["left_out"]
        assert [node.id for node in nodes] == list(range(len(nodes)))
        assert all(need < node.id for node in nodes for need in node.data_deps)
        by_kind = defaultdict(list)
        for node in nodes:
            by_kind[node.type].append(node)
            about = attributes(node)
            assert node.start_time_micros == round(about["start_ps"] / 1e6) and not about["is_cpu_op"]
            assert node.start_time_micros + node.duration_micros == round(about["end_ps"] / 1e6)
            for need in node.data_deps:
                assert attributes(nodes[need])["end_ps"] <= about["start_ps"], (node.name, nodes[need].name)
        tiles = state.experts["gpu"][state.tiles["expert"]][state.tiles["count"] > 0] == rank
        assert len(by_kind[COMPUTE]) == 2 * tiles.sum() > 0
        gemm1 = [node for node in by_kind[COMPUTE] if node.name.startswith("gemm1")]
        needed = {nodes[need].type for node in gemm1 for need in node.data_deps}
        assert needed == {RECEIVE}
        for kind, found, end in ((SEND, sent, "comm_src"), (RECEIVE, received, "comm_dst")):
            for node in by_kind[kind]:
                about = attributes(node)
                assert about[end] == rank and about["comm_type"] == kind
                found[about["comm_tag"]] = (about["comm_src"], about["comm_dst"], about["comm_size"])
    assert sent == received and len(sent) > 100
    payload = run.result().payload_bytes["by_purpose"]
    assert sum(size for *_, size in sent.values()) * 2 == payload["dispatch_data"] + payload["combine_data"]


def test_layout_of_a_message_is_the_published_one() -> None:
    pytest.importorskip("google.protobuf")
    node = messages()["Node"](id=1, name="a", type=COMPUTE, data_deps=[3], start_time_micros=2, duration_micros=5)
    node.attr.add(name="b", bool_val=False)
    # Fields 1, 2, 3, packed 5, 6, 7, and 10 of et_def.proto; in an attribute 1 and 27, written although false.
    expected = b"\x08\x01\x12\x01a\x18\x04\x2a\x01\x03\x30\x02\x38\x05\x52\x06\x0a\x01b\xd8\x01\x00"
    assert node.SerializeToString(deterministic=True) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--timeline", "c", "--timeline-format", "chakra"],
            "and dispatch is 'multicast'; choose a schedule with unicast",
        ),
        (["--timeline", "t.json", "--timeline-format", "kineto"], "timeline='t.json' must be a folder"),
        (["--timeline", "no/k", "--timeline-format", "kineto"], "the folder 'no' does not exist"),
        (["--timeline-format", "kineto"], "timeline_format=kineto needs --timeline"),
        (["--timeline-detail", "full"], "timeline_detail=full needs --timeline"),
        (["--timeline", "t.pftrace", "--timeline-tokens", "-1"], "timeline_tokens=-1 must not be negative"),
        (["--timeline", "t.pb"], "must end in .json, .json.gz, .pftrace or .perfetto-trace; a folder needs"),
        (["--timeline", "x.json", "--layer-index", "1,2"], "timeline='x.json' shows one layer; layer_index names 2"),
        (
            ["--timeline", "x.json", "--timeline-format", "xml"],
            "invalid choice: 'xml' (choose from 'kineto', 'chakra')",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.json").write_text("mine")
    assert main(["simulate", *TINY, *options]) == MISTAKE
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert (tmp_path / "t.json").read_text() == "mine" and not (tmp_path / "c").exists()


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("perfetto.protos.perfetto.trace", "perfetto.protos", "perfetto"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["simulate", *TINY, "--timeline", "t.pftrace"]) == MISTAKE
    error = capsys.readouterr().err
    assert error.startswith("error: this needs perfetto, which is not installed: pip install perfetto, or with")
    assert error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_the_command_writes_each_format_and_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for options, files in (
        (["t.json.gz"], ["t.json.gz"]),
        (["k", "--timeline-format", "kineto"], ["k/rank0.json", "k/rank1.json"]),
    ):
        assert main(["simulate", *TINY, "--schedule", "deepep", "--timeline", *options]) == 0
        assert all((tmp_path / file).is_file() for file in files)
        assert f"wrote {options[0]}: " in capsys.readouterr().out
    assert main(["simulate", *TINY, "--timeline", "t.json", "--timeline-detail", "aggregated"]) == 0
    assert "aggregated, --timeline-detail full shows every segment" in capsys.readouterr().out
    assert json.loads((tmp_path / "t.json").read_bytes())["otherData"]["is_aggregated"]
    assert main(["simulate", *TINY, "--timeline", "t.json"]) == 0
    events = json.loads((tmp_path / "t.json").read_bytes())["traceEvents"]
    assert {event["cat"] for event in events if event["ph"] == "s"} == {"token"}
    assert any(event["ph"] == "i" for event in events)
