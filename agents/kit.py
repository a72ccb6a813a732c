"""What the commands of ``agents`` share: options with the checks of their values, and where results go.

Mistakes become one line and exit status 2 in ``dysharp_env.commands``, as for every command of the project.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

from dysharp_env.commands import CommandParser, run_main
from dysharp_env.commands.options import (
    MOST_MINUTES,
    MOST_RENAMINGS,
    add_json_option,
    add_report_option,
    add_worker_options,
    require_within,
)
from dysharp_env.commands.output import check_folder, check_targets, publish, results_console
from dysharp_env.config import ConfigError, preset_names
from dysharp_env.schedules.contenders import CONTENDER_HELP

from .opponents.lookahead import LookAhead

POLICY_HELP = f"{CONTENDER_HELP}; RUN,RUN,... are training seeds of one policy; repeatable"
# Options of whole numbers that any command may have, with the least and the most of each: more would never end.
_ALLOWED = {
    "batch": (1, 10_000),
    "episodes": (1, 100_000_000),
    "layers": (1, 1_000_000),
    "renamings": (1, MOST_RENAMINGS),
    "rollouts": (1, 1_000_000),
    "seeds_of_random": (1, 1000),
    "workloads": (1, 1000),
    "seed": (0, None),
}


class Command:
    """A command line with the options that many commands have; ``parser`` holds them."""

    def __init__(self, name: str, description: str | None, run: Callable[[argparse.Namespace], int]) -> None:
        """Begins without options; ``run`` is called with those that were given.

        ``python -m agents.NAME`` and the schema of its JSON call it by its name.
        """
        self.parser = CommandParser(prog=f"python -m agents.{name}", description=description)
        self.parser.set_defaults(run=run, command=name, started=time.process_time())

    def add(self, *names: str, **settings: Any) -> Command:
        """Adds an option, as argparse does; what it takes by default ends the help of one that takes something."""
        if settings.get("default") not in (None, []):
            settings["help"] += " (default: %(default)s)"
        self.parser.add_argument(*names, **settings)
        return self

    def add_suite(
        self, default: str | None = None, option: str = "--suite", what: str = "", required: bool = True
    ) -> Command:
        """Adds the name of a suite, which must be given if there is no default, unless it is not ``required``."""
        kinds = f"a preset ({', '.join(preset_names('suites'))}), a subset of one (NAME:LABEL), or a .yaml"
        text = f"{what}: {kinds}" if what else kinds
        return self.add(option, default=default, required=required and default is None, metavar="NAME", help=text)

    def add_policies(self, note: str = "", **settings: Any) -> Command:
        """Adds the repeatable ``--policy``, also called ``--schedule``, and what look-ahead may spend."""
        self.add("--policy", "--schedule", action="append", metavar="NAME", help=POLICY_HELP + note, **settings)
        text = "simulations that look-ahead may spend on a workload"
        return self.add("--rollouts", type=int, default=LookAhead.rollouts, metavar="N", help=text)

    def add_seed(self, of_what: str) -> Command:
        """Adds ``--seed``."""
        return self.add("--seed", type=int, default=0, help=f"seed of {of_what}")

    def add_quiet(self, text: str) -> Command:
        """Adds ``--quiet``."""
        return self.add("--quiet", action="store_true", help=text)

    def add_workers(self, default: str = "1, this process") -> Command:
        """Adds ``--engine``, ``--workers`` and ``--address``; see ``dysharp_env.commands.options.open_workers``."""
        add_worker_options(self.parser, default)
        return self

    def add_report(self) -> Command:
        """Adds ``--report``, whose folder ``check_options`` checks."""
        add_report_option(self.parser)
        return self

    def add_json(self) -> Command:
        """Adds ``--json``."""
        add_json_option(self.parser)
        return self


def entry(build: Callable[[], Command], module: str) -> Callable[..., int]:
    """Returns the ``main`` of a command: it runs the arguments given, or the process's own, and returns exit status.

    Where the module is what Python was started with, ``main`` is called at once, and the process ends with that status.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        given = list(sys.argv[1:] if argv is None else argv)

        def parser() -> argparse.ArgumentParser:
            made = build().parser
            made.set_defaults(argv=given)
            return made

        return run_main(parser, given)

    if module == "__main__":
        sys.exit(main())
    return main


def check_options(args: argparse.Namespace, *targets: tuple[str, str | None, str | Sequence[str] | None]) -> None:
    """Checks the numbers that many commands take, and that results can be written, before anything long is started.

    Targets are files besides that of ``--json``; see ``dysharp_env.commands.output.check_targets``.

    Raises:
        ConfigError: A number is too small or too large, or a file cannot be written.
    """
    for name, (least, most) in _ALLOWED.items():
        require_within(least, most, **{name.replace("_", "-"): getattr(args, name, None)})
    minutes = getattr(args, "minutes", None)
    if minutes is not None and not 0 < minutes <= MOST_MINUTES:
        raise ConfigError(f"minutes={minutes:g} must be above 0 and at most {MOST_MINUTES:g}, 30 days")
    check_targets(("json", getattr(args, "json", None), None), *targets, args=args)
    check_folder("report", getattr(args, "report", None))


def command_words(args: argparse.Namespace) -> list[str]:
    """Returns the words of the command line that options were read from."""
    return ["python", "-m", f"agents.{args.command}", *args.argv]


def deliver(
    args: argparse.Namespace,
    config: dict[str, Any],
    content: dict[str, Any],
    *shown: Table | str,
    timed: bool = False,
    elsewhere_s: float = 0.0,
) -> None:
    """Writes results where ``--json`` says, and shows tables and lines unless that is standard output.

    JSON holds ``content`` and, as what that depends on, ``config``; with ``timed`` the last line shown is the processor
    time that the command has taken, here and in workers' processes.
    """
    if publish(args.json, args.command, getattr(args, "seed", 0), config, **content):
        console = results_console()
        for each in shown:
            console.print(each)
        if timed:
            console.print(f"{time.process_time() - args.started + elsewhere_s:.0f} CPU seconds")
