"""``python -m agents.headroom``: what could be gained on each workload of a suite, by rules and by look-ahead.

The paper's schedule is compared with the lower bound and with the strongest opponents known: every other shipped
schedule that the same hardware runs, the tuned rule, that rule tuned further on the workload alone, and look-ahead. A
workload on which the best of them is 3 % faster than the paper's schedule has room for learning to show in.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from rich.table import Table
from rich.text import Text

from dysharp_env.commands.options import open_workers
from dysharp_env.commands.progress import track
from dysharp_env.config import preset_names
from dysharp_env.schedules import Problem, ScheduleSpec, load_schedule
from dysharp_env.schedules.hardware import is_of_another_proposal
from dysharp_env.workload.suite import load_suite

from .kit import Command, check_options, deliver, entry
from .opponents.lookahead import LookAhead, look_ahead
from .opponents.rollouts import makespans_ps, size_of
from .training.cma_search import Budget, search

REFERENCE, WAVES, TUNED = "dysharp", "dysharp-waves", "dysharp-tuned"
OTHERS = ("rival", "waves", "tuned", "own", "ahead", "own_ahead")  # whose makespans are measured beside the paper's
HEADLINE = 0.97  # best known over the paper's: at or below it there is room


@dataclass(frozen=True)
class Headroom:
    """What is known of one workload; all times are makespans.

    Attributes:
        workload: Its name in the suite.
        lower_bound_us: What no schedule can beat.
        dysharp_us: The paper's schedule.
        rival, rival_us: The best other shipped schedule for the same hardware, none of those below.
        waves_us: The paper's schedule in expert waves.
        tuned_us: The rule tuned on the training suite.
        own_us: That rule tuned further on this workload alone.
        ahead_us: The tuned rule with look-ahead.
        own_ahead_us: The rule of ``own_us`` with look-ahead.
    """

    workload: str
    lower_bound_us: float
    dysharp_us: float
    rival: str
    rival_us: float
    waves_us: float
    tuned_us: float
    own_us: float
    ahead_us: float
    own_ahead_us: float

    @property
    def best_us(self) -> float:
        """The shortest makespan known."""
        return min(self.dysharp_us, *(getattr(self, f"{name}_us") for name in OTHERS))

    @property
    def is_headline(self) -> bool:
        """Whether there is room for learning to show in."""
        return self.best_us <= HEADLINE * self.dysharp_us

    def row(self) -> dict[str, object]:
        """Returns all of it for JSON."""
        return {**asdict(self), "best_us": self.best_us, "headline": self.is_headline}


def shipped_rivals() -> list[ScheduleSpec]:
    """Returns the shipped schedules that the paper's hardware runs, but for those that have a column of their own.

    Those that move experts are left out too: nothing that is compared with them may, nor does the bound allow it.
    """
    left_out = (REFERENCE, WAVES, TUNED)
    shipped = [load_schedule(name) for name in preset_names("schedules") if name not in left_out]
    return [each for each in shipped if each.replicate.planner == "none" and not is_of_another_proposal(each)]


def measure(problem: Problem, tuned: ScheduleSpec, episodes: int, rollouts: int, seed: int) -> Headroom:
    """Returns what is known of a problem after so many episodes of search and rollouts of each look-ahead."""
    reference, rivals = load_schedule(REFERENCE), shipped_rivals()
    schedules = [reference, load_schedule(WAVES), tuned, *rivals]
    reference_us, waves_us, tuned_us, *rivals_us = (makespans_ps(schedules, [problem])[:, 0] / 1e6).tolist()
    best = int(np.argmin(rivals_us))
    own = search(tuned, [problem], reference, Budget(episodes, np.inf), name="own", seed=seed).schedule
    ahead, own_ahead = (look_ahead(problem, LookAhead(schedule, rollouts)) for schedule in (tuned, own))
    return Headroom(
        workload=problem.name,
        lower_bound_us=problem.bound.total_ps / 1e6,
        dysharp_us=reference_us,
        rival=rivals[best].name,
        rival_us=rivals_us[best],
        waves_us=waves_us,
        tuned_us=tuned_us,
        own_us=own_ahead.rule_ps / 1e6,
        ahead_us=ahead.makespan_ps / 1e6,
        own_ahead_us=own_ahead.makespan_ps / 1e6,
    )


def geomeans(rows: Sequence[Headroom]) -> dict[str, float]:
    """Returns the geometric mean over workloads of every time over the paper's."""
    return {
        name: float(np.exp(np.mean([np.log(getattr(row, f"{name}_us") / row.dysharp_us) for row in rows])))
        for name in ("lower_bound", *OTHERS, "best")
    }


def table(rows: Sequence[Headroom], suite: str) -> Table:
    """Returns a line for each workload: the paper's time over the bound, the others' over the paper's."""
    shown = Table(
        title=Text(f"Suite {suite}: makespans relative to {REFERENCE} on the same workload", "bold"),
        title_justify="left",
        caption=f"room: the best known is at least {1 - HEADLINE:.0%} faster; own: the tuned rule tuned further on the"
        " workload alone; ahead: with look-ahead",
        caption_justify="left",
    )
    shown.add_column("workload", overflow="fold")
    columns = ("/ bound", "best shipped", "waves", "tuned", "own", "tuned ahead", "own ahead", "best", "room")
    for column in (f"{REFERENCE} {columns[0]}", *columns[1:]):
        shown.add_column(Text(column), justify="right")
    for row in rows:
        times = [getattr(row, f"{name}_us") for name in (*OTHERS[1:], "best")]
        shown.add_row(
            Text(row.workload),
            f"{row.dysharp_us / row.lower_bound_us:.3f}",
            f"{row.rival_us / row.dysharp_us:.3f} {row.rival}",
            *(f"{time / row.dysharp_us:.3f}" for time in times),
            "yes" if row.is_headline else "no",
        )
    means = geomeans(rows)
    shown.add_section()
    shown.add_row(
        "geometric mean",
        f"{1 / means['lower_bound']:.3f}",
        f"{means['rival']:.3f}",
        *(f"{means[name]:.3f}" for name in (*OTHERS[1:], "best")),
        f"{sum(row.is_headline for row in rows)}/{len(rows)}",
    )
    return shown


def build() -> Command:
    """Returns the options of the command."""
    command = Command("headroom", __doc__, run).add_suite()
    command.add("--tuned", default=TUNED, metavar="NAME", help="the tuned rule, a schedule")
    text = "layers played to tune it further on each workload"
    command.add("--episodes", type=int, default=400, metavar="N", help=text)
    command.add("--rollouts", type=int, default=400, metavar="N", help="simulations of each look-ahead")
    command.add_workers()
    return command.add_seed("the searches").add_json()


def run(args: argparse.Namespace) -> int:
    """Measures a suite as the options say."""
    check_options(args)
    workers = open_workers(args)
    suite, tuned = load_suite(args.suite), load_schedule(args.tuned)
    problems = Problem.of_suite(suite.draw())
    how = {"tuned": tuned, "episodes": args.episodes, "rollouts": args.rollouts, "seed": args.seed}

    with workers, track("measures", len(problems)) as shown:

        def tell(done: int, place: int, row: Headroom) -> None:
            line = (
                f"{row.workload}: {REFERENCE} {row.dysharp_us / row.lower_bound_us:.3f} of the bound, tuned"
                f" {row.tuned_us / row.dysharp_us:.3f}, best {row.best_us / row.dysharp_us:.3f} of {REFERENCE}"
            )
            shown.at(done, row.workload, line)

        rows = workers.map(partial(measure, **how), problems, size=size_of, tell=tell)
    config = {
        "suite": suite.model_dump(mode="json"),
        "tuned": tuned.model_dump(mode="json"),
        "episodes": args.episodes,
        "rollouts": args.rollouts,
    }
    content = {"rows": [row.row() for row in rows], "geomean": geomeans(rows)}
    deliver(args, config, content, table(rows, suite.name))
    return 0


main = entry(build, __name__)
