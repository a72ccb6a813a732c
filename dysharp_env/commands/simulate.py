"""``python -m dysharp_env simulate``: one layer under one schedule, or several layers of one trace."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.columns import Columns

from dysharp_env.commands.estimate import expected
from dysharp_env.commands.options import (
    add_report_option,
    add_run_options,
    add_scenario_options,
    describe_config,
    read_named_apart,
    read_scenario,
    require_one_layer,
)
from dysharp_env.commands.output import (
    PICTURES,
    check_folder,
    check_targets,
    command_words,
    json_document,
    publish,
    results_console,
    run_records,
    say,
)
from dysharp_env.commands.timeline import add_timeline_options, timeline_target
from dysharp_env.config import ConfigError
from dysharp_env.report.records import TimedRun, layers_title, notes, run_timed, totals_of
from dysharp_env.report.schedule import ScheduleTable
from dysharp_env.report.tables import layer_tables, phase_table, traffic_table, utilisation_table
from dysharp_env.schedules.opponent import Contender
from dysharp_env.simulator.warmup import ensure_compiled

DEFAULT_SCHEDULE = "dysharp"
# How the name of an option's file ends, and what is in it.
FILES: dict[str, tuple[str | Sequence[str], str]] = {
    "csv": (".csv", "the schedule as a table"),
    "picture": (PICTURES, "stages, links, SMs, HBM and L2 over time"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to ``parser``."""
    add_run_options(parser, DEFAULT_SCHEDULE, several=False)
    add_timeline_options(parser)
    parser.add_argument("--csv", metavar="FILE.csv", help="write the schedule: chunk or tile, stage, GPU, start, end")
    parser.add_argument("--picture", metavar="FILE.png", help=f"draw {FILES['picture'][1]}; or .svg, .pdf")
    add_report_option(parser)
    add_scenario_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit status.

    Raises:
        ConfigError: An option or a file is wrong.
    """
    files = ((option, getattr(args, option), suffix) for option, (suffix, _) in FILES.items())
    timeline = timeline_target(args)
    check_targets(("json", args.json, None), *files, ("timeline", timeline.file, None), args=args)
    check_folder("report", args.report)
    names = args.schedule or [DEFAULT_SCHEDULE]
    if len(names) > 1:
        raise ConfigError(f"schedule={names}: simulate runs one schedule; compare runs several")
    scenario = read_scenario(args)
    (contender,) = read_named_apart(names)
    contender.first.require_fit(scenario)  # refuses a schedule that does not fit before anything long starts
    with expected([scenario], [contender], args.resolution) as next_run:
        workloads = scenario.draw_layers(args.seed)
        require_one_layer(workloads, {option: getattr(args, option) for option in (*FILES, "timeline")})
        ensure_compiled()
        logging = bool(args.timeline or args.picture or args.report) and len(workloads) == 1
        runs = []
        for workload in workloads:
            runs.append(run_timed(scenario, workload, contender, resolution=args.resolution, logging=logging))
            next_run()
    title = f"{contender.name} on {layers_title(workloads, scenario.system.name)}"
    config = describe_config(scenario, [contender], args.resolution)
    records = run_records(runs)
    may_print = publish(args.json, "simulate", args.seed, config, **records)
    if may_print and len(runs) > 1:
        _print_layers(contender, runs, title)
    elif may_print:
        _print(contender, runs[0], title)
    # Results first: they are there even if a file cannot be written.
    _write_files(args, runs[0], title)
    used = timeline.write(scenario, workloads[0], contender, runs[0].run, title) if args.timeline else ""
    if args.report:
        from dysharp_env.report.page.layers import simulate_page
        from dysharp_env.report.page.write import write_page

        document = json_document("simulate", args.seed, config, **records)
        said = notes([contender], [(each.schedule, each.run) for each in runs if len(runs) == 1])
        page = write_page(args.report, simulate_page(command_words(args), document, runs, said))
        if may_print:
            say(results_console(), f"wrote {page}: open it in a browser")
    if may_print:
        uses = {"timeline": used, **{option: use for option, (_, use) in FILES.items()}, "json": "the results"}
        for option, use in uses.items():
            if getattr(args, option):
                say(results_console(), f"wrote {getattr(args, option)}: {use}")
    return 0


def _write_files(args: argparse.Namespace, timed: TimedRun, title: str) -> None:
    engine = timed.run.engine
    if args.csv:
        ScheduleTable.of(engine).to_csv(args.csv)
    if args.picture:
        # Matplotlib takes longer to import than most layers to simulate.
        from dysharp_env.report.gantt import write_picture

        write_picture(args.picture, (timed.schedule, timed.run))


def _print_layers(contender: Contender, runs: list[TimedRun], title: str) -> None:
    console, (total,) = results_console(), totals_of(runs)
    say(console, title)
    for note in notes([contender], []):
        say(console, note)
    say(
        console,
        f"{total.layers} layers: makespans {total.makespan_us:.1f} us together, lower bounds"
        f" {total.lower_bound_us:.1f} us, ratio {total.ratio:.3f}",
    )
    for table in layer_tables(runs):
        console.print(table)


def _print(contender: Contender, timed: TimedRun, title: str) -> None:
    console, result = results_console(), timed.result
    say(console, title)
    for note in notes([contender], [(timed.schedule, timed.run)]):
        say(console, note)
    console.print(
        f"makespan [bold]{result.makespan_us:.1f} us[/], lower bound {result.lower_bound_us:.1f} us"
        f" ({result.family_bound_us:.1f} us for its family), ratio"
        f" [bold]{result.ratio:.3f}[/]; {result.decisions} decisions, {result.evictions} evictions,"
        f" {result.events} events in {timed.wall_s:.2f} s",
        highlight=False,
        soft_wrap=True,
    )
    console.print(Columns([phase_table(timed), utilisation_table(timed), traffic_table(timed)], padding=(1, 3)))
