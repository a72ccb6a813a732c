"""Routing traces: which experts real tokens chose, read from and written to npz files without pickled objects.

A file holds ``topk_ids`` (layer, token, k) as integers and, where known, ``topk_weights`` of the same shape,
``doc_offsets`` (first token of each document, and the total), ``layer_index`` (the model's number of each layer),
``tokens_of_gpu`` (tokens that each source GPU had, which then follow one another GPU by GPU), ``experts`` and
``source``. Tokens of a document follow one another; tokens of different documents are unrelated. An id of -1 is no
expert, wherever it stands: a slot that was dropped. A token that has none in any layer is padding and left out. Files
may be damaged or made by other programs, so everything is checked before it is used.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dysharp_env.files import ConfigError, Notice, require_writable, shown, write_bytes
from dysharp_env.files.errors import one_line
from dysharp_env.workload.choices import NO_EXPERT, front_order, is_none
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.npz import array_names, read_arrays

RECORDED = "recorded"  # the name of the recording that ships with the package
_RECORDING = Path(__file__).resolve().parent / "recordings" / "stdlib-moe64.npz"
_ARRAYS = ("topk_ids", "topk_weights", "doc_offsets", "layer_index", "tokens_of_gpu", "experts", "source")
SPLITS = {"all": (0.0, 1.0), "train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}
_SNAP = 0.05  # a split's end moves to a document boundary at most this share of the trace away


@dataclass(frozen=True)
class RoutingTrace:
    """Expert choices of consecutive tokens in some layers of one model.

    Raises:
        ConfigError: The arrays contradict each other or hold impossible values.
    """

    # (layer, token, k) distinct in a row, ``NO_EXPERT`` behind the last; uint8, or the next type that holds all
    topk_ids: np.ndarray
    experts: int
    doc_offsets: np.ndarray  # (documents + 1,) int32, from 0 to the number of tokens
    layer_index: np.ndarray  # (layer,) int64, the model's number of each layer
    topk_weights: np.ndarray | None = None  # (layer, token, k) float16, gate weights
    source: str = ""  # for people: model, text, the command that made it
    tokens_of_gpu: np.ndarray | None = None  # (gpu,) int64 tokens of each source GPU; they stand GPU by GPU
    num_padding: int = 0  # tokens of the file that were padding, and are not here
    is_experts_known: bool = True  # whether a file or model said ``experts``, or it is the highest id and one

    def __post_init__(self) -> None:
        ids = self.topk_ids
        if ids.ndim != 3 or 0 in ids.shape or ids.dtype.kind not in "iu":
            raise ConfigError(f"topk_ids must be whole numbers (layer, token, k), not {ids.dtype} of shape {ids.shape}")
        if not 1 <= self.experts <= 65536:
            raise ConfigError(f"experts={self.experts} must be from 1 to 65536")
        _check_ids(ids, self.experts)
        weights = self.topk_weights
        if weights is not None and (weights.shape != ids.shape or not np.issubdtype(weights.dtype, np.floating)):
            raise ConfigError(f"topk_weights must be floats of shape {ids.shape}, not {weights.dtype} {weights.shape}")
        if weights is not None and not (np.isfinite(weights).all() and weights.min() >= 0):
            raise ConfigError("topk_weights must be finite and not negative")
        offsets = self.doc_offsets
        if offsets.ndim != 1 or len(offsets) < 2 or offsets.dtype.kind not in "iu":
            raise ConfigError(f"doc_offsets must list whole numbers, not {offsets.dtype} of shape {offsets.shape}")
        if offsets[0] != 0 or offsets[-1] != ids.shape[1] or (offsets[1:] <= offsets[:-1]).any():
            raise ConfigError(f"doc_offsets must grow from 0 to the {ids.shape[1]} tokens of topk_ids")
        numbers = self.layer_index
        if numbers.shape != ids.shape[:1] or numbers.dtype.kind not in "iu":
            raise ConfigError(f"layer_index has shape {numbers.shape}; topk_ids has {ids.shape[0]} layers")
        if len(set(numbers.tolist())) != len(numbers):
            raise ConfigError(f"layer_index names a layer twice: {shown(numbers.tolist())}")
        if self.tokens_of_gpu is not None:
            counts = self.tokens_of_gpu
            if counts.ndim != 1 or counts.dtype.kind not in "iu" or not _make(counts, ids.shape[1]):
                raise ConfigError(
                    f"tokens_of_gpu must list whole numbers that make {ids.shape[1]} together, not"
                    f" {shown(counts.tolist())}"
                )
        # -1 needs a type with a sign.
        narrow = np.min_scalar_type(self.experts - 1 if ids.min() >= 0 else -self.experts)
        object.__setattr__(self, "topk_ids", ids.astype(narrow, copy=False))

    @property
    def num_tokens(self) -> int:
        """Tokens of each layer."""
        return self.topk_ids.shape[1]

    @property
    def top_k(self) -> int:
        """Experts a token chose."""
        return self.topk_ids.shape[2]

    def for_layer(self, layer: LayerSpec) -> RoutingTrace:
        """Returns the trace as ``layer`` needs it: itself, or its best experts where the layer takes fewer.

        Of a layer with experts that compute nothing the trace may have the ids, behind those of the others: they become
        ``NO_EXPERT``.

        Raises:
            ConfigError: The number of experts differs, the layer takes more experts than were recorded, or it takes
                fewer and no gate weights say which. The message says "it"; callers put the trace's name before.
        """
        if self.experts not in (layer.experts, layer.choices):
            zero = f" and {layer.zero_experts} that compute nothing" if layer.zero_experts else ""
            raise ConfigError(f"it has {self.experts} experts; model '{layer.name}' has {layer.experts}{zero}")
        if self.top_k < layer.top_k:
            raise ConfigError(f"it has {self.top_k} experts a token; top_k={layer.top_k} needs as many or more")
        trace = self if self.top_k == layer.top_k else self._best(layer.top_k)
        if trace.topk_ids.max() < layer.experts:
            return trace
        ids = trace.topk_ids.astype(np.int32)
        ids, weights = experts_in_front(np.where(ids < layer.experts, ids, NO_EXPERT), trace.topk_weights)
        return replace(trace, topk_ids=ids, topk_weights=weights)

    def _best(self, top_k: int) -> RoutingTrace:
        """Returns the ``top_k`` experts of each token that have the highest gate weights.

        Raises:
            ConfigError: The trace has no weights.
        """
        if self.topk_weights is None:
            raise ConfigError(f"it has {self.top_k} experts a token and no topk_weights by which to keep top_k={top_k}")
        best = np.argsort(-self.topk_weights, axis=-1, kind="stable")[..., :top_k]
        return replace(
            self,
            topk_ids=np.take_along_axis(self.topk_ids, best, axis=-1),
            topk_weights=np.take_along_axis(self.topk_weights, best, axis=-1),
        )

    def without_padding(self) -> RoutingTrace:
        """Returns the trace without tokens that have no expert in any layer; its documents and GPUs have fewer.

        Raises:
            ConfigError: No token is left.
        """
        kept = ~is_none(self.topk_ids[..., 0]).all(axis=0)
        if kept.all():
            return self
        if not kept.any():
            raise ConfigError(f"topk_ids holds {NO_EXPERT} for every token")
        before = np.concatenate([[0], np.cumsum(kept)])
        counts = self.tokens_of_gpu
        return replace(
            self,
            topk_ids=self.topk_ids[:, kept],
            topk_weights=None if self.topk_weights is None else self.topk_weights[:, kept],
            doc_offsets=np.unique(before[self.doc_offsets]).astype(np.int32),
            tokens_of_gpu=None if counts is None else np.diff(before[np.cumsum([0, *counts])]),
            num_padding=self.num_padding + int(np.count_nonzero(~kept)),
        )

    def row_of_layer(self, layer_index: int) -> int:
        """Returns the position of the layer that the model numbers ``layer_index``.

        Raises:
            ConfigError: The trace does not hold it.
        """
        known = self.layer_index.tolist()
        if layer_index not in known:
            raise ConfigError(f"layer_index={layer_index} is not in it; choose from {known}")
        return known.index(layer_index)

    def window(self, start: int, stop: int, layers: Sequence[int] | None = None) -> RoutingTrace:
        """Returns tokens ``start`` to ``stop`` (exclusive) of the named layers, or of all.

        Raises:
            ConfigError: The window is empty or leaves the trace, or a layer is not in it.
        """
        if not 0 <= start < stop <= self.num_tokens:
            raise ConfigError(f"tokens {start}:{stop} are not a window of the trace's {self.num_tokens} tokens")
        rows = [self.row_of_layer(layer) for layer in layers] if layers is not None else [*range(len(self.topk_ids))]
        inner = self.doc_offsets[(self.doc_offsets > start) & (self.doc_offsets < stop)]
        counts = self.tokens_of_gpu
        return replace(
            self,
            topk_ids=self.topk_ids[rows, start:stop],
            topk_weights=None if self.topk_weights is None else self.topk_weights[rows, start:stop],
            doc_offsets=np.concatenate([[start], inner, [stop]]).astype(np.int32) - np.int32(start),
            layer_index=self.layer_index[rows],
            tokens_of_gpu=None if counts is None else np.diff(np.clip(np.cumsum([0, *counts]), start, stop)),
        )


def experts_in_front(ids: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns ids, (layer, token, k), with every ``NO_EXPERT`` behind, and the weights as they go with them."""
    if ids.min() >= 0:
        return ids, weights
    order = front_order(ids)
    if weights is not None and weights.shape == ids.shape:
        weights = np.where(is_none(ids), weights.dtype.type(0), weights)
        weights = np.take_along_axis(weights, order, axis=-1)
    return np.take_along_axis(ids, order, axis=-1), weights


def _make(counts: np.ndarray, total: int) -> bool:
    """Returns whether counts make a total together, of which none may be so large that sums overflow."""
    return bool(((counts >= 0) & (counts <= total)).all()) and int(counts.sum()) == total


def _check_ids(ids: np.ndarray, experts: int) -> None:
    low, high = int(ids.min()), int(ids.max())
    if low < NO_EXPERT or high >= experts:
        wrong = low if low < NO_EXPERT else high
        raise ConfigError(f"topk_ids holds expert {wrong}; experts are 0 to {experts - 1}")
    ordered = np.sort(ids, axis=-1)
    repeated = (ordered[..., 1:] == ordered[..., :-1]) & ~is_none(ordered[..., 1:])
    for what, is_wrong in (
        ("chose an expert twice", repeated.any(axis=-1)),
        (
            f"has {NO_EXPERT} before an expert",
            (is_none(ids[..., :-1]) & ~is_none(ids[..., 1:])).any(axis=-1),
        ),
    ):
        if is_wrong.any():
            row, token = np.argwhere(is_wrong)[0]
            raise ConfigError(f"topk_ids: token {token} of layer {row} {what}: {ids[row, token].tolist()}")


def is_trace_name(routing: str) -> bool:
    """Returns whether a routing name means a trace: the shipped recording or the path of an .npz file."""
    return routing == RECORDED or routing.endswith(".npz")


def split_range(trace: RoutingTrace, split: str) -> tuple[int, int]:
    """Returns the first token and the end of a split; the splits of a trace do not overlap.

    Ends move to the nearest document boundary within 5 % of the trace, so that a document is seldom in two splits.
    """
    first, last = SPLITS[split]
    return _cut(trace, first), _cut(trace, last)


def _cut(trace: RoutingTrace, share: float) -> int:
    exact = round(share * trace.num_tokens)
    boundary = int(trace.doc_offsets[np.abs(trace.doc_offsets - exact).argmin()])
    return boundary if abs(boundary - exact) <= _SNAP * trace.num_tokens else exact


def load_trace(name: str, experts: int | None = None) -> RoutingTrace:
    """Returns the trace of an npz path, or the shipped one for ``recorded``.

    Without ``doc_offsets`` in the file all tokens are one document; without ``layer_index`` layers count from 0.

    Args:
        name: Path or name.
        experts: The model's number of experts, where the file does not say it; None takes the highest id to be the
            last expert.

    Raises:
        ConfigError: The file is missing or damaged, or its arrays make no trace.
    """
    path = str(_RECORDING) if name == RECORDED else name
    arrays = read_arrays(path, _ARRAYS)
    if "topk_ids" not in arrays:
        held = shown(sorted(array_names(path)))
        raise ConfigError(
            f"'{path}' lacks the array 'topk_ids'; it holds {held}, of which loads are read as '{path}:NAME'"
        )
    ids = arrays["topk_ids"]
    try:
        if ids.ndim != 3 or 0 in ids.shape or ids.dtype.kind not in "iu":
            raise ConfigError(f"topk_ids must be whole numbers (layer, token, k), not {ids.dtype} of shape {ids.shape}")
        declared = arrays.get("experts", np.array(experts or int(ids.max()) + 1))
        if declared.ndim != 0 or declared.dtype.kind not in "iu":
            raise ConfigError(f"experts must be one whole number, not {declared.dtype} of shape {declared.shape}")
        if ids.shape[0] > ids.shape[1] and not {"layer_index", "doc_offsets"} & set(arrays):
            text = f"'{path}' has more layers, {ids.shape[0]}, than tokens, {ids.shape[1]}"
            warnings.warn(Notice(f"{text}; if tokens come first in it, 'trace import' reads it so"), stacklevel=2)
        ids, weights = experts_in_front(ids, arrays.get("topk_weights"))
        return RoutingTrace(
            topk_ids=ids,
            experts=int(declared),
            doc_offsets=arrays.get("doc_offsets", np.array([0, ids.shape[1]], dtype=np.int32)),
            layer_index=arrays.get("layer_index", np.arange(len(ids))),
            topk_weights=weights,
            source=one_line(str(arrays.get("source", ""))),
            tokens_of_gpu=arrays.get("tokens_of_gpu"),
            is_experts_known="experts" in arrays or experts is not None,
        ).without_padding()
    except ConfigError as error:
        raise ConfigError(f"trace '{name}': {error}") from None


def require_output(path: str) -> None:
    """Checks that a trace could be written to ``path``: before work is spent on making it.

    Raises:
        ConfigError: The path does not end in .npz, is a folder, or lies in a folder that does not exist.
    """
    if not path.endswith(".npz"):
        raise ConfigError(f"output='{path}' must end in .npz")
    require_writable("output", path)


def save_trace(trace: RoutingTrace, path: str, **more: np.ndarray) -> None:
    """Writes a trace as a compressed npz, and ``more`` arrays in it.

    Raises:
        ConfigError: The path does not end in .npz or cannot be written.
    """
    require_output(path)
    arrays = {
        "topk_ids": trace.topk_ids,
        "doc_offsets": trace.doc_offsets.astype(np.int32),
        "layer_index": trace.layer_index.astype(np.int64),
        "source": np.array(trace.source),
        **more,
    }
    if trace.is_experts_known:
        arrays["experts"] = np.array(trace.experts, dtype=np.int64)
    if trace.topk_weights is not None:
        arrays["topk_weights"] = trace.topk_weights.astype(np.float16)
    if trace.tokens_of_gpu is not None:
        arrays["tokens_of_gpu"] = trace.tokens_of_gpu.astype(np.int64)
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    write_bytes(path, stream.getvalue())
