"""Records routing of any PyTorch model with MoE layers while it runs in memory: hooks on its routers.

    >>> with RoutingRecorder(model) as recorder:      # doctest: +SKIP
    ...     model.generate(**inputs)
    >>> recorder.save("routing.npz")                  # doctest: +SKIP

A router is a module that is called ``gate`` or ``router``, or whose class's name ends so, and whose top-k and experts
are its own attributes, its block's or its configuration's. What tokens chose is taken from, in this order:

* what the block calls its ``experts`` with, where that is one module (Transformers from version 5);
* ids that the router returns, as those of DeepSeek do;
* the largest logits that it returns: not of a router with groups or a bias, whose logits do not give its choice.

Sequences come out as documents, without the tokens that ``attention_mask`` says are padding. The first pass of a
sequence is prefill and later ones, of a token each, are decode. This module does not import PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.workload.choices import NO_EXPERT
from dysharp_env.workload.importers.assembly import Phase, assemble
from dysharp_env.workload.importers.pieces import Piece, Routing, Wanted
from dysharp_env.workload.traces import RoutingTrace, save_trace

_NAMES = {"gate", "router"}
_CLASS = re.compile(r"(router|gate|gating)$", re.IGNORECASE)
_TOP_K = ("top_k", "num_experts_per_tok", "topk", "moe_top_k", "num_selected_experts")
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "n_experts")


@dataclass
class Router:
    """A router of a model, and what it chose so far.

    Attributes:
        name: Of its module.
        module: The module.
        experts_module: What its block calls with its choice; None if that is not one module.
        top_k: Experts a token chooses.
        experts: Experts that it chooses from.
        is_biased: Whether its logits do not give its choice.
        calls: Of every call the pass it was in, ids (token, k) or None, and gate weights or None.
    """

    name: str
    module: Any
    experts_module: Any
    top_k: int
    experts: int
    is_biased: bool
    calls: list[tuple[int, np.ndarray | None, np.ndarray | None]] = field(default_factory=list)


@dataclass(frozen=True)
class _Pass:
    """One call of the model: sequences, tokens of each, and which of them are real, (sequence, token) bool, if said."""

    batch: int
    tokens: int
    is_real: np.ndarray | None


class RoutingRecorder:
    """Records what the routers of a model choose, from ``with`` to its end.

    Args:
        model: A ``torch.nn.Module``: a whole model or a part of one.

    Raises:
        ConfigError: No router is found in it.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.routers = list(_routers_of(model))
        if not self.routers:
            raise ConfigError(
                f"{type(model).__name__} has no router: no module named 'gate' or 'router' whose top_k and num_experts"
                " it, its block or its config says"
            )
        self._passes: list[_Pass | None] = []
        self._handles: list[Any] = []

    def __enter__(self) -> RoutingRecorder:
        self._handles = [self._model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for router in self.routers:
            self._handles.append(router.module.register_forward_hook(partial(self._chose, router)))
            if router.experts_module is not None:
                hook = partial(self._called_experts, router)
                self._handles.append(router.experts_module.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def trace(self, phase: Phase = "both") -> RoutingTrace:
        """Returns what was recorded; ``phase`` keeps the tokens of prefill or of decode alone.

        Raises:
            ConfigError: Nothing was recorded, or a router's choice is not known.
        """
        routing = Routing(list(self._pieces()), self.routers[0].experts)
        source = f"recorded from {type(self._model).__name__}" + ("" if phase == "both" else f", {phase} only")
        return assemble(routing, Wanted(), phase, source).trace

    def save(self, path: str, phase: Phase = "both") -> None:
        """Writes what was recorded as a trace.

        Raises:
            ConfigError: Nothing was recorded, a router's choice is not known, or the file cannot be written.
        """
        save_trace(self.trace(phase), path)

    def _begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._passes.append(_pass_of(args, kwargs))

    def _chose(self, router: Router, module: Any, args: tuple[Any, ...], output: Any) -> None:
        ids, weights = _choice_in(output, router)
        router.calls.append((len(self._passes) - 1, ids, weights))

    def _called_experts(self, router: Router, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids, weights = _ids_in([*args, *kwargs.values()], router)
        if ids is not None and router.calls:
            number, _, known = router.calls[-1]
            router.calls[-1] = (number, ids, known if weights is None else weights)

    def _pieces(self) -> Iterator[Piece]:
        """Yields the routing of every sequence, or of every pass where sequences are not known."""
        calls = [router.calls for router in self.routers]
        if not calls[0]:
            raise ConfigError("nothing was recorded: the model did not run inside the recorder's 'with'")
        if len({len(each) for each in calls}) > 1:
            raise ConfigError(f"routers ran {[len(each) for each in calls]} times: import passes of the whole model")
        passes = [self._stacked(place) for place in range(len(calls[0]))]
        shapes = [self._passes[number] if number >= 0 else None for number, *_ in calls[0]]
        layers, where = _numbers_of([router.name for router in self.routers]), type(self._model).__name__
        if any(
            shape is None or shape.batch * shape.tokens != ids.shape[1]
            for shape, (ids, _) in zip(shapes, passes, strict=True)
        ):
            for place, (ids, weights) in enumerate(passes):
                yield Piece(ids, layers, f"{where} pass {place}", weights=weights)
            return
        open_sequences: list[_Sequence] = []
        for shape, (ids, weights) in zip(shapes, passes, strict=True):
            assert shape is not None
            if shape.tokens > 1 or shape.batch != len(open_sequences):
                yield from (sequence.piece(layers, where) for sequence in open_sequences)
                open_sequences = [_Sequence() for _ in range(shape.batch)]
            for row, sequence in enumerate(open_sequences):
                sequence.add(shape, row, ids, weights)
        yield from (sequence.piece(layers, where) for sequence in open_sequences)

    def _stacked(self, place: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns ids and weights, (layer, token, k), of one pass."""
        ids: list[np.ndarray] = []
        weights: list[np.ndarray | None] = []
        for router in self.routers:
            _, own, of_own = router.calls[place]
            if own is None:
                why = "its groups or bias change what its logits say" if router.is_biased else "it returns no logits"
                raise ConfigError(f"router '{router.name}' ({type(router.module).__name__}) returns no ids, and {why}")
            if ids and own.shape != ids[0].shape:
                raise ConfigError(f"router '{router.name}': ids of shape {own.shape}; others have {ids[0].shape}")
            ids.append(own)
            weights.append(of_own)
        known = [each for each in weights if each is not None]
        return np.stack(ids), np.stack(known) if len(known) == len(ids) else None


class _Sequence:
    """The passes of one sequence of a batch."""

    def __init__(self) -> None:
        self._ids: list[np.ndarray] = []
        self._weights: list[np.ndarray | None] = []

    def add(self, shape: _Pass, row: int, ids: np.ndarray, weights: np.ndarray | None) -> None:
        """Adds the tokens of a row of a pass."""
        own = slice(row * shape.tokens, (row + 1) * shape.tokens)
        chosen = ids[:, own]
        if shape.is_real is not None:
            chosen = np.where(shape.is_real[row][:, None], chosen, chosen.dtype.type(NO_EXPERT))
        self._ids.append(chosen)
        self._weights.append(None if weights is None else weights[:, own])

    def piece(self, layers: tuple[int, ...], where: str) -> Piece:
        """Returns the routing of the sequence, of which the first pass is prefill."""
        weights = [each for each in self._weights if each is not None]
        whole = np.concatenate(weights, axis=1) if len(weights) == len(self._ids) else None
        return Piece(np.concatenate(self._ids, axis=1), layers, where, prefill=self._ids[0].shape[1], weights=whole)


def _routers_of(model: Any) -> Iterator[Router]:
    """Yields the routers of a model, outermost modules first, in the order of its layers."""
    modules: dict[str, Any] = dict(model.named_modules())
    found: list[str] = []
    for name, module in modules.items():
        parent, _, leaf = name.rpartition(".")
        is_named = leaf in _NAMES or _CLASS.search(type(module).__name__) is not None
        if not name or not is_named or any(name.startswith(f"{other}.") for other in found):
            continue
        block = modules[parent]
        holders = [module, block, getattr(module, "config", None), getattr(block, "config", None)]
        top_k, experts = _attribute(holders, _TOP_K), _attribute(holders, _EXPERTS)
        if experts is None and hasattr(getattr(module, "weight", None), "shape"):
            experts = int(module.weight.shape[0])
        if top_k is None or experts is None or not 0 < top_k <= experts or experts < 2:
            continue
        found.append(name)
        inner = getattr(block, "experts", None)
        is_one = hasattr(inner, "register_forward_pre_hook") and not hasattr(inner, "__len__")
        is_biased = any(
            getattr(holder, "e_score_correction_bias", None) is not None
            or _number(getattr(holder, "n_group", None)) not in (None, 1)
            or getattr(holder, "scoring_func", None) == "sigmoid"
            for holder in holders
        )
        yield Router(name, module, inner if is_one else None, top_k, experts, is_biased)


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _attribute(holders: list[Any], names: tuple[str, ...]) -> int | None:
    return next((found for each in holders for name in names if (found := _number(getattr(each, name, None)))), None)


def _numbers_of(names: list[str]) -> tuple[int, ...]:
    """Returns the numbers of layers that modules' names hold, or else 0, 1, ..."""
    numbers = [re.findall(r"(?:^|\.)(\d+)(?=\.|$)", name) for name in names]
    first = [int(each[0]) for each in numbers if each]
    return tuple(first) if len(set(first)) == len(names) else tuple(range(len(names)))


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach") and hasattr(value, "dtype") and hasattr(value, "shape")


def _flat(tensor: Any) -> np.ndarray:
    """Returns a tensor as an array, (token, last axis)."""
    held = tensor.detach().to("cpu")
    held = held.float() if held.dtype.is_floating_point else held
    return held.reshape(-1, held.shape[-1]).numpy()


def _ids_in(values: Any, router: Router) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Returns ids, (token, k), and where there are some their gate weights, among what a module gives or takes."""
    tensors = [each for each in values if _is_tensor(each) and each.ndim in (2, 3) and each.shape[-1] == router.top_k]
    ids = [each for each in tensors if not each.dtype.is_floating_point and "bool" not in str(each.dtype)]
    if not ids:
        return None, None
    chosen = _flat(ids[0])
    weights = [each for each in tensors if each.dtype.is_floating_point and each.shape == ids[0].shape]
    own = _flat(weights[0]).astype(np.float16) if weights else None
    narrow = np.int16 if router.experts < 1 << 15 else np.int32
    return chosen.astype(narrow), own if own is not None and own.min(initial=0) >= 0 else None


def _choice_in(output: Any, router: Router) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Returns ids, (token, k), and gate weights that a router's output gives; None where it does not."""
    values = list(output) if isinstance(output, tuple | list) else [output]
    ids, weights = _ids_in(values, router)
    if ids is not None or router.is_biased:
        return ids, weights
    for value in values:
        if _is_tensor(value) and value.dtype.is_floating_point and value.shape[-1] == router.experts:
            share, chosen = value.detach().float().softmax(-1).topk(router.top_k, dim=-1)
            narrow = np.int16 if router.experts < 1 << 15 else np.int32
            return _flat(chosen).astype(narrow), _flat(share).astype(np.float16)
    return None, None


def _pass_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Pass | None:
    """Returns the shape of what a model is called with; None if it is not (sequence, token, ...)."""
    given = [kwargs.get("input_ids"), kwargs.get("inputs_embeds"), kwargs.get("hidden_states"), *args]
    first = next((each for each in given if _is_tensor(each)), None)
    if first is None or first.ndim not in (2, 3):
        return None
    batch, tokens = int(first.shape[0]), int(first.shape[1])
    mask: Any = kwargs.get("attention_mask")
    is_real = None
    if _is_tensor(mask) and mask.ndim == 2 and mask.shape[0] == batch and mask.shape[1] >= tokens:
        is_real = mask.detach().to("cpu").numpy()[:, -tokens:] != 0
    return _Pass(batch, tokens, is_real)
