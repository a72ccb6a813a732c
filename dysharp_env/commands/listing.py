"""``python -m dysharp_env list``: what can be named, one line each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from dysharp_env.commands.options import add_json_option
from dysharp_env.commands.output import check_targets, publish, results_console, say
from dysharp_env.config import preset_names
from dysharp_env.report.catalogue import KINDS, Row
from dysharp_env.report.tables import empty_table
from dysharp_env.system import load_system

DEFAULT_SYSTEM, DEFAULT_GPUS = "dgx-h200", 8
# How columns are headed, where not by their keys.
_HEADS = {
    **{"gpus": "GPUs", "sms": "SMs", "fp8_tflops": "FP8 TFLOP/s", "hbm_gbps": "HBM GB/s", "link_gbps": "link GB/s"},
    **{"top_k": "top-k", "moe_ff": "inner", "shared": "shared", "gemms": "GEMMs", "found_by": "found by"},
    **{"launches_us": "launches", "exchanges_us": "exchanges", "barriers_us": "barriers", "total_us": "all"},
    "kernels": "kernels between phases",
}
_LEFT_OUT = ("aliases", "found_by", "kernels_us")  # of tables; JSON has them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to ``parser``."""
    text = "what to list; without it, the names of all of them"
    parser.add_argument("kind", nargs="?", choices=list(KINDS), metavar=f"{{{','.join(KINDS)}}}", help=text)
    text = f"the machine on which fixed costs of schedules are told: {', '.join(preset_names('systems'))}"
    parser.add_argument("--system", default=DEFAULT_SYSTEM, metavar="NAME", help=f"{text} (default: %(default)s)")
    text = "its GPUs"
    parser.add_argument("--gpus", type=int, default=DEFAULT_GPUS, metavar="N", help=f"{text} (default: %(default)s)")
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit status.

    Raises:
        ConfigError: An option is wrong.
    """
    check_targets(("json", args.json, None), args=args)
    system = load_system(args.system, args.gpus)
    kinds = [args.kind] if args.kind else list(KINDS)
    found = {kind: list(KINDS[kind](system) if kind == "schedules" else KINDS[kind]()) for kind in kinds}
    config = {"system": args.system, "gpus": args.gpus}
    if publish(args.json, "list", None, config, **found):
        console = results_console()
        if args.kind is None:
            for kind, rows in found.items():
                say(console, f"{kind} ({len(rows)}): {', '.join(row['name'] for row in rows)}")
            say(console, "'list KIND' says more of each")
            return 0
        where = f"fixed costs in us on {args.gpus} GPUs of {system.name}, fewest first"
        console.print(_table(args.kind, found[args.kind], where if args.kind == "schedules" else ""))
    return 0


def _table(kind: str, rows: Sequence[Row], title: str) -> Table:
    """Returns a line for each row; columns of numbers are set to the right."""
    keys = [key for key in rows[0] if key not in _LEFT_OUT]
    if kind == "schedules":
        rows = sorted(rows, key=lambda row: row["total_us"])
    heading = f"{len(rows)} {kind}" + (f": {title}" if title else "")
    numbers = [key for key in keys if isinstance(rows[0][key], int | float)]
    table = empty_table(heading, (), ())
    for key in keys:
        is_number = key in numbers
        table.add_column(_HEADS.get(key, key), justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row[key]) for key in keys))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}".removesuffix(".0")
    if isinstance(value, list | tuple):
        return escape(", ".join(dict.fromkeys(value)))
    return escape(str(value))
