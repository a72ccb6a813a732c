"""``trace import``: files in which others keep routing become a trace."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import Any, get_args

from dysharp_env.commands.options import add_seed_option, require_within
from dysharp_env.commands.output import results_console, say
from dysharp_env.commands.progress import Track, track
from dysharp_env.commands.trace.sources import add_output_option, parse_range, require_trace_output, save
from dysharp_env.workload.importers import FORMATS, Imported, Phase, Wanted, import_routing
from dysharp_env.workload.importers.reading import MOST_IDS
from dysharp_env.workload.layer import load_model
from dysharp_env.workload.placement_files import load_slot_maps

_LOADS = "loads"  # the array, beside those of the trace, that holds what tokens were sampled from


def add_action(actions: Any) -> None:
    """Adds the action to the parsers of ``trace``."""
    listed = "\n".join(f"  {name:16} {each.what}: {each.holds}{_needs(each.needs)}" for name, each in FORMATS.items())
    action: argparse.ArgumentParser = actions.add_parser(
        "import",
        help="make a trace of what vLLM, SGLang, TensorRT-LLM, Megatron-LM, llama.cpp and others record",
        description="Makes a trace of files in which others keep routing. Formats, recognised by what is in a file:",
        epilog=f"formats:\n{listed}\n\nLoads become a trace by sampling. Pickled objects are never read.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    action.add_argument("files", nargs="+", metavar="FILE", help="files of one format, of all ranks; or their folder")
    add_output_option(action, "FILE", "the .npz to write")
    action.add_argument("--format", choices=list(FORMATS), help="read the files as that (default: recognised)")
    action.add_argument("--model", help="the model: gives experts, top-k, layers and groups that files do not")
    action.add_argument("--layers", type=int, help="layers of the model, dense ones too, where files do not say")
    action.add_argument("--top-k", type=int, help="experts a token, where files do not say")
    action.add_argument("--experts", type=int, help="experts of a layer, where files do not say")
    text = "keep tokens of that phase, where the format tells them apart (default: %(default)s)"
    action.add_argument("--phase", choices=get_args(Phase), default="both", help=text)
    action.add_argument("--steps", metavar="START:STOP", help="steps to read, of formats that have steps")
    text = "a map of physical to logical experts, where ids are physical and the files have none"
    action.add_argument("--placement", metavar="FILE", help=text)
    text = "first axis of arrays of ids (default: guessed)"
    action.add_argument("--layout", choices=("auto", "token", "layer"), default="auto", help=text)
    text = "tokens to sample from loads (default: %(default)s)"
    action.add_argument("--tokens", type=int, default=8192, help=text)
    add_seed_option(action, "random seed of sampling")
    action.set_defaults(act=_import)


def _needs(needs: str) -> str:
    return f"; needs {needs}" if needs else ""


def _import(args: argparse.Namespace) -> None:
    require_trace_output(args)
    given = {name: getattr(args, name) for name in ("layers", "top_k", "experts", "tokens")}
    require_within(1, MOST_IDS, **given)
    require_within(0, None, seed=args.seed)
    wanted = Wanted(
        model=load_model(args.model, top_k=args.top_k) if args.model else None,
        physical=load_slot_maps(args.placement) if args.placement else {},
        layout=args.layout,
        steps=parse_range("steps", args.steps) if args.steps else None,
        seed=args.seed,
        **given,
    )
    with ExitStack() as stack:
        tracks: list[Track] = []

        def fitted(done: int, layers: int) -> None:
            if not tracks:  # only loads are fitted
                tracks.append(stack.enter_context(track("fits loads", layers)))
            tracks[0].at(done, f"{done} of {layers} layers")

        name, imported = import_routing(args.files, wanted, args.format, args.phase, fitted)
    _describe(name, imported)
    more = {} if imported.loads is None else {_LOADS: imported.loads}
    save(imported.trace, args.output, **more)
    say(results_console(), f"next: python -m dysharp_env trace info {args.output}")


def _describe(name: str, imported: Imported) -> None:
    """Prints what was found."""
    trace, console = imported.trace, results_console()
    counts = trace.tokens_of_gpu
    known = "" if trace.is_experts_known else " or more"
    lines = {
        "format": f"{name} ({FORMATS[name].what})",
        "layers": _layers(trace.layer_index.tolist())
        + (f"; without routing, left out: {_layers(imported.dropped)}" if imported.dropped else ""),
        "tokens": f"{trace.num_tokens} in {len(trace.doc_offsets) - 1} documents",
        "experts": f"{trace.experts}{known}, top-{trace.top_k}",
        "phases": "not told apart"
        if imported.phases is None
        else f"{imported.phases[0]} tokens of prefill, {imported.phases[1]} of decode in the files",
        "ranks": "not told"
        if not imported.ranks
        else f"{len(imported.ranks)}" + ("" if counts is None else f", with {counts.min()} to {counts.max()} tokens"),
    }
    for key, text in lines.items():
        say(console, f"{key:8} {text}")
    for note in imported.notes:
        say(console, f"note: {note}")


def _layers(numbers: Any) -> str:
    """Returns how many layers there are and their numbers: a range where they are one."""
    numbers = list(numbers)
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{len(numbers)} ({numbers[0]} to {numbers[-1]})"
    shown = ", ".join(map(str, numbers[:12])) + (", ..." if len(numbers) > 12 else "")
    return f"{len(numbers)} ({shown})"
