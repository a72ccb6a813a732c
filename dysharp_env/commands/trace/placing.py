"""``trace place``: place experts, some of them several times, by the loads of a trace."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from dysharp_env.commands.options import require_within
from dysharp_env.commands.output import check_targets, say
from dysharp_env.commands.progress import track
from dysharp_env.commands.trace.sources import MOST_GPUS, SOURCES, add_output_option, loads_of, read_routing
from dysharp_env.config import ConfigError
from dysharp_env.files import write_text
from dysharp_env.workload.eplb import eplb_placement
from dysharp_env.workload.placement_files import placements_json, placements_yaml
from dysharp_env.workload.skew import Skew, contiguous_skews
from dysharp_env.workload.traces import SPLITS, RoutingTrace, split_range

_WRITERS = {".json": placements_json, ".yaml": placements_yaml, ".yml": placements_yaml}


def add_action(actions: Any) -> None:
    """Adds the action to the parsers of ``trace``."""
    text = "place experts, some of them several times, by the loads of a trace (EPLB)"
    place: argparse.ArgumentParser = actions.add_parser("place", help=text)
    place.add_argument("trace", help=SOURCES)
    place.add_argument("--gpus", type=int, required=True, help="GPUs to place on")
    place.add_argument("--slots", type=int, required=True, help="experts that each GPU holds")
    place.add_argument("--model", help="gives the number of experts, where the file does not")
    place.add_argument("--split", choices=list(SPLITS), default="all", help="tokens to count (default: %(default)s)")
    text = "the placement to write: .json in SGLang's form, .yaml in TensorRT-LLM's"
    add_output_option(place, "FILE", text)
    place.set_defaults(act=_place)


def _place(args: argparse.Namespace) -> None:
    require_within(1, MOST_GPUS, gpus=args.gpus)
    require_within(1, None, slots=args.slots)
    writer = next((writer for ending, writer in _WRITERS.items() if args.output.endswith(ending)), None)
    if writer is None:
        raise ConfigError(f"output='{args.output}' must end in {', '.join(_WRITERS)}")
    check_targets(("output", args.output, None), args=args)
    routing = read_routing(args.trace, args.model)
    if isinstance(routing, RoutingTrace):
        routing = routing.window(*split_range(routing, args.split))
    elif args.split != "all":
        raise ConfigError(f"split='{args.split}' needs a trace; '{args.trace}' is loads")
    loads = loads_of(routing)
    placements = {}
    with track("places", len(loads)) as shown:
        for layer, counts in loads.items():
            placements[layer] = eplb_placement(counts, args.gpus, args.slots)
            shown.at(len(placements), f"{len(placements)} of {len(loads)} layers")
    write_text(args.output, writer(placements))
    (before,), after = contiguous_skews(loads, [args.gpus]), Skew.of(loads, placements)
    what = f"{len(loads)} layers, {args.slots} experts on each of {args.gpus} GPUs"
    gain = f"{before.median:.2f} to {after.median:.2f} in half of the layers, {before.worst:.2f} to {after.worst:.2f}"
    say(Console(stderr=True), f"wrote {args.output}: {what}; busiest GPU over mean from {gain} in the worst")
