"""``python -m agents.exact``: proved optima of tiny layers beside the lower bound and what policies reach.

The layers run on the stripped machine of tiny.py, where OR-Tools' CP-SAT can state every timing rule exactly
(model.py). Every schedule played is checked to be a solution of the same model, to the picosecond, and
the optimum is played in the twin to see whether it can be reached.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from rich.table import Table
from rich.text import Text

from agents.exact.follow import play_solved
from agents.exact.model import ExactModel, require_solver
from agents.exact.search import Solved, fix_times, hint, search
from agents.exact.tiny import Times, TinyInstance, TinyLayer, play
from agents.opponents.contender import Contender, Learned, read_contender
from agents.opponents.lookahead import look_ahead
from agents.opponents.play import FIRST
from dysharp_env.commands import CommandParser, run_main
from dysharp_env.commands.options import add_json_option
from dysharp_env.commands.output import STANDARD_OUTPUT, check_targets, json_document, results_console, write_json
from dysharp_env.config import ConfigError
from dysharp_env.schedules import Exposure, load_schedule
from dysharp_env.simulator.costs import PS_PER_US
from dysharp_env.simulator.twin.parts import Decision

POLICIES = ("dysharp", "dysharp-tuned", "look-ahead:dysharp-tuned")
INSTANCES = (
    TinyInstance(2, 5, 4, "multicast", 0.2, 1),
    TinyInstance(2, 6, 8, "unicast", 0.2, 11),
    TinyInstance(3, 4, 6, "unicast", 0.2, 10),
    TinyInstance(3, 4, 6, "multicast", 0.2, 7),
    TinyInstance(3, 4, 9, "multicast", 0.3, 8),
    TinyInstance(3, 5, 6, "multicast", 0.2, 9),
    TinyInstance(2, 3, 4, "multicast", 0.2, 1, is_early=True),
    TinyInstance(2, 3, 6, "multicast", 0.3, 6, is_early=True),
    TinyInstance(3, 2, 6, "multicast", 0.2, 2, is_early=True),
    TinyInstance(3, 3, 6, "unicast", 0.1, 24, is_early=True),
)


@dataclass(frozen=True)
class ExactRow:
    """What one policy reaches on one instance; ``gap`` is its makespan over the optimum, less one."""

    policy: str
    seed: int | None
    makespan_us: float
    gap: float


@dataclass(frozen=True)
class ExactResult:
    """One tiny instance.

    Attributes:
        instance: Its name.
        lower_bound_us: The closed-form bound.
        proved_us: What no schedule can beat, by the search; the optimum itself if that is proved.
        optimum_us: The best schedule known.
        is_proved: Whether it is proved that there is no better one.
        is_played: Whether the twin, playing the optimum's order, ends when the solver says.
        rows: What each policy reaches.
    """

    instance: str
    lower_bound_us: float
    proved_us: float
    optimum_us: float
    is_proved: bool
    is_played: bool
    rows: list[ExactRow]


def build_parser() -> argparse.ArgumentParser:
    """Returns the options of the command."""
    parser = CommandParser(prog="python -m agents.exact", description=__doc__)
    parser.add_argument(
        "--policy",
        action="append",
        metavar="NAME",
        help="a schedule's name or .yaml, look-ahead:SCHEDULE, random, first, or a run folder; repeatable"
        f" (default: {', '.join(POLICIES)})",
    )
    parser.add_argument(
        "--effort",
        type=float,
        default=10.0,
        metavar="S",
        help="most work on one instance, in the solver's deterministic seconds (default: %(default)s)",
    )
    parser.add_argument(
        "--instances",
        type=int,
        default=len(INSTANCES),
        metavar="N",
        help="solve the first N (default: all %(default)s)",
    )
    add_json_option(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Solves, plays, and prints the table."""
    if not 0 < args.effort <= 1e6:
        raise ConfigError(f"effort={args.effort:g} must be above 0 and at most 1e6")
    if not 1 <= args.instances <= len(INSTANCES):
        raise ConfigError(f"instances={args.instances} must be 1 to {len(INSTANCES)}")
    check_targets(("json", args.json, None))
    require_solver()
    given = args.policy or list(POLICIES)
    contenders = [read_contender(name) for name in given]
    results = [result_of(instance, contenders, args.effort) for instance in INSTANCES[: args.instances]]
    if args.json:
        config = {"policies": given, "effort": args.effort}
        write_json(args.json, json_document("exact", 0, config, rows=[asdict(result) for result in results]))
    if args.json != STANDARD_OUTPUT:
        results_console().print(exact_table(results))
    return 0


def result_of(instance: TinyInstance, contenders: Sequence[Contender], effort: float) -> ExactResult:
    """Returns optimum and gaps of one instance.

    Raises:
        ConfigError: A contender does not fit the stripped machine.
    """
    tiny = instance.build()
    base = play_on(tiny, read_contender("dysharp"))[0][1]
    played = [(contender.name, *pair) for contender in contenders for pair in play_on(tiny, contender)]
    for name, _, times in played:
        assert is_solution(tiny, times), f"'{name}' plays {instance.name} against the rules of the exact model"
    start = min([base, *(times for _, _, times in played)], key=lambda times: times.makespan_ps)
    solved = solve(tiny, start, effort)
    best_ps = solved.times.makespan_ps
    reached = play_solved(tiny, solved, tiny.fit(load_schedule("dysharp")))
    rows = [
        ExactRow(name, seed, times.makespan_ps / PS_PER_US, times.makespan_ps / best_ps - 1)
        for name, seed, times in played
    ]
    return ExactResult(
        instance=instance.name,
        lower_bound_us=tiny.bound.total_ps / PS_PER_US,
        proved_us=solved.bound_ps / PS_PER_US,
        optimum_us=best_ps / PS_PER_US,
        is_proved=solved.is_proved,
        is_played=reached.makespan_ps == best_ps,
        rows=rows,
    )


def solve(tiny: TinyLayer, start: Times, effort: float) -> Solved:
    """Returns the best schedule that is found from a known one on."""
    model = ExactModel(tiny, start.makespan_ps)
    hint(model, start)
    solved = search(model, effort)
    assert solved is not None, "the schedule the search starts at is a solution"
    return solved


def is_solution(tiny: TinyLayer, times: Times) -> bool:
    """Returns whether the exact model allows everything to happen when it did."""
    model = ExactModel(tiny, times.makespan_ps)
    fix_times(model, times)
    return search(model, effort=10.0) is not None


def play_on(tiny: TinyLayer, contender: Contender) -> list[tuple[int | None, Times]]:
    """Returns what a contender plays on a tiny layer, by training seed.

    Raises:
        ConfigError: Its schedule does not fit the stripped machine.
    """
    if contender.schedule is not None:
        return [(None, play(tiny.twin(contender.schedule, Exposure()), _nobody))]
    if contender.ahead is not None:
        ahead = replace(contender.ahead, schedule=tiny.fit(contender.ahead.schedule))  # what it offers depends on it
        choices = iter(look_ahead(tiny, ahead).choices)
        return [(None, play(tiny.twin(ahead.schedule, ahead.exposure()), lambda _: next(choices)))]
    if learned := contender.learned():
        return [_play_learned(tiny, policy) for policy in learned]
    twin = tiny.twin(load_schedule("dysharp"), tiny.asked())
    if contender.name == FIRST:
        return [(None, play(twin, lambda decision: int(decision.mask.argmax())))]
    rng = np.random.default_rng(0)
    return [(0, play(twin, lambda decision: int(rng.choice(np.flatnonzero(decision.mask)))))]


def _play_learned(tiny: TinyLayer, policy: Learned) -> tuple[int | None, Times]:
    exposure = replace(policy.env.exposure(), network=policy.network)
    return policy.seed, play(tiny.twin(load_schedule(policy.env.schedule), exposure), _nobody)


def _nobody(_: Decision) -> int:
    raise AssertionError("a rule or network takes all decisions")


def exact_table(results: Sequence[ExactResult]) -> Table:
    """Returns one line per instance, with the gap of every policy, and the mean gaps."""
    labels = [row.policy if row.seed is None else f"{row.policy} ({row.seed})" for row in results[0].rows]
    table = Table(
        title=Text(f"{len(results)} tiny layers on the stripped machine: makespans over the optimum", "bold"),
        title_justify="left",
        caption="proved: nothing is faster; played: the twin reaches the optimum to the picosecond",
        caption_justify="left",
    )
    table.add_column("layer")
    for column in ("optimum us", "proved", "played", "lower bound", *labels):
        table.add_column(Text(column), justify="right")
    for result in results:
        table.add_row(
            result.instance,
            f"{result.optimum_us:.3f}",
            "yes" if result.is_proved else f">= {result.proved_us:.3f}",
            "yes" if result.is_played else "no",
            f"{result.lower_bound_us / result.optimum_us - 1:+.1%}",
            *(f"{row.gap:+.1%}" for row in result.rows),
        )
    bounds = [result.lower_bound_us / result.optimum_us - 1 for result in results]
    gaps = np.array([[row.gap for row in result.rows] for result in results]).mean(axis=0)
    table.add_row("mean", "", "", "", f"{np.mean(bounds):+.1%}", *(f"{gap:+.1%}" for gap in gaps))
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_main(build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
