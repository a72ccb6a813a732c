"""Importers: files in which others keep routing become a trace, one small module a family of formats.

``FORMATS`` is the table of them. An importer turns files into pieces of routing or into loads; what they have in common
(dense layers, padding, phases, source GPUs, sampling) is done once, in ``assembly``. Nothing is ever unpickled, and
sizes that a file claims are checked before memory is taken for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dysharp_env.config import require_choice
from dysharp_env.files import ConfigError, foreign, shown
from dysharp_env.workload.importers import arrays, engines, records, responses, tables
from dysharp_env.workload.importers import recognition as known
from dysharp_env.workload.importers.assembly import Imported, Phase, assemble, sample
from dysharp_env.workload.importers.pieces import MOST_EXPERTS, Counted, Routing, Wanted
from dysharp_env.workload.importers.reading import Budget
from dysharp_env.workload.importers.recognition import Look, look_at

__all__ = ["FORMATS", "Imported", "Phase", "Wanted", "format_of", "import_routing"]

_MOST_FILES = 4096


@dataclass(frozen=True)
class Format:
    """A format that can be imported.

    Attributes:
        what: Whose it is and how it is made.
        holds: What is in it.
        needs: What the user must say beside it, or the library that reads it; empty if nothing.
        recognises: Whether a file is of the format.
        read: Makes pieces or loads of its files.
    """

    what: str
    holds: Literal["tokens", "loads", "tokens or loads"]
    needs: str
    recognises: Callable[[Look], bool]
    read: Callable[[list[Path], Wanted, Budget], Routing | Counted]


_SHAPE = "--layers and --top-k, or --model"
# By the name that --format takes, in the order in which files are tried.
FORMATS: dict[str, Format] = {
    "vllm": Format("vLLM, HTTP responses", "tokens", "", known.is_vllm, responses.read_vllm),
    "sglang": Format("SGLang, HTTP responses", "tokens", _SHAPE, known.is_sglang, responses.read_sglang),
    "sglang-recorder": Format(
        "SGLang, recorder (.pt)",
        "tokens or loads",
        "torch; of loads --top-k or --model",
        lambda look: look.kind == "torch",
        engines.read_recorder,
    ),
    "megatron": Format(
        "Megatron-LM, router_trace_rank*.jsonl",
        "tokens",
        "",
        lambda look: look.kind == "json" and "top_indices" in look.names,
        records.read_megatron,
    ),
    "route-log": Format("loggers of routes (.jsonl)", "tokens", "", known.is_route_log, records.read_route_log),
    "tensorrt-llm": Format(
        "TensorRT-LLM, EXPERT_STATISTIC_PATH",
        "tokens or loads",
        "safetensors",
        known.is_tensorrt,
        engines.read_tensorrt,
    ),
    "llama.cpp": Format(
        "llama.cpp, MOE_TRACE_OUT (.csv)", "tokens", "--top-k or --model", known.is_llama, tables.read_llama
    ),
    "imatrix": Format(
        "llama.cpp, importance matrix (.gguf)",
        "loads",
        "gguf; --top-k or --model",
        lambda look: look.kind == "gguf",
        tables.read_imatrix,
    ),
    "flame": Format(
        "FLAME-MoE (.parquet)", "tokens", "pyarrow", lambda look: look.kind == "parquet", tables.read_flame
    ),
    "logits": Format(
        "Hugging Face, router_logits (.npz)", "tokens", "--top-k or --model", known.is_logits, arrays.read_logits
    ),
    "ids": Format(
        "arrays of ids (.npy, .npz), vLLM's Python interface and RL trainers",
        "tokens or loads",
        "",
        known.is_arrays,
        arrays.read_ids,
    ),
    "sglang-csv": Format(
        "SGLang, old CSV of loads", "loads", "--top-k or --model", known.is_sglang_csv, tables.read_sglang_counts
    ),
    "loads": Format(
        "SGLang, logical_count (.json); EPLB's weights (.json)",
        "loads",
        "--top-k or --model",
        known.is_loads_json,
        engines.read_loads_json,
    ),
}


def format_of(path: Path) -> str:
    """Returns the name of the format of a file, by what is in it.

    Raises:
        ConfigError: It is of none, or of one that is never read.
    """
    look = look_at(path)
    if look.kind == "pickle":
        engines.refuse_pickle(path)
    if look.kind == "torch" and path.name.startswith("router_state_rank"):
        raise ConfigError(
            f"'{path}': holds the routers' weights, not what tokens chose; import router_trace_rank*.jsonl"
        )
    found = next((name for name, each in FORMATS.items() if each.recognises(look)), None)
    if found is not None:
        return found
    if look.kind == "json" and "physical_to_logical_map" in look.names:
        raise ConfigError(f"'{path}': is a placement of experts, not routing; give it as placement")
    if look.kind == "json" and look.names & {"meta_info", "sglext"}:
        raise ConfigError(f"'{path}': has no key 'routed_experts': the request must ask for it (return_routed_experts)")
    what = f"{look.kind} with {shown(sorted(look.names))}" if look.names else f"{look.kind} {shown(look.header[:40])}"
    raise ConfigError(f"'{path}': is of no known format ({what}); choose format from {list(FORMATS)}")


def import_routing(
    paths: Sequence[str | Path],
    wanted: Wanted | None = None,
    name: str | None = None,
    phase: Phase = "both",
    on_layer: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[str, Imported]:
    """Returns the format of files and the trace that they hold; loads become one by sampling.

    Args:
        paths: Files of one format; a folder stands for its files.
        wanted: What is said beside the files.
        name: The format; None recognises it.
        phase: Which tokens to keep, where the format tells prefill and decode apart.
        on_layer: Told how many layers are sampled, and of how many.

    Raises:
        ConfigError: A file is damaged, of no known format or of another than the first, or is never read; the message
            names it, and the place in it.
    """
    wanted = wanted or Wanted()
    if (wanted.experts or 0) > MOST_EXPERTS:
        raise ConfigError(f"experts={wanted.experts} must be at most {MOST_EXPERTS}")
    files = _files_of(paths)
    if name is None:
        found = {path: format_of(path) for path in files}
        name = found[files[0]]
        other = next((path for path, each in found.items() if each != name), None)
        if other is not None:
            raise ConfigError(f"'{other}': is of format '{found[other]}', '{files[0]}' of '{name}'; import them apart")
    else:
        require_choice("format", name, FORMATS)
        for path in files:
            if look_at(path).kind == "pickle":
                engines.refuse_pickle(path)
    try:
        held = FORMATS[name].read(files, wanted, Budget())
    except MemoryError:
        raise ConfigError(f"'{files[0]}': needs more memory than there is") from None
    source = f"{FORMATS[name].what}: {', '.join(path.name for path in files[:4])}"
    source += f" and {len(files) - 4} more files" if len(files) > 4 else ""
    if isinstance(held, Routing):
        return name, assemble(held, wanted, phase, source if phase == "both" else f"{source}; {phase} only")
    if phase != "both":
        raise ConfigError(f"phase='{phase}': format '{name}' holds loads here, which are of no tokens in particular")
    return name, sample(held, wanted, source, on_layer)


def _files_of(paths: Sequence[str | Path]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        if not os.path.isdir(path):
            files.append(path)
            continue
        with foreign(f"'{path}'", "folder"):
            files += sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
    if not files:
        raise ConfigError(f"'{paths[0]}' holds no files" if paths else "no files to import")
    if len(files) > _MOST_FILES:
        raise ConfigError(f"{len(files)} files are too many; at most {_MOST_FILES} are imported at once")
    return files
