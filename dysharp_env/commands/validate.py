"""``python -m dysharp_env validate``: closed forms, public measurements and tables of them beside it."""

from __future__ import annotations

import argparse
from typing import Any

from dysharp_env.commands.options import (
    MOST_RENAMINGS,
    add_json_option,
    add_seed_option,
    add_worker_options,
    asked_workers,
    require_within,
)
from dysharp_env.commands.output import check_targets, publish, results_console, say
from dysharp_env.config import ConfigError, preset_names
from dysharp_env.schedules import load_schedule
from dysharp_env.simulator.warmup import ensure_compiled
from dysharp_env.validation import closed_forms
from dysharp_env.validation.measurements import prediction_errors_pct
from dysharp_env.validation.report import validation_rows, validation_table
from dysharp_env.validation.symmetries import LAYERS, symmetries, symmetry_table
from dysharp_env.validation.tables.load import ALL, load_tables, table_names
from dysharp_env.validation.tables.report import constants_lines, judge, printed_tables
from dysharp_env.workers import Workers

FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to ``parser``."""
    names = ", ".join(table_names())
    parser.add_argument(
        "--table",
        action="append",
        metavar="NAME|CSV",
        help="instead of single rows, errors over a table of measurements, repeatable: "
        f"{names}, {ALL}, or a CSV file with the columns of one of them",
    )
    parser.add_argument("--picture", metavar="PNG", help="errors over the tables by tokens, as a picture")
    text = "instead of rows, how far makespans of every schedule move under so many other numbers for GPUs"
    parser.add_argument("--renamings", type=int, metavar="N", help=text)
    add_json_option(parser)
    add_seed_option(parser, "seed of the random routing")
    add_worker_options(parser, "of tables one a core")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit status: 1 if a row fails.

    Raises:
        ConfigError: An option or a file is wrong.
    """
    check_targets(("json", args.json, None), ("picture", args.picture, ".png"), args=args)
    require_within(0, None, seed=args.seed)
    workers = asked_workers(args)
    if args.table:
        return _run_tables(args, workers)
    if args.renamings is not None:
        return _run_renamings(args, workers or Workers())
    if args.picture is not None:
        raise ConfigError(f"picture='{args.picture}' needs a table to draw; name one with --table")
    ensure_compiled()
    rows = [*validation_rows(args.seed)]
    failed = sum(not row.passes for row in rows)
    config = {"system": closed_forms.SYSTEM, "gpus": closed_forms.NUM_GPUS, "tokens": closed_forms.TOKENS_PER_GPU}
    if publish(args.json, "validate", args.seed, config, rows=[row.record() for row in rows], tables=[]):
        console = results_console()
        console.print(validation_table(rows))
        mean_pct, max_pct = prediction_errors_pct(rows)
        predicted = f"predicted measurements: mean absolute error {mean_pct:.1f} %, largest {max_pct:.1f} %"
        console.print(f"{len(rows) - failed} of {len(rows)} rows pass; {predicted}", highlight=False)
    return FAILED if failed else 0


def _run_renamings(args: argparse.Namespace, workers: Workers) -> int:
    require_within(1, MOST_RENAMINGS, renamings=args.renamings)
    ensure_compiled()
    schedules = [load_schedule(name) for name in preset_names("schedules")]
    with workers:
        found = symmetries(schedules, args.renamings, args.seed, workers)
    config = {"layers": [layer.model_dump(mode="json") for layer in LAYERS], "renamings": args.renamings}
    records = [each.record() for each in found]
    if publish(args.json, "validate", args.seed, config, rows=[], tables=[], symmetries=records):
        results_console().print(symmetry_table(found, args.renamings))
    return 0


def _run_tables(args: argparse.Namespace, workers: Workers | None) -> int:
    tables = load_tables(args.table, args.seed)
    ensure_compiled()
    judged = judge(tables, workers)
    config: dict[str, Any] = {"tables": args.table}
    records = [each.record() for each in judged]
    if args.picture is not None:
        from dysharp_env.validation.tables.picture import draw

        draw(judged, args.picture)
    if publish(args.json, "validate", args.seed, config, rows=[], tables=records):
        console = results_console()
        for printed in printed_tables(judged):
            console.print(printed)
        for line in constants_lines():
            say(console, line)
    return 0
