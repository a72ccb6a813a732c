"""Writes a layer as Chakra execution traces, a file a GPU: rows of GEMMs, vectors sent and received, who needs what.

Schema: mlcommons/chakra, ``schema/protobuf/et_def.proto`` at 6dc63e1; fields that are not written are left out. A file
is messages, each behind its length as a varint: ``GlobalMetadata``, then nodes, every one behind those that it needs.
Chakra counts whole microseconds and knows neither multicast nor sums in the switch: schedules that use one are refused,
for as unicast they would move other bytes at other times. Times to the picosecond are in the attributes of nodes.
"""

from __future__ import annotations

import io
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.report.timelines.log import Log
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import GEMM1, GEMM2

VERSION = "1.0.0"
COMPUTE, SEND, RECEIVE = 4, 5, 6  # NodeType
LOSSES = (
    "start_time_micros and duration_micros are whole microseconds; start_ps and end_ps are exact",
    "a vector is one message: its packets, the switch's queues, control flits and SMs are left out",
    "what a schedule pays (launches, exchanges, barriers, kernels between phases) and decisions are left out",
    "copies of experts made in the layer are left out",
)
_PACKAGE = "ChakraProtoMsg"
# Message: fields as (name, number, type, whether repeated); of message types only those that are used.
_SCHEMA: dict[str, tuple[tuple[str, int, str, bool], ...]] = {
    "AttributeProto": (
        ("name", 1, "string", False),
        ("int32_val", 7, "int32", False),
        ("int64_val", 9, "int64", False),
        ("bool_val", 27, "bool", False),
        ("string_val", 29, "string", False),
    ),
    "GlobalMetadata": (("version", 1, "string", False), ("attr", 2, "AttributeProto", True)),
    "Node": (
        ("id", 1, "uint64", False),
        ("name", 2, "string", False),
        ("type", 3, "int32", False),  # an enum on the wire is one
        ("data_deps", 5, "uint64", True),
        ("start_time_micros", 6, "uint64", False),
        ("duration_micros", 7, "uint64", False),
        ("attr", 10, "AttributeProto", True),
    ),
}


@cache
def messages() -> dict[str, Any]:
    """Returns the classes of the messages, by name.

    Raises:
        ModuleNotFoundError: The package ``protobuf``, which ``perfetto`` brings, is not installed.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="dysharp_env/et_def.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        if name == "AttributeProto":
            message.oneof_decl.add(name="value")
        for label, number, kind, is_repeated in fields:
            added = message.field.add(name=label, number=number)
            added.label = field_type.LABEL_REPEATED if is_repeated else field_type.LABEL_OPTIONAL
            if kind in _SCHEMA:
                added.type, added.type_name = field_type.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                added.type = getattr(field_type, f"TYPE_{kind.upper()}")
            if label.endswith("_val"):
                added.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _SCHEMA}


class _Node(NamedTuple):
    name: str
    kind: int
    start_ps: int
    end_ps: int
    key: tuple[str, int]
    needs: tuple[tuple[str, int], ...]
    attributes: dict[str, int]


def require_unicast(engine: Engine) -> None:
    """Checks that a layer is of a schedule that Chakra can tell.

    Raises:
        ConfigError: The switch multicasts or sums.
    """
    for stage in ("dispatch", "combine"):
        primitive = getattr(engine.program, stage)
        if primitive.in_switch:
            raise ConfigError(
                f"timeline_format='chakra' knows no multicast and no sums in the switch, and {stage} is"
                f" '{primitive.name}'; choose a schedule with unicast or pull both ways, such as deepep"
            )


def chakra_traces(engine: Engine, title: str) -> list[bytes]:
    """Returns the execution trace of each GPU of a finished layer whose engine kept a log.

    Raises:
        ConfigError: The switch multicasts or sums.
        ModuleNotFoundError: The package ``protobuf`` is not installed.
    """
    require_unicast(engine)
    nodes = _Layer(engine).nodes
    return [_encoded(nodes[gpu], gpu, title) for gpu in range(engine.workload.num_gpus)]


@dataclass
class _Layer:
    """The nodes of a layer, by GPU."""

    engine: Engine
    nodes: dict[int, list[_Node]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self._log = Log(self.engine)
        self._tiles_of_pair: dict[int, list[int]] = defaultdict(list)
        self._rows()
        root = self.engine.state.root[0]
        self._vectors("dispatch", 0, int(root["partial0"]))
        self._vectors("combine", int(root["partial0"]), int(root["store0"]))

    def _rows(self) -> None:
        """Adds rows of GEMMs: GEMM-1 needs copies that came, GEMM-2 needs GEMM-1."""
        state = self.engine.state
        crossed = set(self._log.owner[(self._log.rows["resource"] == codes.LOG_DOWN) & (self._log.what == 0)].tolist())
        for tile in np.flatnonzero(state.tiles["rows"]["end_ps"][:, GEMM2] >= 0).tolist():
            row, expert = state.tiles[tile], state.experts[state.tiles["expert"][tile]]
            pairs = state.arrived_pair[row["first"] : row["first"] + row["count"]].tolist()
            for pair in pairs:
                self._tiles_of_pair[pair].append(tile)
            came = tuple(("dispatch", pair) for pair in dict.fromkeys(pairs) if pair in crossed)
            about = {"expert": int(expert["number"]), "tokens": int(row["count"])}
            for gemm, needs in ((GEMM1, came), (GEMM2, (("gemm1", tile),))):
                start_ps, end_ps = (int(row["rows"][time][gemm]) for time in ("start_ps", "end_ps"))
                name = f"gemm{gemm + 1}"
                node = _Node(f"{name}_tile_{tile}", COMPUTE, start_ps, end_ps, (name, tile), needs, about)
                self.nodes[int(expert["gpu"])].append(node)

    def _vectors(self, stage: str, first: int, end: int) -> None:
        """Adds a message for every vector of pairs, whose nodes are from ``first`` on, sent and received."""
        log, pairs = self._log, self.engine.state.pairs
        is_mine = (log.nodes >= first) & (log.nodes < end)
        ends = []
        for resource in (codes.LOG_UP, codes.LOG_DOWN):
            places = np.flatnonzero(is_mine & (log.rows["resource"] == resource))
            ends.append(_spans(log, places))
        hop_ps = self.engine.costs.hop_ps
        for pair, (start_ps, _, num_bytes) in ends[0].items():
            there, home = int(pairs["gpu"][pair]), int(pairs["home"][pair])
            source, target = (home, there) if stage == "dispatch" else (there, home)
            tag = 2 * pair + (stage == "combine")
            about = {"comm_size": num_bytes, "comm_src": source, "comm_dst": target, "comm_tag": tag}
            about["token"] = int(pairs["token"][pair])
            done = tuple(("gemm2", tile) for tile in self._tiles_of_pair[pair]) if stage == "combine" else ()
            until_ps = ends[0][pair][1]
            name = f"{stage}_pair_{pair}"
            self.nodes[source].append(
                _Node(f"send_{name}", SEND, start_ps, until_ps, (f"{stage} sent", pair), done, about)
            )
            came_ps = ends[1][pair][1] + hop_ps
            down = _Node(f"receive_{name}", RECEIVE, ends[1][pair][0], came_ps, (stage, pair), (), about)
            self.nodes[target].append(down)


def _spans(log: Log, places: np.ndarray) -> dict[int, tuple[int, int, int]]:
    """Returns by pair when the first of its segments began, when the last ended, and their payload in bytes."""
    found: dict[int, tuple[int, int, int]] = {}
    columns = (log.owner[places], log.rows["start_ps"][places], log.rows["end_ps"][places], log.payload_bytes[places])
    for pair, start_ps, end_ps, num_bytes in zip(*(column.tolist() for column in columns), strict=True):
        first_ps, last_ps, so_far = found.get(pair, (start_ps, end_ps, 0))
        found[pair] = min(first_ps, start_ps), max(last_ps, end_ps), so_far + num_bytes
    return found


def _encoded(nodes: list[_Node], gpu: int, title: str) -> bytes:
    kinds, file = messages(), io.BytesIO()
    metadata = kinds["GlobalMetadata"](version=VERSION)
    for name, text in (("title", title), ("left_out", "; ".join(LOSSES))):
        metadata.attr.add(name=name, string_val=text)
    metadata.attr.add(name="rank", int32_val=gpu)
    _write(file, metadata)
    # What a node needs began before it, and of equals is a stage earlier.
    stages = ("dispatch sent", "dispatch", "gemm1", "gemm2", "combine sent", "combine")
    ordered = sorted(nodes, key=lambda node: (node.start_ps, stages.index(node.key[0]), node.key[1]))
    numbers = {node.key: number for number, node in enumerate(ordered)}
    for number, node in enumerate(ordered):
        message = kinds["Node"](id=number, name=node.name, type=node.kind)
        message.data_deps.extend(sorted(numbers[key] for key in node.needs))
        start_us, end_us = (round(time_ps / 1e6) for time_ps in (node.start_ps, node.end_ps))
        message.start_time_micros, message.duration_micros = start_us, end_us - start_us
        message.attr.add(name="is_cpu_op", bool_val=False)
        if "comm_size" in node.attributes:
            message.attr.add(name="comm_type", int64_val=node.kind)
        for name, value in {**node.attributes, "start_ps": node.start_ps, "end_ps": node.end_ps}.items():
            if name in ("comm_src", "comm_dst", "comm_tag"):
                message.attr.add(name=name, int32_val=value)
            else:
                message.attr.add(name=name, int64_val=value)
        _write(file, message)
    return file.getvalue()


def _write(file: io.BytesIO, message: Any) -> None:
    content = message.SerializeToString(deterministic=True)
    size = len(content)
    while size >= 128:
        file.write(bytes((size & 127 | 128,)))
        size >>= 7
    file.write(bytes((size,)))
    file.write(content)
