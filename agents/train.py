"""``python -m agents.train``: trains a masked PPO agent from a YAML configuration into one run folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from agents.opponents.play import environments
from agents.training.run_folder import RunFolder
from agents.training.run_loop import Progress
from agents.training.spec import TrainSpec, describe_result, read_spec
from agents.training.start import train
from dysharp_env.commands import CommandParser, run_main
from dysharp_env.config import ConfigError, load_spec, preset_names
from dysharp_env.envs.episodes import Episodes
from dysharp_env.schedules import load_schedule
from dysharp_env.workload.suite import load_suite


def build_parser() -> argparse.ArgumentParser:
    """Returns the options of the command."""
    parser = CommandParser(prog="python -m agents.train", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    names = ", ".join(preset_names("train"))
    source.add_argument("--config", metavar="NAME", help=f"a preset ({names}) or a .yaml file of training settings")
    source.add_argument("--resume", metavar="RUN", help="continue this run folder from its newest checkpoint")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a setting, such as total_decisions=50000 or env.tokens=128; repeatable",
    )
    parser.add_argument("--seed", type=int, help="seed of networks, choices and workloads (default: the config's)")
    parser.add_argument("--run-dir", default="runs", metavar="DIR", help="where run folders go (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Trains as the options say and prints where the run is."""
    changes = parse_changes(args.set)
    if args.seed is not None:
        changes["seed"] = args.seed
    root = read_run_dir(args.run_dir)
    resume = args.resume is not None
    if resume:
        folder = RunFolder.open(args.resume)
        spec = read_spec(folder).with_changes(changes)
    else:
        spec = load_spec(TrainSpec, "train", normalise_config(args.config)).with_changes(changes)
        folder = start_run(spec, root)
    command = ["python", "-m", "agents.train", *args.argv]
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    try:
        train_with_progress(spec, folder, command, resume=resume, quiet=args.quiet)
    except KeyboardInterrupt:
        if folder.checkpoints():
            console.print(f"stopped; continue with: python -m agents.train --resume {folder.path}")
        raise
    console.print(describe_result(folder))
    console.print(f"run folder: {folder.path}")
    return 0


def read_run_dir(given: str) -> Path:
    """Returns the folder that ``--run-dir`` names.

    Raises:
        ConfigError: It names none.
    """
    if not given:
        raise ConfigError("run-dir='' must name a folder, such as 'runs'")
    return Path(given)


def normalise_config(name: str) -> str:
    """Returns a preset name for a path into ``configs/train``, so that it works from any folder; else ``name``."""
    path = Path(name)
    if not path.is_file() and path.parent.as_posix() == "configs/train" and path.stem in preset_names("train"):
        return path.stem
    return name


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
            changes[key] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):  # a ValueError is a date that does not exist
            raise ConfigError(f"set='{setting}': the value is not valid YAML") from None
    return changes


def start_run(spec: TrainSpec, root: Path) -> RunFolder:
    """Returns a new run folder, after checking that the spec's names can be read: a mistake leaves nothing behind.

    Raises:
        ConfigError: A name in the spec is unknown, or the folder cannot be made.
    """
    check_names(spec)
    folder = RunFolder.create(root, spec.name, spec.seed)
    folder.write_config(spec)
    return folder


def check_names(spec: TrainSpec) -> None:
    """Reads everything that the spec names.

    Raises:
        ConfigError: A scenario, schedule or suite is unknown or does not fit.
    """
    reference = load_schedule(spec.reference)
    for source in Episodes(spec.env, 1).sources:
        reference.program(source.scenario.system)
    environments(spec.env, load_suite(spec.validation).draw()[:1])


def train_with_progress(
    spec: TrainSpec, folder: RunFolder, command: Sequence[str], *, resume: bool = False, quiet: bool = False
) -> float:
    """Trains under a progress bar on standard error and returns the best validation ratio."""
    if quiet:
        return train(spec, folder, resume=resume, command=command)
    # Short texts: a bar that does not fit in 80 columns is cut at both ends.
    columns = (
        BarColumn(bar_width=10),
        TextColumn("{task.completed:,.0f} decisions {task.fields[rate]:,.0f}/s"),
        TextColumn("return {task.fields[gain]:.2f} ratio {task.fields[ratio]:.3f} val {task.fields[best]}"),
        TimeRemainingColumn(compact=True),
    )
    with ProgressBar(*columns, console=Console(stderr=True)) as bar:
        nan = float("nan")
        task = bar.add_task("", total=spec.total_decisions, rate=0.0, gain=nan, ratio=nan, best="-")
        return train(spec, folder, resume=resume, command=command, watch=_show(bar, task))


def _show(bar: ProgressBar, task: TaskID) -> Callable[[Progress], None]:
    def show(progress: Progress) -> None:
        best = "-" if progress.validation_ratio is None else f"{progress.validation_ratio:.3f}"
        bar.update(
            task,
            completed=min(progress.decisions, progress.total),
            rate=progress.decisions_per_second,
            gain=progress.mean_return,
            ratio=progress.ratio,
            best=best,
        )

    return show


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    given = list(sys.argv[1:] if argv is None else argv)

    def parser() -> argparse.ArgumentParser:
        made = build_parser()
        made.set_defaults(argv=given)
        return made

    return run_main(parser, given)


if __name__ == "__main__":
    sys.exit(main())
