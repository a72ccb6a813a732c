"""From pieces of routing to a trace: dense layers, padding, phases, source GPUs; from loads to a trace by sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.workload.choices import NO_EXPERT, count_loads, in_front
from dysharp_env.workload.importers.pieces import Counted, Piece, Routing, Wanted
from dysharp_env.workload.importers.reading import require_few_ids
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.loads import popularity_of, sampling_model
from dysharp_env.workload.routing import draw_tokens
from dysharp_env.workload.traces import RoutingTrace, experts_in_front

Phase = Literal["prefill", "decode", "both"]
_SAMPLED_DOCUMENT = 1024  # tokens that are drawn at once


@dataclass(frozen=True)
class Imported:
    """A trace, and what was found on the way to it.

    Attributes:
        trace: The trace.
        dropped: Numbers of the layers that were all zero.
        phases: Tokens of prefill and of decode; None where the format does not tell them apart.
        ranks: Source GPUs, by number; none where the format does not say.
        notes: What was left out or assumed.
        loads: (layer, expert) float64 the loads that tokens were sampled from.
    """

    trace: RoutingTrace
    dropped: tuple[int, ...] = ()
    phases: tuple[int, int] | None = None
    ranks: tuple[int, ...] = ()
    notes: list[str] = field(default_factory=list)
    loads: np.ndarray | None = None


def assemble(routing: Routing, wanted: Wanted, phase: Phase, source: str) -> Imported:
    """Returns the trace of pieces: those of a GPU follow one another, GPU by GPU.

    Raises:
        ConfigError: Pieces do not fit each other, an id is impossible, or nothing is left.
    """
    pieces, notes = routing.pieces, list(routing.notes)
    if not pieces:
        raise ConfigError("nothing to import: no tokens" + (" in those steps" if wanted.steps else ""))
    dropped = _require_alike(pieces)
    phases = _phases_of(pieces)
    ranks = _ranks_of(pieces)
    if ranks:
        pieces = sorted(pieces, key=lambda piece: piece.rank or 0)
    kept = [_Cut.of(piece, phase) for piece in pieces]
    kept = [cut for cut in kept if cut.num_tokens]
    if not kept:
        raise ConfigError(f"nothing to import: no tokens of phase '{phase}'")
    experts = routing.experts or wanted.experts or (wanted.model.choices if wanted.model else None)
    rows = [row for row, number in enumerate(pieces[0].layers) if number not in dropped]
    ids = _stacked(kept, rows, experts, notes)
    weights = _stacked_weights(kept, rows)
    counts = None
    if len(ranks) > 1:
        counts = np.array([sum(cut.num_tokens for cut in kept if cut.piece.rank == rank) for rank in ranks])
    elif ranks:
        notes.append(f"all tokens are of one GPU, {ranks[0]}: tokens of several need the files of all")
    ends = np.cumsum([length for cut in kept for length in cut.documents])
    trace = RoutingTrace(
        topk_ids=ids,
        experts=experts or int(ids.max()) + 1,
        doc_offsets=np.concatenate([[0], ends]).astype(np.int32),
        layer_index=np.array(pieces[0].layers, np.int64)[rows],
        topk_weights=weights,
        source=source,
        tokens_of_gpu=counts,
        is_experts_known=experts is not None,
    ).without_padding()
    if trace.num_padding:
        notes.append(f"{trace.num_padding} tokens without any expert were padding and left out")
    if not trace.is_experts_known:
        notes.append(
            f"the number of experts is not in the files: {trace.experts} is the highest id and one; experts or model"
            " says it"
        )
    return Imported(trace, dropped, phases, ranks, notes)


def _require_alike(pieces: Sequence[Piece]) -> tuple[int, ...]:
    """Returns the layers that are all zero in every piece.

    Raises:
        ConfigError: Pieces have other layers or another top-k, or all layers are zero.
    """
    first = pieces[0]
    has_routing = np.zeros(len(first.layers), bool)
    for piece in pieces:
        if piece.layers != first.layers:
            raise ConfigError(
                f"{piece.where}: layers {_few(piece.layers)} differ from layers {_few(first.layers)} of {first.where}"
            )
        if piece.ids.shape[2] != first.ids.shape[2]:
            raise ConfigError(
                f"{piece.where}: top-{piece.ids.shape[2]} differs from top-{first.ids.shape[2]} of {first.where}"
            )
        if piece.prefill is None and first.prefill is not None or piece.prefill is not None and first.prefill is None:
            raise ConfigError(f"{piece.where}: tells prefill and decode apart or not, other than {first.where}")
        has_routing |= (piece.ids > 0).any(axis=(1, 2))
    if not has_routing.any():
        raise ConfigError(f"{first.where}: every layer is all zero")
    return tuple(number for number, has in zip(first.layers, has_routing, strict=True) if not has)


def _few(numbers: Sequence[int]) -> str:
    return f"{list(numbers)}" if len(numbers) <= 6 else f"{numbers[0]} to {numbers[-1]} ({len(numbers)})"


def _phases_of(pieces: Sequence[Piece]) -> tuple[int, int] | None:
    if any(piece.prefill is None for piece in pieces):
        return None
    prefill = sum(min(piece.prefill or 0, piece.num_tokens) for piece in pieces)
    return prefill, sum(piece.num_tokens for piece in pieces) - prefill


def _ranks_of(pieces: Sequence[Piece]) -> tuple[int, ...]:
    """Returns the numbers of the source GPUs in order; none where not every piece has one."""
    ranks = {piece.rank for piece in pieces}
    return () if None in ranks else tuple(sorted(rank for rank in ranks if rank is not None))


@dataclass(frozen=True)
class _Cut:
    """The tokens of a piece that are kept."""

    piece: Piece
    start: int
    stop: int
    documents: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start

    @classmethod
    def of(cls, piece: Piece, phase: Phase) -> _Cut:
        """Returns the part of a piece that a phase means.

        Raises:
            ConfigError: Its format does not tell phases apart.
        """
        if phase != "both" and piece.prefill is None:
            raise ConfigError(f"phase='{phase}': {piece.where} does not say which tokens are prefill; use phase='both'")
        start, stop, border = 0, piece.num_tokens, min(piece.prefill or 0, piece.num_tokens)
        if phase == "prefill":
            stop = border
        elif phase == "decode":
            start = border
        ends = np.clip(np.cumsum(piece.documents or (piece.num_tokens,)), start, stop)
        lengths = np.diff(np.concatenate([[start], ends]))
        return cls(piece, start, stop, tuple(lengths[lengths > 0].tolist()))


def _stacked(cuts: Sequence[_Cut], rows: list[int], experts: int | None, notes: list[str]) -> np.ndarray:
    """Returns the ids of all cuts, (layer, token, k), with ``NO_EXPERT`` behind a token's experts.

    Raises:
        ConfigError: A token has an expert twice, or one that is not there; the message names its piece.
    """
    tokens = sum(cut.num_tokens for cut in cuts)
    first = cuts[0].piece.ids
    dtype = np.result_type(*{cut.piece.ids.dtype for cut in cuts})
    ids = np.empty((len(rows), tokens, first.shape[2]), dtype)
    end = blank = 0
    for cut in cuts:
        begin, end = end, end + cut.num_tokens
        part = cut.piece.ids[rows, cut.start : cut.stop]
        # Zeros in all places are what frameworks leave where nothing was routed: no token has an expert twice.
        is_blank = np.asarray(~(part > 0).any(axis=(0, 2))) & (part.shape[2] > 1)
        if is_blank.any():
            blank += int(np.count_nonzero(is_blank & (part == 0).any(axis=(0, 2))))
            part = np.where(is_blank[:, None], part.dtype.type(NO_EXPERT), part)
        ids[:, begin:end] = in_front(part) if part.min() < 0 else part
        _check_tokens(ids[:, begin:end], [cut.piece.layers[row] for row in rows], experts, cut)
    if blank:
        notes.append(f"{blank} tokens have only zeros, which is no choice of experts")
    return ids


def _check_tokens(ids: np.ndarray, layers: Sequence[int], experts: int | None, cut: _Cut) -> None:
    where = cut.piece.where
    if experts is not None and int(ids.max()) >= experts:
        layer, token, _ = np.argwhere(ids >= experts)[0]
        raise ConfigError(
            f"{where}: token {cut.start + token} of layer {layers[layer]} chose expert {ids.max()}; experts are 0 to"
            f" {experts - 1}"
        )
    ordered = np.sort(ids, axis=-1)
    is_twice = ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] != NO_EXPERT)).any(axis=-1)
    if is_twice.any():
        layer, token = np.argwhere(is_twice)[0]
        raise ConfigError(
            f"{where}: token {cut.start + token} of layer {layers[layer]} chose an expert twice:"
            f" {ids[layer, token].tolist()}"
        )


def _stacked_weights(cuts: Sequence[_Cut], rows: list[int]) -> np.ndarray | None:
    if any(cut.piece.weights is None for cut in cuts):
        return None
    parts = []
    for cut in cuts:
        assert cut.piece.weights is not None
        window = (rows, slice(cut.start, cut.stop))
        _, part = experts_in_front(cut.piece.ids[window], cut.piece.weights[window].astype(np.float16))
        assert part is not None
        if not (np.isfinite(part).all() and part.min() >= 0):
            raise ConfigError(f"{cut.piece.where}: gate weights must be finite and not negative")
        parts.append(part)
    return np.concatenate(parts, axis=1)


def sample(
    counted: Counted, wanted: Wanted, source: str, on_layer: Callable[[int, int], None] = lambda done, of: None
) -> Imported:
    """Returns a trace that is sampled from loads: every expert as often as they say, tokens independent.

    Args:
        counted: The loads.
        wanted: Gives the model or the top-k, the tokens and the seed.
        source: What the trace says that it is of.
        on_layer: Told how many layers are done, and of how many.

    Raises:
        ConfigError: All loads are zero, or the model has another number of experts.
    """
    is_moe = counted.counts.sum(axis=1) > 0
    if not is_moe.any():
        raise ConfigError(f"{counted.where}: every layer is all zero")
    counts, experts = counted.counts[is_moe], counted.counts.shape[1]
    top_k = wanted.top_k or counted.top_k
    layer = _layer_of(wanted, experts, top_k or wanted.require_top_k(counted.where), counted.where)
    require_few_ids(len(counts), wanted.tokens, layer.top_k)
    model, sizes = sampling_model("loads"), np.full(-(-wanted.tokens // _SAMPLED_DOCUMENT), _SAMPLED_DOCUMENT)
    sizes[-1] -= sizes.sum() - wanted.tokens
    ids = np.empty((len(counts), wanted.tokens, layer.top_k), np.int16 if experts < 1 << 15 else np.int32)
    peaks = np.empty((2, len(counts)))
    for row, of_layer in enumerate(counts):
        popularity = popularity_of(of_layer, layer)
        # A stream of its own for every layer: its tokens are the same alone and among others.
        ids[row] = draw_tokens(model, layer, popularity, sizes, np.random.default_rng([wanted.seed, row]))
        for which, load in enumerate((of_layer, count_loads(ids[row], experts))):
            peaks[which, row] = load.max() * experts / load.sum()
        on_layer(row + 1, len(counts))
    numbers = np.array(counted.layers, np.int64)
    fit = f"busiest expert over mean {np.median(peaks[0]):.2f} in the loads, {np.median(peaks[1]):.2f} in the sample"
    notes = [
        *counted.notes,
        f"{wanted.tokens} tokens were sampled to fit the loads ({fit}, median of layers): which experts a token chooses"
        " together, and that tokens are independent, is assumed",
    ]
    trace = RoutingTrace(
        topk_ids=ids,
        experts=experts,
        doc_offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32),
        layer_index=numbers[is_moe],
        source=f"{source}; sampled from loads, seed {wanted.seed}",
    )
    return Imported(trace, tuple(numbers[~is_moe].tolist()), notes=notes, loads=counts)


def _layer_of(wanted: Wanted, experts: int, top_k: int, where: str) -> LayerSpec:
    """Returns the layer that tokens are sampled for: the model's, or one with the experts and top-k alone."""
    if wanted.model is not None:
        model = wanted.model
        if model.choices != experts:
            raise ConfigError(f"{where}: has {experts} experts; model '{model.name}' has {model.choices}")
        return model if model.top_k == top_k else model.with_changes({"top_k": top_k})
    if top_k > experts:
        raise ConfigError(f"{where}: top_k={top_k} is more than its {experts} experts")
    shape = {"hidden": 1, "moe_ff": 1, "ffn_matrices": 2, "compute_dtype": "bf16", "source": "loads"}
    return LayerSpec(name="loads", experts=experts, top_k=top_k, **shape)  # type: ignore[arg-type]
