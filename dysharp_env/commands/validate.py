"""``python -m dysharp_env validate``: the simulator against closed forms and public measurements."""

from __future__ import annotations

import argparse

from dysharp_env.commands.options import add_json_option, add_seed_option, require_at_least
from dysharp_env.commands.output import check_targets, publish, results_console
from dysharp_env.simulator.warmup import ensure_compiled
from dysharp_env.validation import closed_forms
from dysharp_env.validation.measurements import prediction_errors_pct
from dysharp_env.validation.report import validation_rows, validation_table

FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to ``parser``."""
    add_json_option(parser)
    add_seed_option(parser, "seed of the random routing")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit status: 1 if a row fails.

    Raises:
        ConfigError: An option or a file is wrong.
    """
    check_targets(("json", args.json, None))
    require_at_least(0, seed=args.seed)
    ensure_compiled()
    rows = [*validation_rows(args.seed)]
    failed = sum(not row.passes for row in rows)
    config = {"system": closed_forms.SYSTEM, "gpus": closed_forms.NUM_GPUS, "tokens": closed_forms.TOKENS_PER_GPU}
    if publish(args.json, "validate", args.seed, config, rows=[row.record() for row in rows]):
        console = results_console()
        console.print(validation_table(rows))
        mean_pct, max_pct = prediction_errors_pct(rows)
        predicted = f"predicted measurements: mean absolute error {mean_pct:.1f} %, largest {max_pct:.1f} %"
        console.print(f"{len(rows) - failed} of {len(rows)} rows pass; {predicted}", highlight=False)
    return FAILED if failed else 0
