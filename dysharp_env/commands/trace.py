"""``python -m dysharp_env trace``: inspect, record, generate and convert routing traces; place experts by them."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dysharp_env.commands.options import add_json_option, add_seed_option, add_spec_options, require_at_least
from dysharp_env.commands.output import check_targets, publish, results_console, say
from dysharp_env.config import ConfigError, parse_spec
from dysharp_env.report.files import write_text
from dysharp_env.report.routing import fan_out_table, load_table, skew_table
from dysharp_env.workload.choices import NO_EXPERT, count_loads
from dysharp_env.workload.eplb import eplb_placement
from dysharp_env.workload.layer import LayerSpec, load_model
from dysharp_env.workload.loads import LayerLoads, is_loads_name, load_loads
from dysharp_env.workload.placement import Placement
from dysharp_env.workload.placement_files import CONTIGUOUS, load_placements, placements_json
from dysharp_env.workload.recording import RecordingSpec, record
from dysharp_env.workload.routing import ROUTING_MODELS, draw_routing, routing_candidates, routing_names
from dysharp_env.workload.skew import Skew, contiguous_skews
from dysharp_env.workload.statistics import RoutingStatistics, loads_statistics, trace_statistics
from dysharp_env.workload.traces import (
    SPLITS,
    RoutingTrace,
    is_trace_name,
    load_trace,
    require_output,
    save_trace,
    split_range,
)

_USUAL_GPU_COUNTS = (8, 16, 32, 64)
_DRAWN_LAYERS, _DRAWN_TOKENS = 24, 8192  # of a generator, to say what it is like
_SOURCES = "an .npz trace, 'recorded' for the one that ships with the package, FILE.npz:NAME for loads"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions ``info``, ``place``, ``record``, ``generate`` and ``convert`` with their options."""
    names = "{info,place,record,generate,convert}"
    actions = parser.add_subparsers(dest="action", required=True, metavar=names)

    text = "print statistics of routing, and what balance is worth before anything runs"
    info = actions.add_parser("info", help=text)
    info.add_argument("trace", help=f"{_SOURCES}, or a generator, of which {_DRAWN_LAYERS} layers are drawn")
    info.add_argument("--gpus", type=int, nargs="+", help="GPU counts (default: 8 16 32 64 that fit)")
    text = "read it as this model does: its experts where the file does not say, its top-k; generators need it"
    info.add_argument("--model", help=text)
    info.add_argument("--placement", default=CONTIGUOUS, metavar="FILE", help="where experts are, for one of --gpus")
    add_seed_option(info, "random seed of a generator")
    add_json_option(info)

    place = actions.add_parser(
        "place", help="place experts, some of them several times, by the loads of a trace (EPLB)"
    )
    place.add_argument("trace", help=_SOURCES)
    place.add_argument("--gpus", type=int, required=True, help="GPUs to place on")
    place.add_argument("--slots", type=int, required=True, help="experts that each GPU holds")
    place.add_argument("--model", help="gives the number of experts, where the file does not")
    place.add_argument("--split", choices=list(SPLITS), default="all", help="tokens to count (default: %(default)s)")
    place.add_argument("--output", required=True, metavar="FILE.json", help="the placement to write, in SGLang's form")

    recording = actions.add_parser("record", help="train a tiny MoE language model and record its routing")
    add_spec_options(recording, RecordingSpec)

    generate = actions.add_parser("generate", help="draw a trace from a generator")
    generate.add_argument("--routing", required=True, help=f"one of {', '.join(routing_names())}")
    generate.add_argument("--model", default="small", help="gives experts, top-k and groups (default: %(default)s)")
    generate.add_argument("--top-k", type=int, help="experts a token (default: the model's)")
    generate.add_argument("--tokens", type=int, default=8192, help="tokens of each layer (default: %(default)s)")
    generate.add_argument("--layers", type=int, default=1, help="layers, drawn one by one (default: %(default)s)")
    add_seed_option(generate, "random seed")

    convert = actions.add_parser("convert", help="copy some layers, tokens or experts of a trace to a new file")
    convert.add_argument("trace", help="an .npz trace, or 'recorded'")
    convert.add_argument("--layers", type=int, nargs="+", help="layers to keep, by the trace's own numbers")
    convert.add_argument("--split", choices=list(SPLITS), default="all", help="split to keep (default: %(default)s)")
    convert.add_argument("--window", metavar="START:STOP", help="tokens to keep, counted within the split")
    convert.add_argument("--experts", type=int, help="declare the number of experts, where the file does not")
    convert.add_argument("--drop-weights", action="store_true", help="leave the gate weights out")
    for action in (recording, generate, convert):
        action.add_argument("--output", required=True, metavar="FILE", help="the .npz to write")


def run(args: argparse.Namespace) -> int:
    """Runs the action that ``args`` name and returns the exit status.

    Raises:
        ConfigError: An option or a file is wrong.
    """
    actions = {"info": _info, "place": _place, "record": _record, "generate": _generate, "convert": _convert}
    actions[args.action](args)
    return 0


def _info(args: argparse.Namespace) -> None:
    check_targets(("json", args.json, None))
    require_at_least(0, seed=args.seed)
    routing = _read_routing(args.trace, args.model, args.seed)
    loads, tokens = _loads_of(routing), getattr(routing, "num_tokens", None)
    experts = len(next(iter(loads.values())))
    usual = [count for count in _USUAL_GPU_COUNTS if count <= experts and count <= (tokens or count)]
    counts = args.gpus or usual
    require_at_least(1, gpus=min(counts, default=1))
    if args.placement == CONTIGUOUS:
        skews = contiguous_skews(loads, counts)
    elif len(args.gpus or ()) != 1:
        raise ConfigError(f"placement='{args.placement}' needs one number of gpus, not {args.gpus or 'none'}")
    else:
        skews = [Skew.of(loads, _placements(args.placement, loads, counts[0], args.trace in routing_names()))]
    config = {name: getattr(args, name) for name in ("trace", "model", "placement", "seed")} | {"gpus": counts}
    if isinstance(routing, LayerLoads):
        statistics = loads_statistics(loads)
    else:
        statistics = trace_statistics(routing, [count for count in counts if count <= routing.num_tokens])
    balance = [asdict(skew) for skew in skews]
    if publish(args.json, "trace", None, config, **_described(routing), **asdict(statistics), balance=balance):
        _print_statistics(args, routing, statistics, skews)


def _read_routing(name: str, model: str | None, seed: int | None = None) -> RoutingTrace | LayerLoads:
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
    return _drawn_trace(name, layer, _DRAWN_LAYERS, _DRAWN_TOKENS, seed)


def _loads_of(routing: RoutingTrace | LayerLoads) -> dict[int, np.ndarray]:
    """Returns the loads, (expert,), of every layer by its number."""
    if isinstance(routing, LayerLoads):
        return dict(zip(routing.layer_index.tolist(), routing.counts, strict=True))
    counts = (count_loads(ids, routing.experts).astype(np.float64) for ids in routing.topk_ids)
    return dict(zip(routing.layer_index.tolist(), counts, strict=True))


def _placements(name: str, loads: dict[int, np.ndarray], num_gpus: int, is_drawn: bool) -> dict[int, Placement]:
    """Returns the placement of every layer; drawn ones are of no layer in particular."""
    placements = load_placements(name, len(next(iter(loads.values()))), num_gpus)
    if is_drawn:
        return dict.fromkeys(loads, placements.of_named(None))
    return {layer: placements.of_layer(layer, [*loads]) for layer in loads}


def _described(routing: RoutingTrace | LayerLoads) -> dict[str, Any]:
    """Returns how much there is, for JSON."""
    if isinstance(routing, LayerLoads):
        return {"experts": routing.counts.shape[1], "dense_layers": routing.num_dense}
    return {
        **{"source": routing.source, "experts": routing.experts, "top_k": routing.top_k},
        **{"tokens": routing.num_tokens, "padding": routing.num_padding, "documents": len(routing.doc_offsets) - 1},
    }


def _place(args: argparse.Namespace) -> None:
    require_at_least(1, gpus=args.gpus, slots=args.slots)
    check_targets(("output", args.output, ".json"))
    routing = _read_routing(args.trace, args.model)
    if isinstance(routing, RoutingTrace):
        routing = routing.window(*split_range(routing, args.split))
    elif args.split != "all":
        raise ConfigError(f"split='{args.split}' needs a trace; '{args.trace}' is loads")
    loads = _loads_of(routing)
    placements = {layer: eplb_placement(counts, args.gpus, args.slots) for layer, counts in loads.items()}
    write_text(args.output, placements_json(placements))
    (before,), after = contiguous_skews(loads, [args.gpus]), Skew.of(loads, placements)
    what = f"{len(loads)} layers, {args.slots} experts on each of {args.gpus} GPUs"
    gain = f"{before.median:.2f} to {after.median:.2f} in half of the layers, {before.worst:.2f} to {after.worst:.2f}"
    say(Console(stderr=True), f"wrote {args.output}: {what}; busiest GPU over mean from {gain} in the worst")


def _record(args: argparse.Namespace) -> None:
    settings = {name: getattr(args, name) for name in RecordingSpec.model_fields}
    spec = parse_spec(RecordingSpec, settings, source="trace record")
    require_output(args.output)
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
    command = f"python -m dysharp_env trace record {options} --output {Path(args.output).name}"
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.2f}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("training", total=spec.steps, loss=float("nan"))
        trace = record(spec, command, lambda done, loss: progress.update(task, completed=done, loss=loss))
    _save(trace, args.output)


def _generate(args: argparse.Namespace) -> None:
    if is_trace_name(args.routing):
        raise ConfigError(f"routing='{args.routing}' is a trace; choose a generator from {routing_names()}")
    routing_candidates(args.routing)
    layer = load_model(args.model, top_k=args.top_k)
    require_at_least(1, tokens=args.tokens, layers=args.layers)
    require_at_least(0, seed=args.seed)
    require_output(args.output)
    _save(_drawn_trace(args.routing, layer, args.layers, args.tokens, args.seed), args.output)


def _drawn_trace(routing: str, layer: LayerSpec, layers: int, tokens: int, seed: int) -> RoutingTrace:
    """Returns layers that are drawn one by one from a generator, each with popular experts of its own."""
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


def _convert(args: argparse.Namespace) -> None:
    require_output(args.output)
    trace = load_trace(args.trace)
    start, stop = split_range(trace, args.split)
    if args.window is not None:
        first, last = _parse_window(args.window)
        if last > stop - start:
            raise ConfigError(f"window='{args.window}' ends after the {stop - start} tokens of split '{args.split}'")
        start, stop = start + first, start + last
    trace = trace.window(start, stop, args.layers)
    if args.experts is not None:
        trace = replace(trace, experts=args.experts)
    if args.drop_weights:
        trace = replace(trace, topk_weights=None)
    _save(trace, args.output)


def _parse_window(window: str) -> tuple[int, int]:
    first, colon, last = window.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise ConfigError(f"window='{window}' must be START:STOP with START below STOP, such as 0:4096")
    return int(first), int(last)


def _save(trace: RoutingTrace, output: str) -> None:
    save_trace(trace, output)
    size_kb = Path(output).stat().st_size / 1000
    layers, tokens, top_k = trace.topk_ids.shape
    what = f"{layers} layers x {tokens} tokens x top-{top_k} of {trace.experts} experts"
    say(Console(stderr=True), f"wrote {output}: {what}, {size_kb:.0f} kB")


def _print_statistics(
    args: argparse.Namespace, routing: RoutingTrace | LayerLoads, statistics: RoutingStatistics, skews: list[Skew]
) -> None:
    console = results_console()
    say(console, f"{args.trace}: {_size_of_loads(routing) if isinstance(routing, LayerLoads) else _size(routing)}")
    if isinstance(routing, RoutingTrace) and routing.source:
        say(console, routing.source, style="dim")
    console.print(load_table(statistics.layers, statistics.mean))
    if skews:
        placed = "placed contiguously" if args.placement == CONTIGUOUS else f"placed by {Path(args.placement).name}"
        console.print(skew_table(skews, placed))
    if statistics.fan_out and args.placement == CONTIGUOUS:
        console.print(fan_out_table(statistics.fan_out))
    if statistics.gate_weights:
        shares = " ".join(f"{share:.3f}" for share in statistics.gate_weights)
        console.print(f"gate weights, sorted: {shares}", highlight=False)


def _size_of_loads(loads: LayerLoads) -> str:
    dense = f", {loads.num_dense} without any left out" if loads.num_dense else ""
    return f"loads of {len(loads.counts)} layers{dense}, {loads.counts.shape[1]} experts"


def _size(trace: RoutingTrace) -> str:
    """Returns how much a trace holds, and what of its file it does not."""
    documents = len(trace.doc_offsets) - 1
    experts = f"{trace.experts} experts" if trace.is_experts_known else f"{trace.experts} or more experts"
    size = f"{len(trace.topk_ids)} layers, {trace.num_tokens} tokens, {documents} documents"
    size += f", top-{trace.top_k} of {experts}"
    if trace.num_padding:
        size += f"; {trace.num_padding} more tokens were padding and left out"
    missing = np.count_nonzero(trace.topk_ids.astype(np.int64) == NO_EXPERT)
    if missing:
        size += f"; {missing / trace.topk_ids.size:.1%} of the experts of tokens are missing"
    if trace.tokens_of_gpu is not None:
        counts = trace.tokens_of_gpu
        size += f"; of {len(counts)} GPUs with {counts.min()} to {counts.max()} tokens"
    return size
