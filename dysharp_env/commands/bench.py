"""``python -m dysharp_env bench``: how fast the simulator and the environments are on this machine."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numba
import numpy as np
from rich.markup import escape
from rich.table import Table

from dysharp_env.bench import environments, layers, links, processes
from dysharp_env.bench.timing import Row
from dysharp_env.commands.options import add_json_option, most_workers, require_within
from dysharp_env.commands.output import check_targets, publish, results_console
from dysharp_env.report.tables import empty_table
from dysharp_env.simulator.warmup import ensure_compiled, notice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to ``parser``."""
    parser.add_argument("--quick", action="store_true", help="small sizes only; about a minute")
    text = "also time the vector environment on so many threads (default: 1)"
    parser.add_argument("--threads", type=int, default=1, metavar="N", help=text)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit status.

    Raises:
        ConfigError: An option is wrong.
    """
    check_targets(("json", args.json, None), args=args)
    require_within(1, most_workers(), threads=args.threads)
    ensure_compiled()
    rows = []
    for row in bench_rows(args.quick, args.threads):
        # A measurement takes seconds: say what is known so far.
        notice(f"{row.name}: {number(row.value)} {row.unit}")
        rows.append(row)
    config = describe(args.quick, args.threads)
    if publish(args.json, "bench", 0, config, rows=[row.record() for row in rows]):
        results_console().print(bench_table(rows))
    return 0


def bench_rows(quick: bool, threads: int) -> Iterator[Row]:
    """Yields all measurements, each when it is made."""
    repeats = 3
    sizes = layers.QUICK_SIZES if quick else layers.FULL_SIZES
    yield from layers.layer_rows(sizes, repeats if quick else 1)
    yield from layers.growth_rows(repeats)
    yield from layers.set_up_rows(repeats)
    yield from layers.network_rows(layers.random_network(), repeats)
    yield from environments.single_rows(2 if quick else 5, repeats)
    yield from environments.copy_rows(repeats)
    yield from environments.vector_rows(16 if quick else 64, 300 if quick else 1000, threads, repeats)
    if not links.has_simpy():
        notice("SimPy is left out: it comes with the dev extra")
    yield from links.link_rows(8, 256 if quick else 1024, repeats)
    yield from processes.start_up_rows()
    if not quick:
        yield from processes.cold_start_rows()
    yield from processes.memory_rows(*(layers.QUICK_SIZES[-1] if quick else layers.PAPER_SIZE))


def describe(quick: bool, threads: int) -> dict[str, Any]:
    """Returns what the numbers depend on."""
    return {
        "quick": quick,
        "threads": threads,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "numba": numba.__version__,
        "numpy": np.__version__,
        "platform": sys.platform,
    }


def bench_table(rows: Iterable[Row]) -> Table:
    """Returns one line per row, with how long it took on the wall and of the CPUs."""
    table = empty_table("Speed on this machine", ("what",), ("value",))
    table.add_column("unit", no_wrap=True)
    table.add_column("wall s", justify="right", no_wrap=True)
    table.add_column("CPU s", justify="right", no_wrap=True)
    for row in rows:
        times = ("", "") if row.took is None else (f"{row.took.wall_s:.3f}", f"{row.took.cpu_s:.3f}")
        table.add_row(escape(row.name), number(row.value), row.unit, *times)
    return table


def number(value: float) -> str:
    """Returns a number to three or four digits, large ones in full."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
