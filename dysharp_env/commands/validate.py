"""``python -m dysharp_env validate``: the simulator against closed forms and public measurements."""

from __future__ import annotations

import argparse

from dysharp_env.commands.options import add_json_option
from dysharp_env.commands.output import STANDARD_OUTPUT, check_targets, json_document, results_console, write_json
from dysharp_env.config import ConfigError
from dysharp_env.simulator.warmup import ensure_compiled
from dysharp_env.validation import closed_forms
from dysharp_env.validation.measurements import prediction_errors_pct
from dysharp_env.validation.report import validation_rows, validation_table

FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to ``parser``."""
    add_json_option(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random routing (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit status: 1 if a row fails.

    Raises:
        ConfigError: An option or a file is wrong.
    """
    check_targets(("json", args.json, None))
    if args.seed < 0:
        raise ConfigError(f"seed={args.seed} must not be negative")
    ensure_compiled()
    rows = [*validation_rows(args.seed)]
    failed = sum(not row.passes for row in rows)
    if args.json:
        config = {"system": closed_forms.SYSTEM, "gpus": closed_forms.NUM_GPUS, "tokens": closed_forms.TOKENS_PER_GPU}
        records = [row.record() for row in rows]
        write_json(args.json, json_document("validate", args.seed, config, rows=records))
    if args.json != STANDARD_OUTPUT:
        console = results_console()
        console.print(validation_table(rows))
        mean_pct, max_pct = prediction_errors_pct(rows)
        predicted = f"predicted measurements: mean absolute error {mean_pct:.1f} %, largest {max_pct:.1f} %"
        console.print(f"{len(rows) - failed} of {len(rows)} rows pass; {predicted}", highlight=False)
    return FAILED if failed else 0
