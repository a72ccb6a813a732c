"""``python -m dysharp_env balance``: what balance is worth, and how much of it copies of experts bring."""

from __future__ import annotations

import argparse

from dysharp_env.commands.estimate import expected
from dysharp_env.commands.options import (
    add_run_options,
    add_scenario_options,
    describe_config,
    read_named_apart,
    read_scenario,
    require_within,
)
from dysharp_env.commands.output import check_targets, publish, results_console, say
from dysharp_env.commands.sweep import add_sweep_option, read_sweep
from dysharp_env.report.balance import balance_rows, balance_table, pays_lines
from dysharp_env.report.records import scenario_title
from dysharp_env.simulator.warmup import ensure_compiled

DEFAULT_SCHEDULES = ("deepep", "deepep+moonep", "deepep+ultraep", "deepep+ultraep:multicast")
DEFAULT_SWEEP = "tokens=128,512,2048,8192"
_MOST_COUNT = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to ``parser``."""
    add_sweep_option(parser, ("tokens",), DEFAULT_SWEEP)
    text = "workloads of each, with seeds from --seed on, for means (default: %(default)s)"
    parser.add_argument("--count", type=int, default=3, metavar="N", help=text)
    add_run_options(parser, f"{', '.join(DEFAULT_SCHEDULES)}; the first makes no copies")
    add_scenario_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit status.

    Raises:
        ConfigError: An option or a file is wrong.
    """
    check_targets(("json", args.json, None), args=args)
    require_within(1, _MOST_COUNT, count=args.count)
    scenario = read_scenario(args)
    contenders = read_named_apart(args.schedule or DEFAULT_SCHEDULES)
    for contender in contenders:
        contender.first.require_fit(scenario)  # refuses a schedule that does not fit before anything long starts
    scenarios = read_sweep(args.sweep, ("tokens",)).scenarios(scenario.spec)
    ensure_compiled()
    rows, seeds = [], range(args.seed, args.seed + args.count)
    drawn = [scenario for scenario in scenarios for _ in seeds]
    with expected(drawn, contenders, args.resolution) as next_run:
        for row in balance_rows(scenarios, contenders, seeds, args.resolution):
            rows.append(row)
            next_run()
    config = {**describe_config(scenario, contenders, args.resolution), "sweep": args.sweep, "count": args.count}
    if publish(args.json, "balance", args.seed, config, rows=[row.record() for row in rows]):
        where = f"{scenario_title(scenario, 'tokens')}; means of {args.count} workloads"
        console = results_console()
        console.print(balance_table(rows, where))
        for line in pays_lines(rows):
            say(console, line)
    return 0
