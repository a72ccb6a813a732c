"""``trace record``, ``generate`` and ``convert``: traces of a tiny model, of a generator, and of parts of others."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from dysharp_env.commands.options import add_seed_option, add_spec_options, require_within
from dysharp_env.commands.progress import track
from dysharp_env.commands.trace.sources import add_output_option, drawn_trace, parse_range, require_trace_output, save
from dysharp_env.config import ConfigError, parse_spec
from dysharp_env.workload.layer import load_model
from dysharp_env.workload.recording import RecordingSpec, record
from dysharp_env.workload.routing import routing_candidates, routing_names
from dysharp_env.workload.traces import SPLITS, is_trace_name, load_trace, split_range


def add_actions(actions: Any) -> None:
    """Adds the actions to the parsers of ``trace``."""
    recording = actions.add_parser(
        "record",
        help="train a tiny MoE language model and record its routing; RoutingRecorder in Python records any other",
    )
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
    for action, act in ((recording, _record), (generate, _generate), (convert, _convert)):
        add_output_option(action, "FILE", "the .npz to write")
        action.set_defaults(act=act)


def _record(args: argparse.Namespace) -> None:
    settings = {name: getattr(args, name) for name in RecordingSpec.model_fields}
    spec = parse_spec(RecordingSpec, settings, source="trace record")
    require_trace_output(args)
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
    command = f"python -m dysharp_env trace record {options} --output {Path(args.output).name}"
    with track("trains", spec.steps) as shown:
        trace = record(spec, command, lambda done, loss: shown.at(done, f"loss {loss:.2f}"))
    save(trace, args.output)


def _generate(args: argparse.Namespace) -> None:
    if is_trace_name(args.routing):
        raise ConfigError(f"routing='{args.routing}' is a trace; choose a generator from {routing_names()}")
    routing_candidates(args.routing)
    layer = load_model(args.model, top_k=args.top_k)
    require_within(1, None, tokens=args.tokens, layers=args.layers)
    require_within(0, None, seed=args.seed)
    require_trace_output(args)
    save(drawn_trace(args.routing, layer, args.layers, args.tokens, args.seed), args.output)


def _convert(args: argparse.Namespace) -> None:
    require_trace_output(args)
    trace = load_trace(args.trace)
    start, stop = split_range(trace, args.split)
    if args.window is not None:
        first, last = parse_range("window", args.window)
        if last > stop - start:
            raise ConfigError(f"window='{args.window}' ends after the {stop - start} tokens of split '{args.split}'")
        start, stop = start + first, start + last
    trace = trace.window(start, stop, args.layers)
    if args.experts is not None:
        trace = replace(trace, experts=args.experts, is_experts_known=True)
    if args.drop_weights:
        trace = replace(trace, topk_weights=None)
    save(trace, args.output)
