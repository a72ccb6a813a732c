"""``trace info``: statistics of routing as tables, JSON and a picture, and what balance is worth."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dysharp_env.commands.options import add_json_option, add_seed_option, require_within
from dysharp_env.commands.output import check_targets, publish, results_console, say
from dysharp_env.commands.trace.sources import DRAWN_LAYERS, MOST_GPUS, SOURCES, loads_of, read_routing
from dysharp_env.config import ConfigError
from dysharp_env.report.routing import fan_out_table, load_table, skew_table
from dysharp_env.report.routing_picture import SUFFIXES, write_routing_picture
from dysharp_env.workload.choices import NO_EXPERT
from dysharp_env.workload.loads import LayerLoads
from dysharp_env.workload.placement import Placement
from dysharp_env.workload.placement_files import CONTIGUOUS, load_placements
from dysharp_env.workload.routing import routing_names
from dysharp_env.workload.skew import Skew, contiguous_skews
from dysharp_env.workload.statistics import RoutingStatistics, loads_statistics, remote_statistics, trace_statistics
from dysharp_env.workload.traces import RoutingTrace

_USUAL_GPU_COUNTS = (8, 16, 32, 64)


def add_action(actions: Any) -> None:
    """Adds the action to the parsers of ``trace``."""
    text = "print statistics of routing, and what balance is worth before anything runs"
    info = actions.add_parser("info", help=text)
    info.add_argument("trace", help=f"{SOURCES}, or a generator, of which {DRAWN_LAYERS} layers are drawn")
    info.add_argument("--gpus", type=int, nargs="+", help="GPU counts (default: 8 16 32 64 that fit)")
    text = "read it as this model does: its experts where the file does not say, its top-k; generators need it"
    info.add_argument("--model", help=text)
    info.add_argument("--placement", default=CONTIGUOUS, metavar="FILE", help="where experts are, for one of --gpus")
    add_seed_option(info, "random seed of a generator")
    add_json_option(info)
    text = "draw load, locality and how far tokens go, as .png, .svg or .pdf"
    info.add_argument("--picture", metavar="FILE", help=text)
    info.set_defaults(act=_info)


def _info(args: argparse.Namespace) -> None:
    _check_outputs(args)
    require_within(0, None, seed=args.seed)
    routing = read_routing(args.trace, args.model, args.seed)
    loads, tokens = loads_of(routing), getattr(routing, "num_tokens", None)
    experts = len(next(iter(loads.values())))
    usual = [count for count in _USUAL_GPU_COUNTS if count <= experts and count <= (tokens or count)]
    counts = args.gpus or usual
    for count in counts:
        require_within(1, MOST_GPUS, gpus=count)
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
    if args.picture:
        # Fan-out is of experts in order, in tables and pictures alike.
        reached = statistics.fan_out if args.placement == CONTIGUOUS else []
        remote = [remote_statistics(routing, each.num_gpus) for each in reached if isinstance(routing, RoutingTrace)]
        write_routing_picture(args.picture, _title(args, routing), loads, statistics, skews, remote)
        say(Console(stderr=True), f"wrote {args.picture}")


def _check_outputs(args: argparse.Namespace) -> None:
    if args.picture and not args.picture.endswith(SUFFIXES):
        raise ConfigError(f"picture='{args.picture}' must end in {', '.join(SUFFIXES)}")
    check_targets(("json", args.json, None), ("picture", args.picture, None), args=args)


def _title(args: argparse.Namespace, routing: RoutingTrace | LayerLoads) -> str:
    name = Path(args.trace).name
    if isinstance(routing, LayerLoads):
        return f"{name}: loads of {len(routing.counts)} layers, {routing.counts.shape[1]} experts"
    size = f"{len(routing.topk_ids)} layers, {routing.num_tokens} tokens"
    return f"{name}: {size}, top-{routing.top_k} of {routing.experts} experts"


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
