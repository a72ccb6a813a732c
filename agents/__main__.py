"""``python -m agents COMMAND``, or ``dysharp-agents COMMAND`` once installed: the commands of this package."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from dysharp_env import __version__
from dysharp_env.commands import CommandParser, run_main

# By name, as a command brings along what it needs: torch takes longer to import than this list to print.
COMMANDS = {
    "demo": "train for minutes, compare the agent with hand-designed schedules, show it at work",
    "train": "train an agent from a YAML configuration into one run folder",
    "evaluate": "compare schedules, trained runs and random choices on one suite of workloads",
    "tune": "find how to run one model's layers on one machine, from minutes of search",
    "check": "replay stored decisions in the plain-Python twin and confirm their makespans",
    "search": "tune a linear rule and settings on a suite by CMA-ES, and write a schedule",
    "plans": "search for few ways to run layers that together suit a suite, and write a schedule",
    "distil": "turn a trained policy into a rule that a kernel could hold",
    "latency": "what one decision of a policy costs, and would cost a kernel",
    "ablate": "what a trained policy plays like without some of what it sees or may do",
    "headroom": "what could be gained on each workload of a suite, by rules and by look-ahead",
    "sensitivity": "whether policies keep their order when what the model is unsure of is different",
    "faults": "what each fault of a machine costs every schedule and agent",
    "card": "write a model card for the Hugging Face hub from a run folder",
    "exact": "proved optima of tiny layers beside the lower bound and what policies reach",
}
_PACKAGES = ("exact",)  # commands that are a folder


def build() -> CommandParser:
    """Returns a parser that knows the names of the commands and leaves their options to them."""
    width = max(map(len, COMMANDS))
    index = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    parser = CommandParser(
        prog=f"python -m {__package__}",
        usage="%(prog)s COMMAND [OPTIONS]",
        description="Agents that schedule Mixture-of-Experts layers: train, compare, tune, explain.",
        epilog=f"commands, each with --help of its own:\n{index}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dysharp_env {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.set_defaults(run=lambda args: 0)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command with the arguments that follow its name, or prints the index; returns the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    if not given:
        build().print_help()
        return 0
    name, rest = given[0], given[1:]
    if name not in COMMANDS:
        return run_main(build, given)
    module = f".{name}.__main__" if name in _PACKAGES else f".{name}"

    def command() -> CommandParser:
        parser = build()
        # What a command needs may not be installed, which is a mistake like any other.
        parser.set_defaults(run=lambda _: importlib.import_module(module, __package__).main(rest))
        return parser

    return run_main(command, [name])


if __name__ == "__main__":
    sys.exit(main())
