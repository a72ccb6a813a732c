"""``python -m agents.plans``: searches for few ways to run layers that together suit a suite, and writes a schedule.

The schedule lists them as its ``plans``; which of them a layer takes is the decision ``plan``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product

import numpy as np

from dysharp_env.commands.options import most_workers, require_within
from dysharp_env.commands.output import results_console
from dysharp_env.commands.progress import track
from dysharp_env.config import ConfigError
from dysharp_env.files import write_text
from dysharp_env.schedules import Exposure, Problem, ScheduleSpec, load_schedule
from dysharp_env.schedules.writing import as_yaml
from dysharp_env.workers import Processes, Workers
from dysharp_env.workload.suite import load_suite

from .kit import Command, check_options, entry
from .training.plan_layers import draw_layers
from .training.plan_table import Fit, PlanTable, fit_rule, play_plans
from .training.portfolio import (
    COPYING,
    PLACING,
    Changes,
    Member,
    Portfolio,
    choose_greedily,
    log_makespans,
    value,
    with_copies,
)
from .training.spec import PlanningSpec

_BASE = "dysharp"
_MOST_PLANS = 1000
_AGAINST = "fused-unicast"  # which every machine can run
_RULES = ("dysharp-order", "dysharp-l2")
_COUNTED = ("launch", "fused_start", "count_exchange")
_UNCOUNTED = ("launch", "fused_start")
# What a kernel whose tokens are pulled pays before: they must lie there in the format of dispatch, and who has which.
_PULLED = ("launch", "fused_start", "quantise", "count_exchange")
_MEGA_MOE = {
    "dispatch": "pull",
    "combine": "unicast",
    "copies": "expert",
    "parts": {"count": 16, "by": "experts"},
    "families": {"dispatch": "bulk", "combine": "bulk"},
    "pays": {"dispatch": ("launch", "quantise", "count_exchange", "barrier"), "end": ("barrier", "final_sum")},
}

# As deepep-ll: phases without a count exchange or a barrier, which start sooner than a fused kernel.
_LOW_LATENCY = {
    "dispatch": "unicast",
    "combine": "unicast",
    "copies": "expert",
    "readiness": {"gemm1": "gpu", "gemm2": "phase", "combine": "gpu"},
    "families": {"dispatch": "warp_low_latency", "combine": "warp_low_latency"},
    "pays": {
        "dispatch": ("launch",),
        "gemm1": ("gap",),
        "gemm2": ("activation", "gap"),
        "combine": ("gap",),
        "end": ("final_sum",),
    },
    "prefetch": "early",
}


def transports() -> Iterator[Changes]:
    """Yields how tokens and sums may travel, with what that pays, as fused schedules that are shipped do."""
    for dispatch, combine in product(("multicast", "unicast", "team"), ("pull_reduce", "push_reduce", "unicast")):
        if (dispatch == "multicast") or combine != "pull_reduce":
            yield {"dispatch": dispatch, "combine": combine, "pays.dispatch": _UNCOUNTED, "token_order": "natural"}
            yield {"dispatch": dispatch, "combine": combine, "pays.dispatch": _COUNTED, "token_order": "expert_waves"}
    for combine in ("push_reduce", "unicast"):
        yield {"dispatch": "pull", "combine": combine, "pays.dispatch": _PULLED, "token_order": "expert_waves"}
    yield _MEGA_MOE


def pool(rules: Sequence[ScheduleSpec]) -> list[Changes]:
    """Returns the plans that a search begins with: every transport with a few sizes of SM groups and some rules."""
    groups: list[Changes] = [
        {"sms": {"dispatch": 8, "combine": 8}},
        {"sms": {"dispatch": 16, "combine": 16}},
        {"sms": {"dispatch": "all", "combine": "all", "in_gemm": True}},
    ]
    found = []
    for transport, group, rule in product(transports(), groups, rules):
        if transport is _MEGA_MOE and not group["sms"].get("in_gemm"):
            continue
        settings = {"chunk_tokens": rule.chunk_tokens, "hold": rule.hold, "rule": rule.rule.model_dump()}
        found += [{**transport, **group, **settings, "prefetch": "ahead"}]
    return found


def unfused() -> list[Changes]:
    """Returns plans of several kernels, as decoding runs them, with a few sizes of SM groups."""
    return [{**_LOW_LATENCY, "sms": {"dispatch": sms, "combine": sms}} for sms in (16, 32, 64)]


def varied(plan: Changes) -> list[Changes]:
    """Returns a plan with weights fetched from the launch on, and with copies of experts, where it has neither yet."""
    found = [] if plan.get("prefetch") == "early" else [{**plan, "prefetch": "early"}]
    if "replicate" not in plan:
        found.append(with_copies(plan, PLACING))
        if "count_exchange" in plan.get("pays.dispatch", ()):
            found += [with_copies(plan, way) for way in COPYING if way["when"] == "behind"]
    return found


def build() -> Command:
    """Returns the options of the command."""
    command = Command("plans", __doc__, run).add_suite()
    command.add("--out", required=True, metavar="FILE.yaml", help="the schedule that is written")
    command.add("--name", default="dysharp-tuned", metavar="NAME", help="its name")
    command.add("--own", default="dysharp-order", metavar="NAME", help="the schedule whose settings it has besides")
    command.add("--plans", type=int, default=24, metavar="N", help="plans at most")
    command.add("--start", metavar="FILE.yaml", help="a schedule whose plans it begins with")
    command.add("--minutes", type=float, default=20.0, metavar="M", help="of wall time")
    command.add(
        "--layers", type=int, default=800, metavar="N", help="layers at least that the rule for plans is fitted to"
    )
    command.add("--workers", type=int, default=2, metavar="N", help="processes that play")
    return command.add_seed("the search").add_quiet("no line now and then")


def run(args: argparse.Namespace) -> int:
    """Searches as the options say and writes the schedule."""
    check_options(args, ("out", args.out, ".yaml"))
    require_within(2, _MOST_PLANS, plans=args.plans)
    require_within(1, most_workers(), workers=args.workers)
    base, began_s = load_schedule(_BASE), time.monotonic()
    problems = Problem.of_suite(load_suite(args.suite).draw())
    reference = np.array([log_makespans([load_schedule(_AGAINST)], problem)[0] for problem in problems])
    with Processes(args.workers) as workers:

        def costs(schedules: Sequence[ScheduleSpec], places: Sequence[int]) -> np.ndarray:
            played = workers.map(
                partial(log_makespans, schedules), [problems[place] for place in places], constants=problems
            )
            return np.array(played).reshape(len(places), len(schedules)).T - reference[list(places)]

        search = Portfolio(base, costs, len(problems), args.plans, args.seed)
        if args.start:
            given = [given_plan(plan) for plan in load_schedule(args.start).plans]
        else:
            given = pool([load_schedule(name) for name in _RULES])
        with track("searches", 60 * args.minutes, quiet=args.quiet) as shown:
            search.start([*given, *unfused()])
            search.start([copied for member in search.members for copied in varied(member.changes)])
            while (spent_s := time.monotonic() - began_s) < 60 * args.minutes:
                shown.at(spent_s, f"{search.episodes} layers: {np.exp(value(search.best)):.4f}")
                search.step()
        order = choose_greedily(search.members, len(search.members))
        rule, chosen = fit_rule(_played(args, _schedule(args, order, {}), problems, workers), args.seed)
    write_text(args.out, _document(args, search, _schedule(args, order, rule), chosen))
    results_console().print(
        f"{args.name}: the best of {len(search.members)} plans for each workload is at {np.exp(value(search.best)):.4f}"
        f" of {_AGAINST}; {search.episodes} layers",
        highlight=False,
    )
    return 0


def _played(
    args: argparse.Namespace, schedule: ScheduleSpec, problems: Sequence[Problem], workers: Workers
) -> PlanTable:
    """Returns all plans on the suite and on as many more layers as are asked for, drawn as a run on plans draws its."""
    with track("plays all plans", args.layers, quiet=args.quiet) as shown:
        table, suite, drawn = play_plans(problems, schedule, Exposure(), workers), load_suite(args.suite), 0
        while len(table.names) < args.layers:
            shown.at(len(table.names), f"{len(table.names)} layers")
            layers = draw_layers(suite, PlanningSpec(batch=args.layers - len(table.names)), args.seed, drawn)
            table, drawn = table.joined(play_plans(layers, schedule, Exposure(), workers)), drawn + 1
    return table


def given_plan(plan: str | Changes) -> Changes:
    """Returns a plan of a schedule that this command wrote, without its name.

    Raises:
        ConfigError: It is of another schedule.
    """
    if isinstance(plan, str) or plan.get("schedule", _BASE) != _BASE:
        raise ConfigError(f"start: plan {plan} is no change of {_BASE}")
    return {key: setting for key, setting in plan.items() if key not in ("name", "schedule")}


def _schedule(args: argparse.Namespace, order: Sequence[Member], rule: dict[str, float]) -> ScheduleSpec:
    """Returns the schedule whose plans are those of some members, chosen by a rule."""
    own = load_schedule(args.own)
    return own.with_changes(
        {
            "name": args.name,
            "description": f"One of {len(order)} ways to run a layer, by rule; found by search on suite {args.suite}.",
            "aliases": (),
            "found_by": "search",
            "rule": {**own.rule.root, "plan": rule},
            "plans": [
                {"name": f"{args.name}-{place}", "schedule": _BASE, **member.changes}
                for place, member in enumerate(order)
            ],
        }
    )


def _document(args: argparse.Namespace, search: Portfolio, schedule: ScheduleSpec, chosen: Fit) -> str:
    """Returns the schedule's YAML with a header that says what made it."""
    first = choose_greedily(search.members, 1)[0]
    lines = [
        "Ways to run a layer, found by search so that the best of them is good on each workload. The first is the best"
        " alone. Made by",
        f"  python -m agents.plans --suite {args.suite} --name {args.name} --own {args.own} --plans {args.plans}"
        f" --minutes {args.minutes:g} --layers {args.layers} --workers {args.workers} --seed {args.seed}"
        + (f" --start {args.start}" if args.start else "")
        + " --out FILE",
        f"in {search.episodes} layers: geometric mean over that suite of the best plan's makespan over {_AGAINST}'s"
        f" {np.exp(value(search.best)):.4f},",
        f"of the first alone {np.exp(value(first.costs)):.4f}. The linear rule for plans, fitted to all plans on"
        f" {args.layers} layers of it, takes {np.exp(chosen.loss):.4f} of",
        "the best. How fast a machine is changes what a clock allows, so another run finds others.",
    ]
    return as_yaml(schedule, lines)


main = entry(build, __name__)
