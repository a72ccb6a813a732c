"""``python -m dysharp_env trace``: inspect, record, generate and convert routing traces."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dysharp_env.commands.options import add_json_option, add_seed_option, add_spec_options, require_at_least
from dysharp_env.commands.output import check_targets, publish, results_console, say
from dysharp_env.config import ConfigError, parse_spec
from dysharp_env.report.tables import empty_table
from dysharp_env.workload.layer import load_model
from dysharp_env.workload.recording import RecordingSpec, record
from dysharp_env.workload.routing import ROUTING_MODELS, draw_routing, routing_candidates, routing_names
from dysharp_env.workload.statistics import TraceStatistics, trace_statistics
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions ``info``, ``record``, ``generate`` and ``convert`` with their options to ``parser``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="{info,record,generate,convert}")

    info = actions.add_parser("info", help="print the statistics of a trace")
    info.add_argument("trace", help="an .npz trace, or 'recorded' for the one that ships with the package")
    info.add_argument("--gpus", type=int, nargs="+", help="GPU counts for fan-out (default: 8 16 32 64 that fit)")
    add_json_option(info)

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
    action = {"info": _info, "record": _record, "generate": _generate, "convert": _convert}[args.action]
    action(args)
    return 0


def _info(args: argparse.Namespace) -> None:
    if args.trace in routing_names():
        raise ConfigError(f"'{args.trace}' is a generator, not a trace; run: trace generate --routing {args.trace}")
    check_targets(("json", args.json, None))
    trace = load_trace(args.trace)
    usual = [count for count in _USUAL_GPU_COUNTS if trace.experts % count == 0 and count <= trace.num_tokens]
    statistics = trace_statistics(trace, args.gpus or usual)
    config = {"trace": args.trace, "gpus": [row.num_gpus for row in statistics.fan_out]}
    content = {
        **{"source": trace.source, "experts": trace.experts, "top_k": trace.top_k, "tokens": trace.num_tokens},
        **{"documents": len(trace.doc_offsets) - 1, **asdict(statistics)},
    }
    if publish(args.json, "trace", None, config, **content):
        _print_statistics(args.trace, trace, statistics)


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
    models = routing_candidates(args.routing)
    layer = load_model(args.model, top_k=args.top_k)
    require_at_least(1, tokens=args.tokens, layers=args.layers)
    require_at_least(0, seed=args.seed)
    require_output(args.output)
    rng = np.random.default_rng(args.seed)
    document_tokens = ROUTING_MODELS["uniform"].document_tokens
    documents = -(-args.tokens // document_tokens)
    # Every document is drawn as if it were a GPU of its own: that is what makes documents unrelated.
    drawn = [
        draw_routing(models[int(rng.integers(len(models)))], layer, documents, document_tokens, rng, aligned=True)
        for _ in range(args.layers)
    ]
    trace = RoutingTrace(
        topk_ids=np.stack(drawn).reshape(args.layers, -1, layer.top_k)[:, : args.tokens],
        experts=layer.experts,
        doc_offsets=np.minimum(np.arange(documents + 1) * document_tokens, args.tokens).astype(np.int32),
        layer_index=np.arange(args.layers),
        source=f"generator {args.routing}, model {layer.name}, seed {args.seed}",
    )
    _save(trace, args.output)


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


def _print_statistics(name: str, trace: RoutingTrace, statistics: TraceStatistics) -> None:
    console = results_console()
    documents = len(trace.doc_offsets) - 1
    size = f"{len(trace.topk_ids)} layers, {trace.num_tokens} tokens, {documents} documents"
    say(console, f"{name}: {size}, top-{trace.top_k} of {trace.experts} experts")
    if trace.source:
        say(console, trace.source, style="dim")
    columns = ("load CV", "max/mean", "hottest 1/8", "repeated by next", "if independent")
    layers = empty_table("Expert loads and locality", ("layer",), columns)
    for label, row in (*statistics.layers.items(), ("mean", statistics.mean)):
        if label == "mean":
            layers.add_section()
        loads = (f"{row.load_cv:.2f}", f"{row.load_max_over_mean:.2f}", f"{row.hottest_share:.1%}")
        layers.add_row(str(label), *loads, f"{row.adjacent_share:.3f}", f"{row.adjacent_share_independent:.3f}")
    console.print(layers)
    if statistics.fan_out:
        columns = ("GPUs", "GPUs a token", "if uniform", "busiest GPU/mean", "busiest pair/mean")
        fan_out = empty_table("GPUs, experts placed contiguously", (), columns)
        for reach in statistics.fan_out:
            numbers = (reach.fan_out, reach.fan_out_uniform, reach.gpu_max_over_mean, reach.pair_max_over_mean)
            fan_out.add_row(str(reach.num_gpus), *(f"{number:.2f}" for number in numbers))
        console.print(fan_out)
    if statistics.gate_weights:
        shares = " ".join(f"{share:.3f}" for share in statistics.gate_weights)
        console.print(f"gate weights, sorted: {shares}", highlight=False)
