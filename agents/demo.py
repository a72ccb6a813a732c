"""``python -m agents.demo``: trains for minutes, compares the agent with hand-designed schedules, shows it at work.

``make demo`` runs this. A finished run with the same settings is used again; an interrupted one is continued.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from dysharp_env.commands.output import publish, results_console
from dysharp_env.commands.progress import track
from dysharp_env.config import ConfigError, preset_names
from dysharp_env.report.drawing import write_figure
from dysharp_env.report.gantt import write_picture
from dysharp_env.report.schedule import ScheduleTable
from dysharp_env.report.timelines import timeline_of, write_timeline
from dysharp_env.schedules import Problem
from dysharp_env.schedules.opponent import Contender
from dysharp_env.simulator.warmup import notice
from dysharp_env.workload.suite import load_suite

from .evaluation.report import plot_summary, summary_table
from .evaluation.table import beats_on_every_workload, evaluate, json_content, summarise
from .kit import Command, entry
from .opponents.read import read_contender, read_contenders
from .policies.card import RANDOM
from .training.run_folder import RunFolder
from .training.spec import TrainSpec, describe_result, read_spec
from .training.start import load_config, read_run_dir, start_run, train_with_progress
from .training.stopping import politely

REFERENCE = "dysharp"


def build() -> Command:
    """Returns the options of the command."""
    command = Command("demo", __doc__, run)
    command.add("--config", default="demo", metavar="NAME", help="training settings")
    command.add("--suite", default="demo-heldout", metavar="NAME", help="what to compare on")
    command.add("--run-dir", default="runs", metavar="DIR", help="where run folders go")
    command.parser.add_argument("--fresh", action="store_true", help="train again even if a finished run is there")
    return command.add_quiet("no progress bar")


def run(args: argparse.Namespace) -> int:
    """Trains or finds the agent, evaluates it, and says what to look at."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    spec = load_config(args.config)
    suite = load_suite(args.suite)
    folder = _trained(spec, read_run_dir(args.run_dir), args.fresh, args.quiet, console)
    everyone = read_contenders([str(folder.path), RANDOM, *preset_names("schedules")])
    agent = everyone[0]
    console.print(f"Evaluating on suite {suite.name}: {suite.description}")
    problems = Problem.of_suite(suite.draw())
    with track("evaluates", 1.0, quiet=args.quiet) as shown:
        rows = evaluate(problems, everyone, read_contender(REFERENCE), tell=shown.at)
    summaries = summarise(rows, REFERENCE)
    console.print()
    results_console().print(summary_table(summaries, suite.name))
    wins, workloads = beats_on_every_workload(rows, agent.name, RANDOM)
    verdict = "on every one" if wins == workloads else f"on {wins}"
    console.print(
        f"The agent is faster than uniformly random legal choices {verdict} of {workloads} held-out workloads."
    )
    result = next(summary for summary in summaries if summary.policy == agent.name)
    console.print(
        f"Its makespan is {result.geomean_ratio:.3f} times that of {REFERENCE}"
        f" (95 %: {result.ci_low:.3f} to {result.ci_high:.3f}); below 1 is faster."
    )
    write_figure(folder.path / "evaluation.png", plot_summary(rows, REFERENCE, suite.name))
    config = {"suite": suite.model_dump(mode="json"), "run": str(folder.path), "against": [REFERENCE]}
    publish(str(folder.path / "evaluation.json"), "evaluate", 0, config, **json_content(rows, summaries))
    _show_schedules(folder, agent, problems[0])
    console.print(
        f"\nLook at:\n"
        f"  {folder.path}/schedule.png       the agent's schedule above {REFERENCE}'s, for the first workload\n"
        f"  {folder.path}/timeline.json      the agent's schedule in detail; open it at https://ui.perfetto.dev\n"
        f"  {folder.path}/schedule.csv       the same as a table\n"
        f"  {folder.path}/evaluation.png     every workload's ratio, and evaluation.json the numbers\n"
        f"  {_tensorboard()} --logdir {args.run_dir}   the training curves, at http://localhost:6006"
    )
    return 0


def _tensorboard() -> str:
    """Returns how this environment's TensorBoard is called from the current folder."""
    here = Path(sys.executable).parent / "tensorboard"
    return os.path.relpath(here) if here.is_relative_to(Path.cwd()) else str(here)


def _trained(spec: TrainSpec, root: Path, fresh: bool, quiet: bool, console: Console) -> RunFolder:
    """Returns the newest finished run of exactly this spec, or trains one, from a checkpoint if there is one."""
    same = [] if fresh else [folder for folder in _runs(root) if _holds(folder, spec)]
    for folder in same:
        if folder.read_meta().get("finished") and (folder.best / "policy.json").is_file():
            console.print(f"Using the finished run {folder.path}: {describe_result(folder)}")
            console.print("(--fresh trains again)")
            return folder
    command = ["python", "-m", "agents.demo"]
    with politely():
        folder = same[0] if same else start_run(spec, root)
        text = "Continuing" if same else "Training"
        console.print(f"{text} for {spec.total_decisions:,} decisions in {folder.path}")
        try:
            train_with_progress(spec, folder, command, resume=bool(same), quiet=quiet)
        except KeyboardInterrupt:
            notice("stopped; the same command goes on with this run")
            raise
    console.print(describe_result(folder))
    return folder


def _runs(root: Path) -> list[RunFolder]:
    """Returns the runs in a folder, newest first."""
    found = [path for path in root.glob("*__*__*") if (path / "config.yaml").is_file()] if root.is_dir() else []
    return [RunFolder(path) for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


def _holds(folder: RunFolder, spec: TrainSpec) -> bool:
    try:
        return read_spec(folder) == spec
    except ConfigError:
        return False  # a run of another version: leave it alone


def _show_schedules(folder: RunFolder, agent: Contender, problem: Problem) -> None:
    """Writes a problem's schedule under the agent, beside the reference's, into the run folder."""
    mine, other = (
        contender.opponents[0].run(problem, 0, logging=True) for contender in (agent, read_contender(REFERENCE))
    )
    ScheduleTable.of(mine.engine).to_csv(folder.path / "schedule.csv")
    title = f"{agent.name}: {problem.name}"
    timeline = timeline_of(mine.engine, title, schedule=mine.schedule, system=problem.system)
    write_timeline(folder.path / "timeline.json", timeline)
    write_picture(folder.path / "schedule.png", (agent.name, mine), (REFERENCE, other))


main = entry(build, __name__)
