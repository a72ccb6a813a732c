"""``python -m dysharp_env simulate``: one layer under one schedule."""

from __future__ import annotations

import argparse

from rich.columns import Columns
from rich.console import Console

from dysharp_env.commands.options import (
    add_json_option,
    add_resolution_option,
    add_scenario_options,
    add_schedule_option,
    describe_config,
    read_scenario,
    read_schedules,
)
from dysharp_env.commands.output import (
    STANDARD_OUTPUT,
    check_targets,
    json_document,
    results_console,
    write_json,
)
from dysharp_env.config import ConfigError
from dysharp_env.report.files import write_bytes
from dysharp_env.report.records import TimedRun, run_timed
from dysharp_env.report.schedule import ScheduleTable
from dysharp_env.report.tables import phase_table, traffic_table, utilisation_table
from dysharp_env.report.timeline import chrome_trace
from dysharp_env.simulator.warmup import ensure_compiled
from dysharp_env.workload import Workload

DEFAULT_SCHEDULE = "dysharp"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to ``parser``."""
    add_schedule_option(parser, DEFAULT_SCHEDULE)
    add_resolution_option(parser)
    add_json_option(parser)
    parser.add_argument("--timeline", metavar="FILE.json", help="write a timeline for ui.perfetto.dev")
    parser.add_argument("--csv", metavar="FILE.csv", help="write the schedule: chunk or tile, stage, GPU, start, end")
    parser.add_argument("--picture", metavar="FILE.png", help="draw links and SMs of every GPU over time")
    add_scenario_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit status.

    Raises:
        ConfigError: An option or a file is wrong.
    """
    suffixes = {"json": None, "timeline": ".json", "csv": ".csv", "picture": ".png"}
    check_targets(*((option, getattr(args, option), suffix) for option, suffix in suffixes.items()))
    names = args.schedule or [DEFAULT_SCHEDULE]
    if len(names) > 1:
        raise ConfigError(f"schedule={names}: simulate runs one schedule; compare runs several")
    scenario = read_scenario(args)
    schedules = read_schedules(names)
    schedules[0].program(scenario.system)  # refuses a schedule that does not fit before anything long starts
    workload = scenario.draw(args.seed)
    ensure_compiled()
    logging = bool(args.timeline or args.picture)
    timed = run_timed(scenario, workload, schedules[0], resolution=args.resolution, logging=logging)

    _write_files(args, timed, workload)
    if args.json:
        config = describe_config(scenario, schedules, args.resolution)
        write_json(args.json, json_document("simulate", args.seed, config, runs=[timed.record()]))
    if args.json != STANDARD_OUTPUT:
        _print(results_console(), args, timed, workload)
    return 0


def title_of(timed: TimedRun, workload: Workload, system: str) -> str:
    """Returns one line that says what was simulated."""
    layer = workload.layer
    what = f"{layer.name}, top-{layer.top_k} of {layer.experts} experts, {workload.tokens_per_gpu} tokens per GPU"
    return f"{timed.schedule} on {workload.num_gpus} GPUs of {system}: {what}, {workload.name}"


def _write_files(args: argparse.Namespace, timed: TimedRun, workload: Workload) -> None:
    engine = timed.run.engine
    if args.timeline:
        write_bytes(args.timeline, chrome_trace(engine, title_of(timed, workload, args.system)))
    if args.csv:
        ScheduleTable.of(engine).to_csv(args.csv)
    if args.picture:
        # Matplotlib takes longer to import than most layers to simulate.
        from dysharp_env.report.gantt import encode_png, render

        title = title_of(timed, workload, args.system)
        picture = render(engine, title=title, lower_bound_us=timed.result.lower_bound_us, scale=2.0)
        write_bytes(args.picture, encode_png(picture))


def _print(console: Console, args: argparse.Namespace, timed: TimedRun, workload: Workload) -> None:
    result = timed.result
    console.print(title_of(timed, workload, args.system), highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"makespan [bold]{result.makespan_us:.1f} us[/], lower bound {result.lower_bound_us:.1f} us, ratio"
        f" [bold]{result.ratio:.3f}[/]; {result.decisions} decisions, {result.evictions} evictions,"
        f" {result.events} events in {timed.wall_s:.2f} s",
        highlight=False,
        soft_wrap=True,
    )
    console.print(Columns([phase_table(timed), utilisation_table(timed), traffic_table(timed)], padding=(1, 3)))
    for option, use in (
        ("timeline", "open it at https://ui.perfetto.dev or chrome://tracing"),
        ("csv", "the schedule as a table"),
        ("picture", "links and SMs over time"),
        ("json", "the results"),
    ):
        if getattr(args, option):
            console.print(f"wrote {getattr(args, option)}: {use}", highlight=False, markup=False, soft_wrap=True)
