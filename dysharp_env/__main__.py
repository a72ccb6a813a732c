"""``python -m dysharp_env COMMAND``: layers, what to believe of them, speed, and routing traces."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dysharp_env import __version__
from dysharp_env.commands import (
    CommandParser,
    balance,
    bench,
    compare,
    docs,
    explain,
    listing,
    new,
    reproduce,
    run_main,
    simulate,
    trace,
    validate,
)

COMMANDS = (
    (listing, "list", "list systems, models, schedules, suites, policies and generators of routing"),
    (new, "new", "write a commented system, model, suite or schedule of your own to edit"),
    (simulate, "simulate", "simulate one layer under one schedule: times, traffic, utilisation"),
    (compare, "compare", "run one workload under many schedules and compare them"),
    (balance, "balance", "say what balance is worth, and how much of it copies of experts bring"),
    (explain, "explain", "say where a layer's time goes under a schedule, and what would help"),
    (validate, "validate", "check the simulator against closed forms: expected, simulated, error"),
    (reproduce, "reproduce", "repeat the paper's experiments: published, simulated, ratio"),
    (bench, "bench", "measure the speed of the engine and the environments on this machine"),
    (trace, "trace", "import, inspect, record, generate, convert or place routing traces"),
    (docs, "docs", "show the user guide, page by page"),
)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    summary = "Mixture-of-Experts layers on NVSwitch systems with dynamic in-switch computing."
    parser = CommandParser(prog="python -m dysharp_env", description=summary)
    parser.add_argument("--version", action="version", version=f"dysharp_env {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module, name, summary in COMMANDS:
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0, 1 for a check that failed, 2 for a mistake in what was asked.

    Without a command the index of commands is printed.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if not given:
        build_parser().print_help()
        return 0

    def parser() -> argparse.ArgumentParser:
        made = build_parser()
        made.set_defaults(argv=given)
        return made

    return run_main(parser, given)


if __name__ == "__main__":
    sys.exit(main())
