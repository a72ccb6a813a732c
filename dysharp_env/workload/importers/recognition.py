"""What a file is, by what is in it: its first bytes, the members of an archive, the keys of JSON, a table's header."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dysharp_env.files import open_file
from dysharp_env.files.as_json import MOST_DATA_BYTES
from dysharp_env.workload.importers.arrays import LOGITS
from dysharp_env.workload.importers.engines import RANK_FILE
from dysharp_env.workload.importers.reading import read_start
from dysharp_env.workload.importers.tables import LLAMA_HEADER, SGLANG_HEADER
from dysharp_env.workload.npz import array_names, zip_members

_START_BYTES = 4096
_CHUNK_BYTES = 4 << 20
_KEYS = re.compile(
    rb'"(top_indices|routed_experts|prompt_routed_experts|meta_info|sglext|logical_count|physical_to_logical_map|token_idx'
    rb'|layers_logged|num_experts_per_token)"\s*:'
)
# Keys of which one is enough to know.
_DECISIVE = {"top_indices", "token_idx", "layers_logged", "logical_count"}


@dataclass(frozen=True)
class Look:
    """What a look at a file shows.

    Attributes:
        path: The file.
        kind: ``zip``, ``npy``, ``pickle``, ``parquet``, ``gguf``, ``safetensors``, ``json``, ``text`` or ``empty``.
        names: Keys of JSON that formats have, arrays of an npz.
        header: The first line of text.
    """

    path: Path
    kind: str
    names: frozenset[str] = frozenset()
    header: bytes = b""


def look_at(path: Path) -> Look:
    """Returns what a look at a file shows.

    Raises:
        ConfigError: It cannot be read.
    """
    start = read_start(path, _START_BYTES)
    for magic, kind in ((b"\x93NUMPY", "npy"), (b"PAR1", "parquet"), (b"GGUF", "gguf"), (b"\x80", "pickle")):
        if start.startswith(magic):
            # A safetensors header may be 128 bytes long, which looks like a pickle's first byte.
            return Look(path, "safetensors" if kind == "pickle" and start[8:9] == b"{" else kind)
    if start.startswith(b"PK"):
        is_torch = any(name.endswith("data.pkl") for name in zip_members(path))
        return Look(path, "torch" if is_torch else "zip", frozenset(() if is_torch else array_names(path)))
    if start[8:9] == b"{" and RANK_FILE.fullmatch(path.name):
        return Look(path, "safetensors")
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        return Look(path, "empty")
    if text[:1] in b"{[":
        return Look(path, "json", _keys_of(path))
    return Look(path, "text", header=re.sub(rb"\s", b"", text.split(b"\n", 1)[0]))


def _keys_of(path: Path) -> frozenset[str]:
    """Returns the keys that formats have, of those in the file or at its start that are enough."""
    found: set[str] = set()
    with open_file(path) as file:
        rest = b""
        for _ in range(MOST_DATA_BYTES // _CHUNK_BYTES + 1):
            chunk = file.read(_CHUNK_BYTES)
            if not chunk or found & _DECISIVE:
                break
            found |= {match.decode() for match in _KEYS.findall(rest + chunk)}
            rest = chunk[-64:]
    return frozenset(found)


def is_llama(look: Look) -> bool:
    """Returns whether a file is llama.cpp's CSV."""
    return look.header == LLAMA_HEADER


def is_sglang_csv(look: Look) -> bool:
    """Returns whether a file is SGLang's CSV of loads."""
    return look.header == SGLANG_HEADER


def is_logits(look: Look) -> bool:
    """Returns whether a file is an npz of logits."""
    return look.kind == "zip" and any(LOGITS.fullmatch(name) for name in look.names)


def is_arrays(look: Look) -> bool:
    """Returns whether a file is an array, or an npz, of ids."""
    return look.kind == "npy" or (look.kind == "zip" and bool(look.names & {"routed_experts", "topk_ids"}))


def is_vllm(look: Look) -> bool:
    """Returns whether a file holds vLLM's responses."""
    wanted = {"routed_experts", "prompt_routed_experts"}
    return look.kind == "json" and bool(look.names & wanted) and not look.names & {"meta_info", "sglext"}


def is_sglang(look: Look) -> bool:
    """Returns whether a file holds SGLang's responses."""
    return look.kind == "json" and "routed_experts" in look.names and bool(look.names & {"meta_info", "sglext"})


def is_route_log(look: Look) -> bool:
    """Returns whether a file is a log of routes."""
    return look.kind == "json" and bool(look.names & {"token_idx", "layers_logged"})


def is_loads_json(look: Look) -> bool:
    """Returns whether a file holds loads as JSON: SGLang's, or bare lists."""
    is_bare = not look.names and read_start(look.path, 64).lstrip().startswith(b"[")
    return look.kind == "json" and ("logical_count" in look.names or is_bare)


def is_tensorrt(look: Look) -> bool:
    """Returns whether a file is of TensorRT-LLM's statistics."""
    return look.kind == "safetensors" or (look.kind == "json" and "num_experts_per_token" in look.names)
