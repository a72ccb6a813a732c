"""``python -m dysharp_env compare``: one workload, or several layers of one trace, under many schedules."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

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
from dysharp_env.commands.sweep import SWEPT, add_sweep_option, read_sweep
from dysharp_env.config import ConfigError, preset_names, require_choice
from dysharp_env.report.records import (
    TimedRun,
    Total,
    hardware_of,
    layers_title,
    notes,
    run_timed,
    sweep_title,
    totals_of,
)
from dysharp_env.report.sweep import Point, crossing_lines, crossings, sweep_tables
from dysharp_env.report.tables import comparison_table, layer_tables, totals_table
from dysharp_env.schedules import preset_of
from dysharp_env.schedules.opponent import Contender
from dysharp_env.simulator.warmup import ensure_compiled, notice
from dysharp_env.workload import Scenario

DEFAULT_AGAINST = "deepep"
_MOST_DRAWN = 3  # of all presets, the fastest
_MOST_ON_PAGE = 6
SWEPT_HERE = ("tokens", "gpus", "model")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to ``parser``."""
    add_run_options(parser, "every preset that the system has the hardware for")
    text = f"the schedule that speed-ups are relative to (default: {DEFAULT_AGAINST}, or else the first)"
    parser.add_argument("--against", metavar="NAME", help=text)
    text = f"draw all schedules that are named, or the {_MOST_DRAWN} fastest and --against; or .svg, .pdf"
    parser.add_argument("--picture", metavar="FILE.png", help=text)
    add_report_option(parser)
    add_sweep_option(parser, SWEPT_HERE)
    text = "draw a sweep, a line for each schedule: microseconds, or with --against what each takes over that one"
    parser.add_argument("--plot", metavar=f"FILE{'|'.join(PICTURES)}", help=text)
    add_scenario_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit status.

    Raises:
        ConfigError: An option or a file is wrong.
    """
    files = ("json", args.json, None), ("picture", args.picture, PICTURES), ("plot", args.plot, PICTURES)
    check_targets(*files, args=args)
    check_folder("report", args.report)
    scenario = read_scenario(args)
    if args.sweep is not None:
        return _run_sweep(args, scenario)
    if args.plot:
        raise ConfigError(f"plot='{args.plot}' shows a sweep; name one, such as --sweep tokens=64,256,1024")
    contenders = _read_fitting(args, [scenario])
    against = _read_against(args, contenders)
    with expected([scenario], contenders, args.resolution) as next_run:
        workloads = scenario.draw_layers(args.seed)
        require_one_layer(workloads, {"picture": args.picture})
        ensure_compiled()
        # All that are named are drawn; of all presets those that are fastest run again with a log.
        logging = bool(args.picture or args.report) and args.schedule is not None and len(workloads) == 1
        runs = []
        for workload, contender in product(workloads, contenders):
            runs.append(run_timed(scenario, workload, contender, resolution=args.resolution, logging=logging))
            next_run()
    totals = totals_of(runs)
    config = {**describe_config(scenario, contenders, args.resolution), "against": against}
    records = run_records(runs)
    said = notes(contenders, ((run.schedule, run.run) for run in runs if len(workloads) == 1))
    if may_print := publish(args.json, "compare", args.seed, config, **records):
        console = results_console()
        say(console, f"{layers_title(workloads, scenario.system.name)}; {_bounds(contenders, totals)}")
        if len(workloads) > 1:
            for table in (*layer_tables(runs), totals_table(totals, against, hardware_of(runs))):
                console.print(table)
        else:
            console.print(comparison_table(runs, against))
        for note in said:
            say(console, note)
    if args.picture or args.report:
        drawn = _drawn(runs, against, contenders, scenario, args) if len(workloads) == 1 else []
        document = json_document("compare", args.seed, config, **records)
        for line in _write_files(args, document, runs, drawn, against, said):
            if may_print:
                say(results_console(), line)
    return 0


def _drawn(
    runs: Sequence[TimedRun],
    against: str,
    contenders: Sequence[Contender],
    scenario: Scenario,
    args: argparse.Namespace,
) -> list[TimedRun]:
    """Returns what is drawn, fastest first, all with logs: whoever was named, or the fastest and ``against``."""
    fastest = sorted(runs, key=lambda run: run.result.makespan_us)
    if args.schedule:
        return fastest
    chosen = fastest[:_MOST_DRAWN] + [run for run in fastest[_MOST_DRAWN:] if run.schedule == against]
    by_name = {contender.name: contender for contender in contenders}
    workload = chosen[0].run.routed
    return [
        run_timed(scenario, workload, by_name[run.schedule], resolution=args.resolution, logging=True) for run in chosen
    ]


def _write_files(
    args: argparse.Namespace,
    document: dict[str, Any],
    runs: Sequence[TimedRun],
    drawn: Sequence[TimedRun],
    against: str,
    said: Sequence[str],
) -> Iterator[str]:
    """Writes the picture and the page, and yields a line on each that says who is drawn."""
    # What draws takes longer to import than most layers to simulate.
    if args.picture:
        from dysharp_env.report.gantt import write_picture

        write_picture(args.picture, *((run.schedule, run.run) for run in drawn))
        yield f"wrote {args.picture}: {', '.join(run.schedule for run in drawn)}"
    if args.report:
        from dysharp_env.report.page.layers import compare_page
        from dysharp_env.report.page.write import write_page

        shown = [run for place, run in enumerate(drawn) if place < _MOST_ON_PAGE or run.schedule == against]
        pairs = [(run.schedule, run.run) for run in shown]
        page = write_page(args.report, compare_page(command_words(args), document, runs, against, pairs, said))
        yield f"wrote {page}: open it in a browser; drawn are {', '.join(name for name, _ in pairs) or 'no layers'}"


def _run_sweep(args: argparse.Namespace, scenario: Scenario) -> int:
    """Runs all schedules at every value of a sweep, and says who overtakes whom between which."""
    if args.picture or args.report:
        option, target = ("picture", args.picture) if args.picture else ("report", args.report)
        raise ConfigError(f"{option}='{target}' shows one layer; a sweep is drawn by --plot")
    sweep = read_sweep(args.sweep, SWEPT_HERE)
    scenarios = sweep.scenarios(scenario.spec)
    contenders = _read_fitting(args, scenarios)
    against = _read_against(args, contenders)
    ensure_compiled()
    points, runs, records = [], list[TimedRun](), []
    with expected(scenarios, contenders, args.resolution) as next_run:
        for place, (value, swept) in enumerate(zip(sweep.values, scenarios, strict=True)):
            runs = []
            for workload, contender in product(swept.draw_layers(args.seed), contenders):
                runs.append(run_timed(swept, workload, contender, resolution=args.resolution))
                next_run()
            records += [{sweep.key: value, **run.record()} for run in runs]
            points.append(Point(value, tuple(totals_of(runs))))
            notice(f"{place + 1} of {len(scenarios)} values of {sweep.key} simulated")
    found = crossings(points, against) if sweep.is_of_numbers else []
    config = {**describe_config(scenario, contenders, args.resolution), "against": against, "sweep": args.sweep}
    content = {"points": [each.record() for each in points], "crossings": [each.record() for each in found]}
    title, what = sweep_title(scenarios, sweep.key), SWEPT[sweep.key]
    may_print = publish(args.json, "compare", args.seed, config, runs=records, **content)
    console = results_console()
    if may_print:
        say(console, title)
        for table in sweep_tables(points, against, hardware_of(runs), what):
            console.print(table)
        for line in crossing_lines(points, found, what):
            say(console, line)
    if args.plot:
        from dysharp_env.report.sweep_plot import write_sweep

        ratio = args.against is not None
        shown = write_sweep(args.plot, points, found, against, title=title, what=what, ratio=ratio)
        if may_print:
            left = f"; of {len(contenders)} schedules the {len(shown)} best" if len(shown) < len(contenders) else ""
            say(console, f"wrote {args.plot}: the sweep{left}")
    return 0


def _read_against(args: argparse.Namespace, contenders: list[Contender]) -> str:
    """Returns the name of the schedule that others are measured against.

    Raises:
        ConfigError: It is not compared.
    """
    names = [contender.name for contender in contenders]
    name_of = {contender.given: contender.name for contender in contenders}
    given = args.against and name_of.get(args.against, preset_of(args.against))
    if given is not None:
        require_choice("against", given, names)
    return given or (DEFAULT_AGAINST if DEFAULT_AGAINST in names else names[0])


def _bounds(contenders: list[Contender], totals: list[Total]) -> str:
    """Returns what nobody can beat: with experts where they are placed, and for schedules that copy some."""
    of_planner = {contender.name: contender.first.base.replicate for contender in contenders}
    texts = {}
    for total in totals:
        planner = of_planner[total.schedule]
        where = "if experts may be copied" if planner.makes_copies else ""
        where = "with replicas" if planner.planner == "eplb" else where
        texts[where] = f"{total.lower_bound_us:.1f} us {where}".strip()
    return f"lower bound {', '.join(texts[where] for where in sorted(texts))}"


def _read_fitting(args: argparse.Namespace, scenarios: list[Scenario]) -> list[Contender]:
    """Returns the contenders asked for, all of which must fit all systems, or the presets that do."""
    contenders = read_named_apart(args.schedule or preset_names("schedules"))
    fitting = []
    for contender in contenders:
        try:
            for scenario in scenarios:
                contender.first.require_fit(scenario)
        except ConfigError as error:
            if args.schedule:
                raise
            notice(f"left out: {error}")
            continue
        fitting.append(contender)
    if not fitting:
        raise ConfigError(f"system='{args.system}' has the hardware for none of {[each.name for each in contenders]}")
    return fitting
