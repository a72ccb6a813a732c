"""Every parser of files that users give: a small whole file, the command line that reads it, and the function below."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dysharp_env.config import find_config
from dysharp_env.schedules import load_schedule
from dysharp_env.validation.tables.load import load_table
from dysharp_env.workload import ScenarioSpec
from dysharp_env.workload.importers import Wanted, import_routing
from dysharp_env.workload.loads import load_loads
from dysharp_env.workload.placement_files import load_placements, load_slot_maps
from dysharp_env.workload.suite import load_suite
from dysharp_env.workload.traces import load_trace
from tests.workload.routing_files import (
    LAYERS,
    TOP_K,
    llama_rows,
    megatron_lines,
    random_ids,
    route_lines,
    sglang_response,
    vllm_response,
    write_safetensors,
)

IDS = random_ids(4)
SHAPE = ["--layers", str(LAYERS + 1), "--top-k", str(TOP_K)]
_WANTED = Wanted(layers=LAYERS + 1, top_k=TOP_K, tokens=64)
_SMALL = ["--model", "olmoe", "--gpus", "4", "--tokens", "4", "--routing", "uniform"]


@dataclass(frozen=True)
class Parser:
    """A parser of files.

    Attributes:
        name: What it reads.
        file: A name that its files may have.
        whole: Returns a small file that it reads without complaint.
        command: Module with the ``main`` of the command that reads it, and the arguments for a path.
        read: Reads a path and no more; raises ``ConfigError``.
        beside: Writes what must lie beside the file.
        library: What must be installed besides.
    """

    name: str
    file: str
    whole: Callable[[], bytes]
    command: tuple[str, Callable[[Path], Sequence[str]]]
    read: Callable[[Path], Any]
    beside: Callable[[Path], Any] = lambda folder: None
    library: str = ""

    def main(self, path: Path) -> int:
        """Returns the exit status of the command that reads a file."""
        module, argv = self.command
        status: int = importlib.import_module(module).main([*map(str, argv(path))])
        return status

    def argv(self, path: Path) -> list[str]:
        """Returns the words of that command, without Python."""
        module, argv = self.command
        return ["-m", module.removesuffix(".__main__"), *map(str, argv(path))]


def npz(**arrays: np.ndarray) -> bytes:
    """Returns an .npz file."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    """Returns an .npy file."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def decision_list() -> dict[str, Any]:
    """Returns a decision list that nobody has played."""
    from agents.evaluation.decision_list import AskedSpec, DecisionList

    scenario = ScenarioSpec(model="olmoe", gpus=4, tokens=4, routing="uniform")
    row = {"policy": "dysharp", "seed": None, "workload": "w", "workload_seed": 0, "routing_sha256": "0" * 64}
    made = DecisionList(
        **row, scenario=scenario, schedule=load_schedule("dysharp"), asked=AskedSpec(), choices=(0, 1), makespan_ps=1
    )
    return made.model_dump(mode="json")


def results_table() -> dict[str, Any]:
    """Returns a table of results as agents.evaluate writes it."""
    row = {"policy": "dysharp", "seed": None, "workload": "w", "makespan_us": 2.0, "lower_bound_us": 1.0, "asked": 0}
    return {"schema": "dysharp/evaluate/1", "seed": 0, "rows": [{**row, "decisions": 3, "renaming": 0}], "summary": []}


def rule() -> dict[str, Any]:
    """Returns a distilled rule."""
    weights = {"gemm": {"is_gemm2": {"constant": 1.0, "weights": {"elapsed": 0.5}}}}
    words = {"context": {"elapsed": "time"}, "features": {"is_gemm2": "GEMM-2"}}
    return {"format": "dysharp/rule/3", "name": "mine", "schedule": "dysharp", **words, "weights": weights}


def hub_config() -> bytes:
    """Returns the config.json of a model with experts, as a hub keeps it."""
    sizes = {"hidden_size": 2048, "moe_intermediate_size": 1024, "num_experts": 64, "num_experts_per_tok": 8}
    return as_json({"model_type": "mine", "text_config": {**sizes, "n_group": 1}, "quantization_config": None})


def shipped_policy() -> Path:
    """Returns the folder of a shipped policy."""
    from agents.policies.card import reference_runs

    return Path(__file__).resolve().parents[2] / reference_runs()[0] / "best"


def parquet() -> bytes:
    """Returns a layer of FLAME-MoE."""
    import pyarrow
    from pyarrow import parquet as writer

    stream = io.BytesIO()
    writer.write_table(pyarrow.table({"indices": IDS[0].tolist(), "scores": np.ones(IDS[0].shape).tolist()}), stream)
    return stream.getvalue()


def gguf(values: int = 4) -> bytes:
    """Returns an importance matrix with the counts of one layer, by the definition of the format."""
    name = b"blk.1.ffn_gate_exps.weight.counts"
    key = struct.pack("<Q", 12) + b"general.type" + struct.pack("<I", 8) + struct.pack("<Q", 7) + b"imatrix"
    tensor = struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, values, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + key + tensor
    return head + bytes(-len(head) % 32) + np.ones(values, "<f4").tobytes()


def torch_file(held: Any) -> bytes:
    """Returns a .pt file."""
    import torch

    stream = io.BytesIO()
    torch.save(held, stream)
    return stream.getvalue()


def recorder() -> dict[str, Any]:
    """Returns what SGLang's recorder keeps of two passes."""
    import torch

    ids = torch.tensor(IDS.astype(np.int32))
    record = {"forward_pass_id": 0, "rank": 0, "forward_mode": 1, "topk_ids_of_layer": ids, "extend_seq_lens": [4]}
    return {"records": [record], "last_physical_to_logical_map": torch.arange(32).repeat(LAYERS, 1)}


def as_json(held: Any) -> bytes:
    """Returns JSON."""
    return json.dumps(held).encode()


def as_lines(held: Sequence[Any]) -> bytes:
    """Returns lines of JSON."""
    return b"".join(json.dumps(each).encode() + b"\n" for each in held)


def preset(kind: str, name: str) -> Callable[[], bytes]:
    """Returns a function that returns a shipped file."""
    return lambda: find_config(kind, name).read_bytes()


def _simulate(option: str, *more: str) -> tuple[str, Callable[[Path], list[Any]]]:
    return "dysharp_env.__main__", lambda path: ["simulate", *_SMALL, *more, option, path]


def _new(kind: str) -> tuple[str, Callable[[Path], list[Any]]]:
    argv = ["new", kind, "mine", "--force", "--base"]
    return "dysharp_env.__main__", lambda path: [*argv, path, "--out", path.with_name("mine.yaml")]


def _of_loads(suffix: str = "") -> tuple[str, Callable[[Path], list[Any]]]:
    return "dysharp_env.__main__", lambda path: ["trace", "info", f"{path}{suffix}"]


def _imported(name: str) -> tuple[str, Callable[[Path], list[Any]]]:
    argv = ["trace", "import", "--format", name, *SHAPE, "--tokens", "64"]
    return "dysharp_env.__main__", lambda path: [*argv, "--output", path.with_name("imported.npz"), path]


def _import(name: str) -> Callable[[Path], Any]:
    return lambda path: import_routing([path], _WANTED, name)


def _importer(name: str, file: str, whole: Callable[[], bytes], library: str = "", **more: Any) -> Parser:
    return Parser(f"import {name}", file, whole, _imported(name), _import(name), library=library, **more)


def _drawn(**given: Any) -> Any:
    """Returns a workload of a small scenario in which something is another's."""
    return ScenarioSpec(**{"model": "olmoe", "gpus": 4, "tokens": 4, "routing": "uniform", **given}).build().draw(0)


def _read_policy(path: Path) -> Any:
    from agents.opponents.read import read_contender

    return read_contender(str(path.parents[1]))


def _beside_policy(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "config.yaml").write_text("name: mine\n")
        (folder / "best").mkdir(exist_ok=True)
        for each in shipped_policy().iterdir():
            if each.name != name:
                (folder / "best" / each.name).write_bytes(each.read_bytes())

    return write


def _agent(name: str, *more: str) -> tuple[str, Callable[[Path], list[Any]]]:
    return f"agents.{name}", lambda path: [*more, path]


def _library(module: str, name: str) -> Callable[[Any], Any]:
    """Returns a function of the agents that is imported once it is called."""
    return lambda path: getattr(importlib.import_module(module), name)(path)


_TABLE = (
    "device,num_tokens,hidden_size,topk,num_experts,moe_ep_size,distribution,latency_us,op_name,kernel_source,moe_dtype\n"
    "NVIDIA GB200,64,7168,8,256,8,balanced,30.5,alltoall_dispatch,NVLinkOneSided,nvfp4\n"
)
_SYSTEM = (
    "dysharp_env.__main__",
    lambda path: ["simulate", *_SMALL[:2], "--tokens", "4", "--routing", "uniform", "--system", path],
)
_RUN = ("dysharp_env.__main__", lambda path: ["simulate", *_SMALL, "--schedule", f"{path.parents[1]}/"])
PARSERS = {
    parser.name: parser
    for parser in (
        Parser("system", "s.yaml", preset("systems", "dgx-h100"), _SYSTEM, lambda p: _drawn(system=str(p), gpus=None)),
        Parser("model", "m.yaml", preset("models", "olmoe"), _simulate("--model"), lambda p: _drawn(model=str(p))),
        Parser("model of a hub", "config.json", hub_config, _simulate("--model"), lambda p: _drawn(model=str(p))),
        Parser(
            "faults", "f.yaml", preset("faults", "dead-plane"), _simulate("--faults"), lambda p: _drawn(faults=str(p))
        ),
        Parser(
            "schedule",
            "s.yaml",
            preset("schedules", "dysharp-copies"),
            _simulate("--schedule"),
            lambda p: load_schedule(str(p)),
        ),
        Parser(
            "suite",
            "s.yaml",
            preset("suites", "smoke"),
            ("agents.evaluate", lambda path: ["--policy", "first", "--suite", path]),
            lambda p: load_suite(str(p)),
        ),
        Parser(
            "training settings",
            "t.yaml",
            preset("train", "smoke"),
            ("agents.train", lambda path: ["--print-config", "--config", path]),
            lambda p: _library("agents.training.start", "load_config")(str(p)),
        ),
        Parser(
            "tuning settings",
            "tune.yaml",
            lambda: b"system: dgx-h100\nmodel: olmoe\nrouting: uniform\ntokens: [16]\nminutes: 1.0\n",
            ("agents.tune", lambda path: ["--resume", path.parent]),
            lambda p: _tuning(p),
        ),
        Parser(
            "trace",
            "t.npz",
            lambda: npz(topk_ids=IDS, topk_weights=np.ones(IDS.shape), source=np.array("mine")),
            _of_loads(),
            lambda p: load_trace(str(p)),
        ),
        Parser(
            "loads",
            "l.npz",
            lambda: npz(loads=np.ones((2, 64))),
            _of_loads(":loads"),
            lambda p: load_loads(f"{p}:loads"),
        ),
        Parser(
            "placement.json",
            "p.json",
            lambda: as_json({"physical_to_logical_map": [[*range(64)]]}),
            _simulate("--placement"),
            lambda p: load_placements(str(p), 64, 4),
        ),
        Parser(
            "placement.yaml",
            "p.yaml",
            lambda: f"initial_global_assignments:\n  0: {[*range(64)]}\n".encode(),
            _simulate("--placement"),
            lambda p: load_placements(str(p), 64, 4),
        ),
        Parser(
            "placement.npz",
            "p.npz",
            lambda: npz(gpu_of_expert=np.arange(64) // 16),
            _simulate("--placement"),
            lambda p: load_placements(str(p), 64, 4),
        ),
        Parser(
            "slot map",
            "m.json",
            lambda: as_json([[*range(64)]]),
            (
                "dysharp_env.__main__",
                lambda path: [
                    *("trace", "import", __file__, "--output", path.with_name("x.npz"), "--placement", path),
                ],
            ),
            lambda p: load_slot_maps(str(p)),
        ),
        _importer("vllm", "v.json", lambda: as_json(vllm_response(IDS, 2))),
        _importer("sglang", "s.json", lambda: as_json(sglang_response(IDS, 2))),
        _importer("sglang-recorder", "r.pt", lambda: torch_file(recorder()), "torch"),
        _importer("megatron", "m.jsonl", lambda: as_lines(megatron_lines(IDS, 0, 0))),
        _importer("route-log", "r.jsonl", lambda: as_lines(route_lines({"a": IDS}, {"a": np.ones(IDS.shape)}))),
        _importer("tensorrt-llm", "rank0.safetensors", lambda: _counts(), "safetensors"),
        _importer("llama.cpp", "t.csv", lambda: llama_rows([IDS]).encode()),
        _importer("imatrix", "i.gguf", gguf, "gguf"),
        _importer("flame", "l_1.parquet", parquet, "pyarrow"),
        _importer("logits", "l.npz", lambda: npz(router_logits=np.random.default_rng(0).random((2, 4, 8)))),
        _importer("ids", "i.npy", lambda: npy(IDS)),
        _importer("sglang-csv", "c.csv", lambda: b"layer_id,expert_id,count\n0,1,2\n0,4,3\n0,2,1\n0,3,2\n"),
        _importer("loads", "l.json", lambda: as_json({"logical_count": [[1, 2, 3, 4, 5]]})),
        Parser(
            "table of measurements",
            "t.csv",
            _TABLE.encode,
            ("dysharp_env.__main__", lambda path: ["validate", "--table", path]),
            lambda p: load_table(str(p)),
        ),
        Parser(
            "packed table",
            "t.csv.gz",
            lambda: gzip.compress(_TABLE.encode(), mtime=0),
            ("dysharp_env.__main__", lambda path: ["validate", "--table", path]),
            lambda p: load_table(str(p)),
        ),
        Parser(
            "decision list",
            "d.json.gz",
            lambda: gzip.compress(as_json(decision_list()), mtime=0),
            _agent("check"),
            lambda p: _checked(p),
        ),
        Parser(
            "table of results",
            "r.json",
            lambda: as_json(results_table()),
            ("agents.check", lambda path: [path.with_name("d.json.gz"), "--table", path]),
            _library("agents.evaluation.stored_table", "StoredTable"),
            lambda folder: (folder / "d.json.gz").write_bytes(gzip.compress(as_json(decision_list()), mtime=0)),
        ),
        Parser("rule", "r.json", lambda: as_json(rule()), _simulate("--schedule"), lambda p: _rule(p)),
        Parser(
            "card of a policy",
            "best/policy.json",
            lambda: (shipped_policy() / "policy.json").read_bytes(),
            _RUN,
            _read_policy,
            _beside_policy("policy.json"),
            "torch",
        ),
        Parser(
            "weights of a policy",
            "best/policy.safetensors",
            lambda: (shipped_policy() / "policy.safetensors").read_bytes(),
            _RUN,
            _read_policy,
            _beside_policy("policy.safetensors"),
            "torch",
        ),
    )
}


def _counts() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return write_safetensors(
            Path(folder) / "x", {"0_1": np.ones(32, "<i8"), "0_2": np.ones(32, "<i8")}
        ).read_bytes()


def _tuning(path: Path) -> Any:
    from agents.tuning.spec import TuneSpec
    from dysharp_env.config import parse_spec, read_yaml

    return parse_spec(TuneSpec, read_yaml(path), source=str(path))


def _checked(path: Path) -> Any:
    from agents.evaluation.decision_list import read_decisions
    from agents.evaluation.provenance import parts_of

    return parts_of(read_decisions(path))


def _rule(path: Path) -> Any:
    from agents.opponents.read import learned_rule
    from agents.policies.rule import read_rule

    return learned_rule(read_rule(path))
