"""Speed under pytest-benchmark: ``python -m pytest tests/benchmarks/bench_speed.py``.

An ordinary run does not collect this file, and nothing in it fails for being slow. ``--benchmark-autosave`` and
``--benchmark-compare`` keep and compare the numbers of one machine.
"""

from __future__ import annotations

from typing import Any

import pytest

from dysharp_env.bench import links
from dysharp_env.bench.environments import record_episode, record_steps
from dysharp_env.bench.layers import Layer
from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.envs.vector import TokenScheduleVectorEnv


@pytest.mark.parametrize(("gpus", "tokens"), [(8, 256), (8, 1024)])
def test_a_layer_by_rule(benchmark: Any, gpus: int, tokens: int) -> None:
    layer = Layer.of(gpus, tokens)
    benchmark.pedantic(lambda run: run.engine.run(), setup=lambda: ((layer.start(),), {}), rounds=5, warmup_rounds=1)


def test_starting_a_layer(benchmark: Any) -> None:
    benchmark(Layer.of(8, 256).start)


def test_an_episode(benchmark: Any) -> None:
    env = TokenScheduleEnv()
    actions = record_episode(env, 0)

    def replay(actions: list[int]) -> None:
        for action in actions:
            env.step(action)

    def begin() -> tuple[tuple[list[int]], dict[str, object]]:
        env.reset(seed=0)
        return (actions,), {}

    benchmark.pedantic(replay, setup=begin, rounds=3)


def test_a_hundred_steps_of_many_copies(benchmark: Any) -> None:
    envs = TokenScheduleVectorEnv(16, copy=False)
    actions, _ = record_steps(envs, 100)

    def replay() -> None:
        for chosen in actions:
            envs.step(chosen)

    def begin() -> None:
        envs.reset(seed=0)

    benchmark.pedantic(replay, setup=begin, rounds=3)


@pytest.mark.parametrize("model", ["heap", "simpy"])
def test_the_links_alone(benchmark: Any, model: str) -> None:
    if model == "simpy":
        pytest.importorskip("simpy")
    problem = links.LinkProblem.of(links.start_engine(links.link_workload(8, 64)))
    benchmark.pedantic(links.run_heap if model == "heap" else links.run_simpy, args=(problem,), rounds=3)
