"""The exact model of tiny layers allows all that the engine plays, to the picosecond, and its optimum is the least."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ortools")

from agents import train
from agents.exact import __main__ as command
from agents.exact import results as exact
from agents.exact import search as exact_search
from agents.exact.follow import play_solved
from agents.exact.model import ExactModel
from agents.exact.tiny import Times, TinyInstance, TinyLayer
from dysharp_env.schedules import Exposure, LowerBound, load_schedule
from dysharp_env.simulator.twin.parts import Hold
from dysharp_env.workload import Workload


def draw_instance(seed: int) -> TinyInstance:
    rng = np.random.default_rng(seed)
    num_gpus = int(rng.integers(2, 5))
    return TinyInstance(
        num_gpus,
        int(rng.integers(1, 5)),
        num_gpus * int(rng.integers(1, 4)),
        ("unicast", "multicast")[rng.integers(2)],
        float(rng.choice([0.01, 0.1, 0.2, 0.5])),
        seed,
        is_early=bool(rng.integers(2)),
        is_fetching=bool(rng.integers(2)),
    )


def play_randomly(tiny: TinyLayer, hold: bool, seed: int) -> Times:
    """Returns random choices' times in the twin; the engine, given the same choices, ends at the same time."""
    rng = np.random.default_rng(seed)
    schedule, exposure = tiny.fit(load_schedule("dysharp")), tiny.asked(hold)
    twin = tiny.twin(schedule, exposure)
    engine = tiny.engine(schedule, exposure)
    while (decision := twin.advance()) is not None:
        assert engine.advance() is not None
        legal = np.flatnonzero(decision.mask)
        waits = isinstance(decision.candidates[legal[-1]], Hold)
        choice = int(rng.choice(legal if hold else legal[: len(legal) - waits]))
        twin.decide(choice)
        engine.decide(choice)
    assert engine.advance() is None and engine.now_ps == twin.now_ps
    return Times.of(twin)


Fix = Callable[[ExactModel, Times], None]


def fix_orders(model: ExactModel, times: Times) -> None:
    """Leaves the schedules in which everything happens in the order in which it does there."""
    for (expert, token, tile), is_inside in model.in_tile.items():
        model.model.add(is_inside == int(times.tiles[expert, token] == tile))
    for gpu in model.gpus:
        places = (place for place in model.fetches if model.gpu_of_expert[place[0]] == gpu)
        for fetch, next_fetch in pairwise(sorted(places, key=times.fetches.__getitem__)):
            model.model.add(model.fetches[fetch] < model.fetches[next_fetch])
        mine = (row for row in times.rows if model.gpu_of_expert[row[0]] == gpu)
        for first, second in pairwise(sorted(mine, key=times.rows.__getitem__)):
            model.model.add(model.row_ends[first] <= model.rows[second])
        here = [name for name, segment in model.segments.items() if segment.target == gpu]
        for before, after in pairwise(sorted(here, key=times.arrivals.__getitem__)):
            model.model.add(model.segments[before].free <= model.segments[after].start)
        sends = [token for token in model.sends if model.home(token) == gpu]
        for send, next_send in pairwise(sorted(sends, key=times.sends.__getitem__)):
            model.model.add(model.sends[send] < model.sends[next_send])
        pushes = [pair for pair in model.pushes if pair[1] == gpu]
        for push, next_push in pairwise(sorted(pushes, key=times.pushes.__getitem__)):
            model.model.add(model.pushes[push] < model.pushes[next_push])


def makespan_ps(tiny: TinyLayer, times: Times, fix: Fix) -> int | None:
    model = ExactModel(tiny, 2 * times.makespan_ps)
    fix(model, times)
    solved = exact_search.search(model, effort=10.0)
    assert solved is None or solved.is_proved
    return None if solved is None else solved.times.makespan_ps


@pytest.mark.parametrize("group", range(4))
def test_what_the_engine_plays_is_a_solution_with_the_same_times(group: int) -> None:
    for seed in range(group * 10, group * 10 + 10):
        tiny = draw_instance(seed).build()
        with_hold = play_randomly(tiny, True, seed)
        assert makespan_ps(tiny, with_hold, exact_search.fix_times) == with_hold.makespan_ps
        assert makespan_ps(tiny, with_hold, fix_orders) <= with_hold.makespan_ps
        # Groups that never hold start whatever comes next in their order as soon as it is ready.
        without = play_randomly(tiny, False, seed)
        assert makespan_ps(tiny, without, exact_search.fix_times) == without.makespan_ps
        assert makespan_ps(tiny, without, fix_orders) == without.makespan_ps


@pytest.mark.parametrize("name", ["sends", "pushes", "rows", "arrivals", "fetches"])
def test_anything_a_picosecond_early_is_no_solution(name: str) -> None:
    """Dispatch starts and a gapless schedule's first events cannot be earlier than they are."""
    tiny = TinyInstance(2, 3, 4, "unicast", 0.2, 0, is_fetching=name == "fetches").build()
    times = play_randomly(tiny, False, 0)
    events = getattr(times, name)
    first = min(events, key=events.__getitem__)
    # HBM never rests: its last read cannot be earlier either.
    for early in (first, max(events, key=events.__getitem__)) if name == "fetches" else (first,):
        changed = replace(times, **{name: {**events, early: events[early] - 1}})
        assert makespan_ps(tiny, changed, exact_search.fix_times) is None


def test_a_hand_worked_optimum() -> None:
    """Each GPU has one token, with one expert at home and one at the neighbour; GEMMs are short."""
    tiny = TinyInstance(2, 1, 4, "multicast", 0.01, 0).build()
    topk_ids = np.array([[0, 2], [3, 1]])  # experts 0 and 1 are on GPU 0
    workload = Workload.even(tiny.workload.layer, 2, topk_ids, tiny.workload.gpu_of_expert, "by hand")
    bound = LowerBound(tiny.system, workload.layer, tiny.costs).of(workload)
    tiny = replace(tiny, workload=workload, bound=bound)
    start = play_randomly(tiny, False, 0)
    solved = exact.solve(tiny, start, effort=10.0)
    # 114688 values of 2 B are 1792 packets of 8 data flits and a header, and a target flit in a multicast store: 17920
    # flits out and 16128 home, of 16 B at 450 GB/s. Two hops of 250 ns each way; translation misses for 500 ns.
    out_ps, home_ps = 17920 * 16 * 1000 // 450, 16128 * 16 * 1000 // 450
    rows_ps = tiny.costs.block_ps(1, 1) + tiny.costs.block_ps(2, 1)
    launch_ps = tiny.costs.launch_ps
    assert rows_ps < 600_000  # the token at home is done before the other one comes
    expected_ps = launch_ps + out_ps + 500_000 + 500_000 + rows_ps + home_ps + 500_000
    assert solved.is_proved and solved.times.makespan_ps == expected_ps == start.makespan_ps


def test_a_hand_worked_optimum_with_weights() -> None:
    """Both GPUs have one token and one expert, which gets both tokens; weights take longer than all else together."""
    tiny = TinyInstance(2, 1, 2, "multicast", 0.5, 0, is_fetching=True).build()
    solved = exact.solve(tiny, play_randomly(tiny, False, 0), effort=10.0)
    # 2 x 2048 x 114688 and half as many values of 2 B, at 1e14 B/s and half of the time; between them the token that
    # this GPU has dispatched meanwhile is read.
    weights_ps = 939_524_096 // 200 + 469_762_048 // 200 + 229_376 // 200
    home_ps = 16128 * 16 * 1000 // 450 + 500_000
    assert tiny.costs.block_ps(2, 2) < 469_762_048 // 200
    expected_ps = tiny.costs.launch_ps + weights_ps + home_ps
    assert solved.is_proved and solved.times.makespan_ps == expected_ps
    # Who fetches nothing ahead begins when the second token is there: 500 ns after it has come over two hops.
    late = Times.of(tiny.twin(load_schedule("dysharp"), Exposure()).run())
    came_ps = 17920 * 16 * 1000 // 450 + 1_000_000
    assert late.makespan_ps == expected_ps + came_ps - 229_376 // 200


def all_ends_ps(tiny: TinyLayer) -> Iterator[int]:
    """Yields the makespan of every schedule that the engine can play: of every answer to every decision."""
    schedule = tiny.fit(load_schedule("dysharp"))
    prefixes: list[list[int]] = [[]]
    while prefixes:
        prefix = prefixes.pop()
        engine = tiny.engine(schedule, tiny.asked())
        for choice in prefix:
            engine.advance()
            engine.decide(choice)
        decision = engine.advance()
        if decision is None:
            yield engine.now_ps
        else:
            prefixes += [[*prefix, int(choice)] for choice in np.flatnonzero(decision.mask)]


@pytest.mark.parametrize(
    "instance",
    [
        TinyInstance(2, 2, 4, "multicast", 0.1, 3),
        TinyInstance(2, 2, 4, "unicast", 0.3, 2),
        TinyInstance(2, 2, 2, "multicast", 0.1, 0, is_early=True),
        TinyInstance(2, 1, 3, "multicast", 0.2, 8, is_fetching=True),
        TinyInstance(2, 1, 2, "unicast", 0.1, 3, is_early=True, is_fetching=True),
    ],
)
def test_the_optimum_is_the_least_of_all_schedules_the_engine_can_play(instance: TinyInstance) -> None:
    tiny = instance.build()
    ends_ps = list(all_ends_ps(tiny))
    solved = exact.solve(tiny, play_randomly(tiny, False, 0), effort=10.0)
    assert len(ends_ps) > 500 and len(set(ends_ps)) > 5
    assert solved.is_proved and tiny.bound.total_ps < solved.times.makespan_ps == min(ends_ps)
    assert play_solved(tiny, solved, tiny.fit(load_schedule("dysharp"))).makespan_ps == min(ends_ps)


def test_the_command_prints_optima_between_the_bound_and_every_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--set", "total_decisions=512", "--quiet", "--seed", "2"]
    assert train.main(["--config", "smoke", "--run-dir", str(tmp_path), *settings]) == 0
    (run,) = tmp_path.iterdir()
    policies = [
        option for name in (str(run), "look-ahead:dysharp-order", "random", "first") for option in ("--policy", name)
    ]
    capsys.readouterr()
    assert command.main(["--instances", "2", *policies, "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["schema"] == "dysharp/exact/1"
    for row in result["rows"]:
        assert row["is_proved"] and row["is_played"] and row["proved_us"] == row["optimum_us"]
        assert [(policy["policy"], policy["seed"]) for policy in row["rows"]] == [
            ("smoke", 2), ("look-ahead:dysharp-order", None), ("random", 0), ("first", None)
        ]  # fmt: skip
        for policy in row["rows"]:
            assert row["lower_bound_us"] <= row["optimum_us"] <= policy["makespan_us"]
            assert policy["gap"] == pytest.approx(policy["makespan_us"] / row["optimum_us"] - 1)
    assert command.main(["--instances", "1"]) == 0
    assert "dysharp" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--instances", "0"], "instances=0 must be 1 to 15"),
        (["--effort", "0"], "effort=0 must be above 0 and at most 1e6"),
        (["--policy", "dyshap"], "(did you mean 'dysharp'?)"),
        (["--policy", "fastermoe"], "schedule='fastermoe' is not modelled exactly"),
        (["--json", "no/such/file.json"], "cannot write json='no/such/file.json'"),
    ],
)
def test_a_mistake_is_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err


def test_without_the_solver_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    assert command.main([]) == 2
    assert "OR-Tools is not installed: pip install ortools, or with" in capsys.readouterr().err


def test_schedules_behind_kernel_boundaries_are_solutions_too() -> None:
    """Gates only make rows and sums wait."""
    tiny = TinyInstance(2, 3, 4, "unicast", 0.2, 5).build()
    schedule = tiny.fit(load_schedule("deepep"))
    twin = tiny.twin(schedule, Exposure())
    assert exact.is_solution(tiny, Times.of(twin.run()))
