"""``python -m dysharp_env compare``: one workload, or several layers of one trace, under many schedules."""

from __future__ import annotations

import argparse

from dysharp_env.commands.options import (
    add_run_options,
    add_scenario_options,
    describe_config,
    read_named_apart,
    read_scenario,
    require_one_layer,
)
from dysharp_env.commands.output import check_targets, publish, results_console, run_records, say
from dysharp_env.config import ConfigError, preset_names, require_choice
from dysharp_env.report.records import Total, layers_title, notes, run_timed, totals_of
from dysharp_env.report.tables import comparison_table, layer_tables, totals_table
from dysharp_env.schedules import preset_of
from dysharp_env.schedules.opponent import Contender
from dysharp_env.simulator.warmup import ensure_compiled, notice
from dysharp_env.workload import Scenario

DEFAULT_AGAINST = "deepep"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to ``parser``."""
    add_run_options(parser, "every preset that the system has the hardware for")
    text = f"the schedule that speed-ups are relative to (default: {DEFAULT_AGAINST}, or else the first)"
    parser.add_argument("--against", metavar="NAME", help=text)
    parser.add_argument("--picture", metavar="FILE.png", help="draw two schedules on one time axis")
    add_scenario_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit status.

    Raises:
        ConfigError: An option or a file is wrong.
    """
    check_targets(("json", args.json, None), ("picture", args.picture, ".png"))
    scenario = read_scenario(args)
    contenders = _read_fitting(args, scenario)
    names = [contender.name for contender in contenders]
    name_of = {contender.given: contender.name for contender in contenders}
    given = args.against and name_of.get(args.against, preset_of(args.against))
    if given is not None:
        require_choice("against", given, names)
    against = given or (DEFAULT_AGAINST if DEFAULT_AGAINST in names else names[0])
    if args.picture and len(contenders) != 2:
        raise ConfigError(f"picture='{args.picture}' shows two schedules; {len(contenders)} are compared, so name two")
    workloads = scenario.draw_layers(args.seed)
    require_one_layer(workloads, {"picture": args.picture})
    ensure_compiled()
    runs = [
        run_timed(scenario, workload, contender, resolution=args.resolution, logging=bool(args.picture))
        for workload in workloads
        for contender in contenders
    ]
    totals = totals_of(runs)
    bound_us = totals[0].lower_bound_us
    config = {**describe_config(scenario, contenders, args.resolution), "against": against}
    if publish(args.json, "compare", args.seed, config, **run_records(runs)):
        console = results_console()
        say(console, f"{layers_title(workloads, scenario.system.name)}; {_bounds(contenders, totals)}")
        if len(workloads) > 1:
            for table in (*layer_tables(runs), totals_table(totals, against)):
                console.print(table)
        else:
            console.print(comparison_table(runs, against))
        for note in notes(contenders, ((run.schedule, run.run) for run in runs if len(workloads) == 1)):
            say(console, note)
    if args.picture:
        # Matplotlib takes longer to import than most layers to simulate.
        from dysharp_env.report.gantt import write_picture

        write_picture(args.picture, *((run.schedule, run.run.engine) for run in runs), lower_bound_us=bound_us)
    return 0


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


def _read_fitting(args: argparse.Namespace, scenario: Scenario) -> list[Contender]:
    """Returns the contenders asked for, all of which must fit the system, or the presets that do."""
    contenders = read_named_apart(args.schedule or preset_names("schedules"))
    fitting = []
    for contender in contenders:
        try:
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
