"""Routing as tables: llama.cpp's and SGLang's CSV, FLAME-MoE's parquet, llama.cpp's importance matrix in GGUF.

llama.cpp (pull request 28544, ``MOE_TRACE_OUT``): a CSV ``layer,expert``, of which top-k consecutive rows are one
token. It goes through the layers once for every batch of tokens: where the number of the layer falls, a batch begins.
Batches of one token are decode. Of a prompt's last layer it computes the last token only; the others have no expert
there.

Old SGLang (pull request 5275): a CSV ``layer_id,expert_id,count``, loads. FLAME-MoE: a parquet a layer
with lists ``indices`` and ``scores``. An importance matrix holds, by layer and expert, how many tokens came: loads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dysharp_env.files import ConfigError, check_size, foreign, shown
from dysharp_env.workload.choices import NO_EXPERT
from dysharp_env.workload.importers.pieces import (
    MOST_EXPERTS,
    Counted,
    Piece,
    Routing,
    Wanted,
    counts_of,
    ids_of,
    to_logical,
)
from dysharp_env.workload.importers.reading import MOST_IDS, Budget, read_lines
from dysharp_env.workload.npz import MOST_ARRAY_BYTES

LLAMA_HEADER = b"layer,expert"
SGLANG_HEADER = b"layer_id,expert_id,count"
_ROWS = 65536  # lines of a table that are read at once
_MOST_LINE = 256
_MOST_LAYERS = 4096
_MOST_GGUF_PARTS = 50_000
_COUNTS = re.compile(r"blk\.(\d+)\.ffn_(?:gate|up|down|gate_up)_exps\.weight\.counts")


def _read_table(path: Path, columns: int) -> Iterator[np.ndarray]:
    """Yields (row, column) int64 blocks of a CSV of whole numbers, below its header.

    Raises:
        ConfigError: A line is something else; the message has its number.
    """
    lines = read_lines(path, _MOST_LINE)
    next(lines, None)
    while block := list(islice(lines, _ROWS)):
        try:
            table = np.loadtxt([line for _, line in block], np.int64, delimiter=",", ndmin=2, comments=None)
        except (ValueError, OverflowError):
            table = np.empty((0, 0), np.int64)
        if table.shape != (len(block), columns):
            number, line = next((each for each in block if not _is_row(each[1], columns)), block[0])
            raise ConfigError(f"'{path}' line {number}: {shown(line)} must be {columns} whole numbers")
        if (table < 0).any():
            number = block[int((table < 0).any(axis=1).argmax())][0]
            raise ConfigError(f"'{path}' line {number}: {table[table < 0][0]} must not be negative")
        yield table


def _is_row(line: bytes, columns: int) -> bool:
    parts = line.split(b",")
    return len(parts) == columns and all(re.fullmatch(rb"\s*[+-]?\d{1,18}\s*", part) for part in parts)


def read_llama(paths: list[Path], wanted: Wanted, budget: Budget) -> Routing:
    """Returns the routing of llama.cpp's CSV; each file is a sequence."""
    routing = Routing()
    for path in paths:
        where = f"'{path}'"
        top_k = wanted.require_top_k(where)
        blocks = []
        for table in _read_table(path, 2):
            budget.take(table.size // 2, where)
            if (table[:, 0] >= _MOST_LAYERS).any() or (table[:, 1] >= MOST_EXPERTS).any():
                raise ConfigError(f"{where}: layer {table[:, 0].max()} or expert {table[:, 1].max()} is too large")
            blocks.append(table.astype(np.int32))
        if not blocks:
            raise ConfigError(f"{where}: has no rows below its header")
        routing.pieces.append(_of_passes(np.concatenate(blocks), top_k, where, wanted, routing.notes))
    return routing


def _of_passes(table: np.ndarray, top_k: int, where: str, wanted: Wanted, notes: list[str]) -> Piece:
    """Returns the sequence that rows, (row, [layer, expert]), are of."""
    numbers = table[:, 0]
    starts = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1]))
    runs = numbers[starts]  # (run,) layers, a run each
    lengths = np.diff(np.append(starts, len(table)))
    odd = np.flatnonzero(lengths % top_k)
    if odd.size:
        run = int(odd[0])
        raise ConfigError(
            f"{where} line {starts[run] + 2}: {lengths[run]} rows of layer {runs[run]} are not whole tokens of"
            f" top_k={top_k}"
        )
    tokens, layers = lengths // top_k, tuple(np.unique(runs).tolist())
    begins = np.flatnonzero(np.append(True, runs[1:] <= runs[:-1]))  # (pass,) the first run
    passes, prefill, short = [], 0, 0
    for first, end in zip(begins.tolist(), [*begins[1:].tolist(), len(runs)], strict=True):
        if tuple(runs[first:end].tolist()) != layers:
            raise ConfigError(
                f"{where} line {starts[first] + 2}: a pass has layers {runs[first:end].tolist()[:8]}, others"
                f" {list(layers)[:8]}"
            )
        most = int(tokens[first])
        ids = np.full((len(layers), most, top_k), NO_EXPERT, np.int32)
        for row, run in enumerate(range(first, end)):
            own = int(tokens[run])
            if own != most and not (run == end - 1 and own < most):
                raise ConfigError(
                    f"{where} line {starts[run] + 2}: layer {runs[run]} has {own} tokens, the others of its pass {most}"
                )
            chosen = table[starts[run] : starts[run] + own * top_k, 1]
            ids[row, most - own :] = chosen.reshape(own, top_k)
            short += most - own
        passes.append(ids)
        prefill += most if most > 1 else 0
    if short:
        notes.append(
            f"{where}: {short} tokens have no expert in layer {layers[-1]}, the last, which skips most of a prompt"
        )
    narrow = ids_of(np.concatenate(passes, axis=1), where, "expert", Budget())
    return Piece(to_logical(narrow, layers, wanted.physical, where, "expert"), layers, where, prefill=prefill)


def read_sglang_counts(paths: list[Path], wanted: Wanted, budget: Budget) -> Counted:
    """Returns the loads of SGLang's CSV, of all files together."""
    blocks = [table for path in paths for table in _limited(_read_table(path, 3), budget, path)]
    where = f"'{paths[0]}'"
    if not blocks:
        raise ConfigError(f"{where}: has no rows below its header")
    table = np.concatenate(blocks)
    layers, experts = int(table[:, 0].max()) + 1, int(table[:, 1].max()) + 1
    if layers > _MOST_LAYERS or experts > MOST_EXPERTS or layers * experts > MOST_IDS:
        raise ConfigError(f"{where}: layer_id {layers - 1} or expert_id {experts - 1} is too large")
    counts = np.zeros((layers, wanted.experts or (wanted.model.choices if wanted.model else experts)))
    if counts.shape[1] < experts:
        raise ConfigError(f"{where}: expert_id {experts - 1} is not below the {counts.shape[1]} experts of a layer")
    np.add.at(counts, (table[:, 0], table[:, 1]), table[:, 2])
    return Counted(counts, tuple(range(layers)), where)


def _limited(tables: Iterator[np.ndarray], budget: Budget, path: Path) -> Iterator[np.ndarray]:
    for table in tables:
        budget.take(table.size * 2, f"'{path}'")
        yield table


def read_flame(paths: list[Path], wanted: Wanted, budget: Budget) -> Routing:
    """Returns the routing of FLAME-MoE's parquet files, one a layer, numbered by their names or else in order."""
    found: dict[int, tuple[Path, np.ndarray, np.ndarray | None]] = {}
    for place, path in enumerate(paths):
        digits = re.findall(r"(?:layer|l)[_-]?(\d+)", path.stem) or re.findall(r"(\d+)", path.stem)
        number = int(digits[-1]) if digits else place
        if number in found:
            raise ConfigError(f"'{path}': is of layer {number}, as '{found[number][0]}' is")
        found[number] = (path, *_read_parquet(path, budget))
    layers = tuple(sorted(found))
    first, ids, _ = found[layers[0]]
    for path, other, _ in found.values():
        if other.shape != ids.shape:
            raise ConfigError(f"'{path}': indices has shape {other.shape}; that of '{first}' is {ids.shape}")
    where = f"'{first}'"
    logical = to_logical(np.stack([found[layer][1] for layer in layers]), layers, wanted.physical, where, "indices")
    scores = [each for layer in layers if (each := found[layer][2]) is not None]
    return Routing([Piece(logical, layers, where, weights=np.stack(scores) if len(scores) == len(layers) else None)])


def _read_parquet(path: Path, budget: Budget) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the ids, (token, k), and where there are some the scores of one layer."""
    from pyarrow import parquet

    where = f"'{path}'"
    with foreign(where, "parquet file"), parquet.ParquetFile(path) as file:
        size = sum(file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups))
        names = file.schema_arrow.names
        if "indices" not in names:
            raise ConfigError(f"{where}: has no column 'indices'; it holds {shown(names)}")
        check_size(path, size, MOST_ARRAY_BYTES, "columns")
        parts: dict[str, list[np.ndarray]] = {name: [] for name in ("indices", "scores") if name in names}
        for batch in file.iter_batches(_ROWS, columns=list(parts)):
            for name, blocks in parts.items():
                blocks.append(_lists_of(batch.column(name), where, name))
            budget.take(parts["indices"][-1].size, f"{where}: indices")
    if not parts["indices"]:
        raise ConfigError(f"{where}: has no rows")
    if len({block.shape[1] for block in parts["indices"]}) > 1:
        raise ConfigError(f"{where}: indices has lists of different lengths")
    ids = ids_of(np.concatenate(parts["indices"]), where, "indices", Budget(), ndim=2)
    scores = np.concatenate(parts["scores"]).astype(np.float32) if "scores" in parts else None
    return ids, scores if scores is not None and scores.shape == ids.shape else None


def _lists_of(column: Any, where: str, name: str) -> np.ndarray:
    """Returns a column of lists that are as long as each other, (row, k)."""
    wrong = ConfigError(f"{where}: {name} must be lists of numbers, all of one length")
    if column.null_count or not hasattr(column, "value_lengths"):
        raise wrong
    flat, lengths = column.flatten(), column.value_lengths().to_numpy(zero_copy_only=False)
    values = flat.to_numpy(zero_copy_only=False) if not flat.null_count else np.empty(0)
    if values.dtype.kind not in "iuf" or not len(lengths) or np.ptp(lengths) or values.size != lengths.sum():
        raise wrong
    return values.reshape(len(lengths), -1)


def read_imatrix(paths: list[Path], wanted: Wanted, budget: Budget) -> Counted:
    """Returns the loads of llama.cpp's importance matrices, of all files together."""
    by_layer: dict[int, np.ndarray] = {}
    for path in paths:
        where, seen = f"'{path}'", set()
        for tensor in _open_gguf(path).tensors:
            match = _COUNTS.fullmatch(tensor.name)
            # Gate, up and down of a layer count the same tokens.
            if match is None or int(match[1]) in seen:
                continue
            seen.add(int(match[1]))
            counts = counts_of(np.asarray(tensor.data).reshape(1, -1), where, tensor.name)[0]
            total = by_layer.setdefault(int(match[1]), np.zeros_like(counts))
            if total.shape != counts.shape:
                raise ConfigError(f"{where}: {tensor.name} has {len(counts)} experts; others have {len(total)}")
            total += counts
        if not seen:
            raise ConfigError(
                f"{where}: has no tensor 'blk.N.ffn_gate_exps.weight.counts': no importance matrix of an MoE"
            )
    layers = tuple(sorted(by_layer))
    if len({len(by_layer[layer]) for layer in layers}) > 1:
        raise ConfigError(f"'{paths[0]}': layers have different numbers of experts")
    return Counted(np.stack([by_layer[layer] for layer in layers]), layers, f"'{paths[0]}'")


def _open_gguf(path: Path) -> Any:
    import gguf

    class BoundedReader(gguf.GGUFReader):
        """Reads what is in the file, where the library would go on beyond its end, and not too much of it."""

        parts = 0

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            self.parts += 1
            if offset + np.dtype(dtype).itemsize * int(count) > len(self.data) or self.parts > _MOST_GGUF_PARTS:
                raise ValueError("it ends early, or holds too many parts")
            return super()._get(offset, dtype, count, override_order)

    with foreign(f"'{path}'", "GGUF file"):
        return BoundedReader(path)
