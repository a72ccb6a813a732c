"""Tiny layers solved, and what opponents reach on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dysharp_env.schedules import load_schedule
from dysharp_env.schedules.opponent import Contender
from dysharp_env.simulator.hardware import PS_PER_US

from ..opponents.read import read_contender
from .follow import play_solved
from .model import ExactModel
from .search import Solved, fix_times, hint, search
from .tiny import Times, TinyInstance, TinyLayer, play

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
    TinyInstance(2, 5, 4, "multicast", 0.2, 2, is_fetching=True),
    TinyInstance(2, 6, 8, "unicast", 0.2, 11, is_fetching=True),
    TinyInstance(3, 4, 9, "multicast", 0.3, 8, is_fetching=True),
    TinyInstance(3, 5, 6, "multicast", 0.2, 9, is_fetching=True),
    TinyInstance(2, 4, 4, "multicast", 0.2, 14, is_early=True, is_fetching=True),
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
    """Returns what a contender plays on a tiny layer in the twin, by seed.

    Raises:
        ConfigError: Its schedule does not fit the stripped machine.
    """
    played = []
    for each in contender.opponents:
        answer = each.answers(tiny, 0)  # the twin's decisions show what the engine's do
        played.append((each.seed, play(tiny.twin(each.base, each.exposure), answer)))  # type: ignore[arg-type]
    return played
