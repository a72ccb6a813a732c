"""What is measured is what the names say; nothing here depends on how fast this machine is."""

from __future__ import annotations

import numpy as np
import pytest

from dysharp_env.bench import processes
from dysharp_env.bench.environments import copy_rows, record_episode, record_steps, single_rows, vector_rows
from dysharp_env.bench.layers import Layer, layer_rows, network_rows, random_network, set_up_rows, state_bytes
from dysharp_env.bench.processes import memory_rows, start_up_rows
from dysharp_env.bench.timing import Row, Seconds, least, per_second, power_law
from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.envs.vector import TokenScheduleVectorEnv

SMALL = {"model": "small", "tokens": 8, "gpus": 4, "routing": "uniform"}


def test_a_rate_is_a_count_over_wall_time_and_keeps_both_times() -> None:
    assert per_second("x", 6, Seconds(2.0, 1.5), "steps").record() == {
        **{"name": "x", "value": 3.0, "unit": "steps/s"},
        **{"wall_s": 2.0, "cpu_s": 1.5},
    }
    assert Row("y", 1.0, "MB").record() == {"name": "y", "value": 1.0, "unit": "MB", "wall_s": None, "cpu_s": None}


def test_the_measurement_of_least_cpu_time_counts() -> None:
    measured = iter([("a", Seconds(1.0, 3.0)), ("b", Seconds(9.0, 1.0)), ("c", Seconds(2.0, 2.0))])
    assert least(lambda: next(measured), 3) == ("b", Seconds(9.0, 1.0))


def test_power_laws_are_recognised() -> None:
    assert power_law([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx((2.0, 1.0))
    assert power_law([1, 2, 4], [5.0, 5.0, 5.0]) == pytest.approx((0.0, 1.0))
    exponent, fit = power_law([1, 2, 4], [1.0, 4.0, 1.0])
    assert exponent == pytest.approx(0.0) and fit == pytest.approx(0.0)


def test_layers_report_what_they_moved() -> None:
    rows = {row.name: row for row in layer_rows([(4, 8)], 1)}
    took = rows["layer, 4 GPUs x 8 tokens: time"].took
    run, _ = Layer.of(4, 8).run(1)
    result = run.result()
    for what, count in (("transfers", result.transfers), ("decisions by rule", result.decisions)):
        assert rows[f"layer, 4 GPUs x 8 tokens: {what}"].value * took.wall_s == pytest.approx(count)
    state = run.engine.state
    assert state_bytes(run) == sum(np.asarray(array).nbytes for array in vars(state).values()) > state.nodes.nbytes > 0


def test_a_recorded_episode_replays_to_its_end() -> None:
    env = TokenScheduleEnv(**SMALL, invalid_action="raise")
    actions = record_episode(env, 3)
    env.reset(seed=3)
    ends = [env.step(action)[2] for action in actions]
    assert ends == [False] * (len(actions) - 1) + [True]


def test_recorded_steps_replay_and_new_beginnings_are_no_decisions() -> None:
    envs = TokenScheduleVectorEnv(3, **SMALL, invalid_action="raise", copy=False)
    actions, decisions = record_steps(envs, 400)
    envs.reset(seed=0)
    ended = np.zeros(3, bool)
    beginnings = 0
    for chosen in actions:
        beginnings += int(ended.sum())
        _, _, ended, _, infos = envs.step(chosen)
        assert not infos["invalid_actions"].any()
    assert beginnings > 0 and decisions == 400 * 3 - beginnings


@pytest.mark.parametrize("threads", [1, 2])
def test_environments_set_up_and_networks_are_measured(threads: int) -> None:
    rows = [*single_rows(1, 1), *vector_rows(2, 5, threads, 1), *set_up_rows(1), *network_rows(random_network(8), 1)]
    rows += copy_rows(1)
    assert sum("vector environment" in row.name for row in rows) == threads
    assert len({row.name for row in rows}) == len(rows) and all(row.value > 0 for row in rows)


def test_processes_are_measured() -> None:
    rows = [*start_up_rows(), *memory_rows(2, 4)]
    peak, added = rows[-2:]
    assert peak.value > added.value >= 0
    assert all(row.value > 0 for row in rows[:-1])


def test_a_cold_start_finds_nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os; assert os.listdir(os.environ['NUMBA_CACHE_DIR']) == []; print('[]')"
    monkeypatch.setattr(processes, "_FIRST_STEP", code)
    (row,) = processes.cold_start_rows()
    assert row.unit == "s" and row.value > 0
