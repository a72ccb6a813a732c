"""``python -m agents.train``: trains an agent from a YAML configuration into one run folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import yaml
from rich.console import Console

from dysharp_env.commands.options import asked_workers
from dysharp_env.config import ConfigError, parse_yaml, preset_names

from .kit import Command, entry
from .policies.card import run_path
from .training.run_folder import RunFolder
from .training.spec import describe_result, read_spec
from .training.start import load_config, read_run_dir, start_run, train_with_progress
from .training.stopping import politely


def build() -> Command:
    """Returns the options of the command."""
    command = Command("train", __doc__, run)
    source = command.parser.add_mutually_exclusive_group(required=True)
    names = ", ".join(preset_names("train"))
    source.add_argument("--config", metavar="NAME", help=f"a preset ({names}) or a .yaml file of training settings")
    source.add_argument("--resume", metavar="RUN", help="continue this run folder from its newest whole checkpoint")
    command.add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a setting, such as total_decisions=50000 or env.tokens=128; repeatable",
    )
    command.add("--seed", type=int, help="seed of networks, choices and workloads (default: the config's)")
    text = "print all settings, defaults included, as YAML, and train nothing"
    command.parser.add_argument("--print-config", action="store_true", help=text)
    command.add("--run-dir", default="runs", metavar="DIR", help="where run folders go")
    command.add_workers("the threads that the config says; of evolution only")
    return command.add_quiet("no progress bar")


def run(args: argparse.Namespace) -> int:
    """Trains as the options say and prints where the run is."""
    changes = parse_changes(args.set)
    if args.seed is not None:
        changes["seed"] = args.seed
    root = read_run_dir(args.run_dir)
    resume = args.resume is not None
    folder = RunFolder(run_path(args.resume)) if resume else None
    spec = (load_config(args.config) if folder is None else read_spec(folder)).with_changes(changes)
    if args.print_config:
        sys.stdout.write(spec.to_yaml())
        return 0
    workers = asked_workers(args)
    if workers is not None and spec.evolution is None and spec.planning is None:
        raise ConfigError("workers play for evolution; MaskablePPO collects its rollouts in one process")
    command = ["python", "-m", "agents.train", *args.argv]
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    with politely():
        folder = folder or start_run(spec, root)
        try:
            train_with_progress(spec, folder, command, resume=resume, quiet=args.quiet, workers=workers)
            console.print(describe_result(folder))
            console.print(f"run folder: {folder.path}")
        except ConfigError:
            raise  # which says it in its line
        except BaseException:
            if folder.path.is_dir():
                console.print(folder.way_on())
            raise
    return 0


def parse_changes(settings: Sequence[str]) -> dict[str, Any]:
    """Returns dotted keys and values of ``KEY=VALUE`` texts; a value is read as YAML.

    Raises:
        ConfigError: A text has no ``=``, or its value is not YAML.
    """
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ConfigError(f"set='{setting}' must be KEY=VALUE, such as total_decisions=50000")
        try:
            changes[key] = parse_yaml(text)
        except (yaml.YAMLError, ValueError, RecursionError):  # a ValueError is a date that does not exist
            raise ConfigError(f"set='{setting}': the value is not valid YAML") from None
    return changes


main = entry(build, __name__)
