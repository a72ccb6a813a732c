"""What the actions of ``trace`` share: routing by its name, the loads of it, and where traces are written."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console

from dysharp_env.commands.output import check_targets, say
from dysharp_env.config import ConfigError, whole_number
from dysharp_env.files import shown
from dysharp_env.workload.choices import count_loads
from dysharp_env.workload.importers.reading import require_few_ids
from dysharp_env.workload.layer import LayerSpec, load_model
from dysharp_env.workload.loads import LayerLoads, is_loads_name, load_loads
from dysharp_env.workload.routing import ROUTING_MODELS, draw_routing, routing_candidates
from dysharp_env.workload.traces import RoutingTrace, is_trace_name, load_trace, require_output, save_trace

MOST_GPUS = 4096  # that experts are placed on
DRAWN_LAYERS, DRAWN_TOKENS = 24, 8192  # of a generator, to say what it is like
SOURCES = "an .npz trace, 'recorded' for the one that ships with the package, FILE.npz:NAME for loads"


def add_output_option(action: argparse.ArgumentParser, metavar: str, text: str) -> None:
    """Adds ``--output``, which ``--out`` is short for."""
    action.add_argument("--output", "--out", required=True, metavar=metavar, help=text)


def require_trace_output(args: argparse.Namespace) -> None:
    """Checks that a trace can be written where ``--output`` says, and that this is none of the files that are read.

    Raises:
        ConfigError: It cannot, or is one.
    """
    require_output(args.output)
    check_targets(("output", args.output, None), args=args)


def parse_range(option: str, given: str) -> tuple[int, int]:
    """Returns the two numbers of ``START:STOP``.

    Raises:
        ConfigError: It is something else.
    """
    start, _, stop = given.partition(":")
    first, last = whole_number(start), whole_number(stop)
    if first is None or last is None or first >= last:
        raise ConfigError(f"{option}='{shown(given)}' must be START:STOP with START below STOP, such as 0:4096")
    return first, last


def read_routing(name: str, model: str | None, seed: int | None = None) -> RoutingTrace | LayerLoads:
    """Returns a trace, loads, or with a ``seed`` layers that are drawn from a generator."""
    layer = load_model(model) if model else None
    try:
        if is_loads_name(name):
            loads = load_loads(name)
            return loads.for_layer(layer) if layer else loads
        if is_trace_name(name):
            trace = load_trace(name, layer.choices if layer else None)
            return trace.for_layer(layer) if layer else trace
    except ConfigError as error:
        raise ConfigError(str(error) if name in str(error) else f"'{name}': {error}") from None
    routing_candidates(name)  # refuses what is nothing at all
    if seed is None:
        raise ConfigError(f"'{name}' is a generator; its layers have no loads that stay")
    if layer is None:
        raise ConfigError(f"'{name}' is a generator: model must say of which experts")
    return drawn_trace(name, layer, DRAWN_LAYERS, DRAWN_TOKENS, seed)


def loads_of(routing: RoutingTrace | LayerLoads) -> dict[int, np.ndarray]:
    """Returns the loads, (expert,), of every layer by its number."""
    if isinstance(routing, LayerLoads):
        return dict(zip(routing.layer_index.tolist(), routing.counts, strict=True))
    counts = (count_loads(ids, routing.experts).astype(np.float64) for ids in routing.topk_ids)
    return dict(zip(routing.layer_index.tolist(), counts, strict=True))


def drawn_trace(routing: str, layer: LayerSpec, layers: int, tokens: int, seed: int) -> RoutingTrace:
    """Returns layers that are drawn one by one from a generator, each with popular experts of its own.

    Raises:
        ConfigError: It would be more than a trace can hold.
    """
    require_few_ids(layers, tokens, layer.top_k)
    models, rng = routing_candidates(routing), np.random.default_rng(seed)
    document_tokens = ROUTING_MODELS["uniform"].document_tokens
    documents = -(-tokens // document_tokens)
    # Every document is drawn as if it were a GPU of its own: that is what makes documents unrelated.
    drawn = [
        draw_routing(models[int(rng.integers(len(models)))], layer, documents, document_tokens, rng, aligned=True)
        for _ in range(layers)
    ]
    return RoutingTrace(
        topk_ids=np.stack(drawn).reshape(layers, -1, layer.top_k)[:, :tokens],
        experts=layer.experts,
        doc_offsets=np.minimum(np.arange(documents + 1) * document_tokens, tokens).astype(np.int32),
        layer_index=np.arange(layers),
        source=f"generator {routing}, model {layer.name}, seed {seed}",
    )


def save(trace: RoutingTrace, output: str, **more: np.ndarray) -> None:
    """Writes a trace, and ``more`` arrays beside it, and says what it is.

    Raises:
        ConfigError: It cannot be written.
    """
    save_trace(trace, output, **more)
    size_kb = Path(output).stat().st_size / 1000
    layers, tokens, top_k = trace.topk_ids.shape
    what = f"{layers} layers x {tokens} tokens x top-{top_k} of {trace.experts} experts"
    say(Console(stderr=True), f"wrote {output}: {what}, {size_kb:.0f} kB")
