"""``python -m dysharp_env explain``: where a layer's time goes, and what would help."""

from __future__ import annotations

import argparse

from dysharp_env.commands.options import (
    add_report_option,
    add_run_options,
    add_scenario_options,
    describe_config,
    read_named_apart,
    read_scenario,
)
from dysharp_env.commands.output import (
    PICTURES,
    check_folder,
    check_targets,
    command_words,
    json_document,
    publish,
    results_console,
    say,
)
from dysharp_env.report.explained import Explanation, explain, ideal_table, path_table
from dysharp_env.report.records import layer_title, notes
from dysharp_env.schedules import Problem
from dysharp_env.schedules.opponent import Contender
from dysharp_env.simulator.warmup import ensure_compiled

DEFAULT_SCHEDULE = "dysharp"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to ``parser``."""
    add_run_options(parser, DEFAULT_SCHEDULE)
    text = "draw a GPU over time, the critical path, and what would save how much"
    parser.add_argument("--picture", metavar="FILE.png", help=f"{text}; or .svg, .pdf")
    add_report_option(parser)
    add_scenario_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit status.

    Raises:
        ConfigError: An option or a file is wrong.
    """
    check_targets(("json", args.json, None), ("picture", args.picture, PICTURES), args=args)
    check_folder("report", args.report)
    scenario = read_scenario(args)
    contenders = read_named_apart(args.schedule or [DEFAULT_SCHEDULE])
    for contender in contenders:
        contender.first.require_fit(scenario)  # refuses a schedule that does not fit before anything long starts
    workload = scenario.draw(args.seed)
    ensure_compiled()
    scale = scenario.spec.compute_scale
    problem = Problem.of(scenario.system, workload, compute_scale=scale, resolution=args.resolution)
    explanations = [explain(problem, contender) for contender in contenders]
    config = describe_config(scenario, contenders, args.resolution)
    records = [explanation.record() for explanation in explanations]
    layer = layer_title(workload, scenario.system.name)
    may_print = publish(args.json, "explain", args.seed, config, runs=records)
    if may_print:
        for contender, explanation in zip(contenders, explanations, strict=True):
            _print(contender, explanation, layer)
    if args.picture:
        # Matplotlib takes longer to import than most layers to simulate.
        from dysharp_env.report.causes import write_causes

        write_causes(args.picture, *explanations)
        if may_print:
            say(
                results_console(), f"wrote {args.picture}: a GPU over time, the critical path, what would save how much"
            )
    if args.report:
        from dysharp_env.report.page.layers import explain_page
        from dysharp_env.report.page.write import write_page

        document = json_document("explain", args.seed, config, runs=records)
        said = notes(contenders, [(each.schedule, each.run) for each in explanations])
        page = write_page(args.report, explain_page(command_words(args), document, explanations, said))
        if may_print:
            say(results_console(), f"wrote {page}: open it in a browser")
    return 0


def _print(contender: Contender, explanation: Explanation, layer: str) -> None:
    console = results_console()
    say(console, f"{explanation.schedule} on {layer}")
    for note in notes([contender], [(explanation.schedule, explanation.run)]):
        say(console, note)
    bound_us = explanation.run.lower_bound_ps / 1e6
    console.print(
        f"makespan [bold]{explanation.makespan_ps / 1e6:.1f} us[/], lower bound {bound_us:.1f} us;"
        f" what binds: [bold]{explanation.binds}[/]",
        highlight=False,
        soft_wrap=True,
    )
    console.print(ideal_table(explanation))
    console.print(path_table(explanation))
