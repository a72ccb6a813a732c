"""``python -m dysharp_env reproduce``: the paper's tables, published against simulated."""

from __future__ import annotations

import argparse

from dysharp_env.commands.options import (
    add_json_option,
    add_seed_option,
    add_worker_options,
    open_workers,
    require_within,
)
from dysharp_env.commands.output import check_targets, publish, results_console, say
from dysharp_env.commands.progress import track
from dysharp_env.config import require_choice
from dysharp_env.reproduction.calibration import DEFAULT_CALIBRATIONS, CalibrationSpec, load_calibration
from dysharp_env.reproduction.claims import Claim, Row, evaluate, reproduction_table, summary_lines
from dysharp_env.reproduction.experiments import QUICK_DIVISOR, Experiments
from dysharp_env.reproduction.steps.layers import LayerCase, LayerTimes, simulate_cases
from dysharp_env.reproduction.steps.parts import StepSpec
from dysharp_env.reproduction.tables import TABLES
from dysharp_env.simulator.warmup import ensure_compiled
from dysharp_env.workers import Workers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to ``parser``."""
    text = f"a .yaml file or a preset; repeatable (default: {' and '.join(DEFAULT_CALIBRATIONS)})"
    parser.add_argument("--calibration", action="append", metavar="NAME", help=text)
    text = f"one of {', '.join(TABLES)}; repeatable (default: all)"
    parser.add_argument("--table", action="append", metavar="NAME", help=text)
    text = f"simulate 1/{QUICK_DIVISOR} of the tokens: minutes instead of hours, and further from the paper"
    parser.add_argument("--quick", action="store_true", help=text)
    add_seed_option(parser)
    add_json_option(parser)
    add_worker_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit status.

    Raises:
        ConfigError: An option or a file is wrong.
    """
    check_targets(("json", args.json, None), args=args)
    require_within(0, None, seed=args.seed)
    tables = [require_choice("table", name, TABLES) for name in dict.fromkeys(args.table or TABLES)]
    names = dict.fromkeys(args.calibration or DEFAULT_CALIBRATIONS)
    calibrations = [load_calibration(name) for name in names]
    divisor = QUICK_DIVISOR if args.quick else 1
    claims = {each.name: _claims(each, tables, divisor, args.seed) for each in calibrations}
    workers = open_workers(args)
    ensure_compiled()
    cases = [case for listed in claims.values() for claim in listed for case in claim.cases]
    with workers:
        results = _simulate(cases, workers)
    rows = [evaluate(claim, name, results) for name, listed in claims.items() for claim in listed]
    config = {
        "calibrations": [each.model_dump(mode="json") for each in calibrations],
        "tables": tables,
        "tokens_divisor": divisor,
        "steps": StepSpec().model_dump(mode="json"),
    }
    if publish(args.json, "reproduce", args.seed, config, rows=[row.record() for row in rows]):
        _print(rows, tables, divisor)
    return 0


def _claims(calibration: CalibrationSpec, tables: list[str], divisor: int, seed: int) -> list[Claim]:
    experiments = Experiments(calibration, divisor, seed)
    return [claim for table in tables for claim in TABLES[table](experiments)]


def _simulate(cases: list[LayerCase], workers: Workers) -> dict[LayerCase, LayerTimes]:
    """Returns every case's times, and says meanwhile how far they are."""
    with track("simulates", 1.0) as shown:

        def simulated(done: int, total: int, case: LayerCase) -> None:
            shown.at(done / total, f"{done} of {total} layers, {case.schedule}")

        return simulate_cases(cases, workers, simulated)


def _print(rows: list[Row], tables: list[str], divisor: int) -> None:
    console = results_console()
    if divisor > 1:
        console.print(f"quick: 1/{divisor} of the tokens per GPU, so fixed costs weigh more", highlight=False)
    for table in tables:
        console.print(reproduction_table(table, [row for row in rows if row.table == table]))
    for line in summary_lines(rows):
        say(console, line)
    if divisor > 1:
        what = f"the published values are of {divisor} times the tokens, and these counts say only that everything runs"
        say(console, f"quick: {what}; leave --quick out to compare like with like")
