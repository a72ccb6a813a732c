"""Whole layers simulated under a rule: time, rates, how they grow, memory, and what setting up costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dysharp_env.bench.timing import Row, Seconds, least, per_second, power_law, timed
from dysharp_env.schedules import Exposure, LayerRun, Starter, load_schedule
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import NUM_CONTEXT, NUM_FEATURES
from dysharp_env.workload import Scenario, ScenarioSpec, Workload

SCHEDULE = "dysharp"
# GPUs and tokens per GPU of whole layers.
QUICK_SIZES = ((8, 256), (8, 1024), (32, 1024))
# The paper's evaluation (DySHARP, arXiv 2605.05607): 32 GPUs, sequences of 8192 tokens.
PAPER_SIZE = (32, 8192)
FULL_SIZES = (*QUICK_SIZES, (8, 8192), PAPER_SIZE, (256, 1024))
GROWTH_TOKENS = (256, 1024, 4096)  # per GPU, on 8 GPUs
GROWTH_GPUS = (8, 32, 128)  # that share ...
GROWTH_TOTAL_TOKENS = 8192  # ... so many tokens
NETWORK_WIDTH = 64  # the agents' default
EPISODES_EACH = 10  # an episode is a few milliseconds, so that many are measured for each repeat of a layer
_MB = 1e6


class Layer(NamedTuple):
    """A scenario with one workload drawn."""

    scenario: Scenario
    workload: Workload

    @classmethod
    def of(cls, gpus: int, tokens: int) -> Layer:
        """Returns the large model of the paper on so many GPUs, its routing uniform, so that size alone differs."""
        scenario = ScenarioSpec(
            system="hypothetical-nvl256", gpus=gpus, model="large", tokens=tokens, routing="uniform"
        ).build()
        return cls(scenario, scenario.draw(0))

    def start(self, exposure: Exposure = Exposure()) -> LayerRun:  # noqa: B008 (frozen)
        """Returns the layer at time zero."""
        scenario = self.scenario
        starter = Starter(scenario.system, scenario.layer, load_schedule(SCHEDULE), exposure=exposure)
        return starter.start(self.workload)

    def run(self, repeats: int, exposure: Exposure = Exposure()) -> tuple[LayerRun, Seconds]:  # noqa: B008 (frozen)
        """Returns the finished layer and how long the engine ran; setting up is not in it."""

        def once() -> tuple[LayerRun, Seconds]:
            started = self.start(exposure)
            _, took = timed(started.engine.run)
            return started, took

        return least(once, repeats)


def layer_rows(sizes: Sequence[tuple[int, int]], repeats: int) -> Iterator[Row]:
    """Yields time, transfers and decisions per second, and memory, of whole layers.

    A transfer is one token's vector on one link. Decisions are those with more than one legal answer.
    """
    for gpus, tokens in sizes:
        name = f"layer, {gpus} GPUs x {tokens} tokens"
        run, took = Layer.of(gpus, tokens).run(repeats)
        result = run.result()
        yield Row(f"{name}: time", took.wall_s, "s", took)
        yield per_second(f"{name}: transfers", result.transfers, took, "transfers")
        yield per_second(f"{name}: decisions by rule", result.decisions, took, "decisions")
        yield Row(f"{name}: arrays of its state", state_bytes(run) / _MB, "MB")


def state_bytes(run: LayerRun) -> int:
    """Returns the size of all arrays that a layer's state is made of."""
    return sum(array.nbytes for array in vars(run.engine.state).values())


def growth_rows(repeats: int) -> Iterator[Row]:
    """Yields exponents of power laws through the CPU time of three sizes each, and how well they fit."""
    costs = [Layer.of(8, tokens).run(repeats)[1].cpu_s for tokens in GROWTH_TOKENS]
    yield from _growth("tokens", GROWTH_TOKENS, costs)
    # More GPUs spread the same tokens over more copies, so what grows with GPUs alone is the time of one transfer.
    measured = [Layer.of(gpus, GROWTH_TOTAL_TOKENS // gpus).run(repeats) for gpus in GROWTH_GPUS]
    whole = [took.cpu_s for _, took in measured]
    each = [took.cpu_s / run.result().transfers for run, took in measured]
    what = f"GPUs, {GROWTH_TOTAL_TOKENS} tokens in all"
    yield from _growth(what, GROWTH_GPUS, whole)
    yield from _growth(f"{what}, per transfer", GROWTH_GPUS, each)


def _growth(what: str, sizes: Sequence[int], costs: Sequence[float]) -> Iterator[Row]:
    exponent, fit = power_law(sizes, costs)
    span = " ".join(map(str, sizes))
    yield Row(f"growth of CPU time in {what} ({span}): exponent", exponent, "exponent")
    yield Row(f"growth of CPU time in {what} ({span}): R squared", fit, "fraction")


def set_up_rows(repeats: int) -> Iterator[Row]:
    """Yields what starting an episode of the default scenario costs, against running it.

    Episodes follow each other, as they do in use: what a processor has at hand when one is set up is the engine that
    ran the one before, and in a loop of its own the same set-up takes half the time.
    """
    scenario = ScenarioSpec().build()
    starter = Starter(scenario.system, scenario.layer, load_schedule(SCHEDULE))

    def episode(seed: int) -> tuple[Seconds, Seconds, Seconds]:
        workload, drawing = timed(lambda: scenario.draw(seed))
        layer, starting = timed(lambda: starter.start(workload))
        _, running = timed(layer.engine.run)
        return drawing, starting, running

    episode(0)  # brings in the code
    episodes = [episode(0) for _ in range(EPISODES_EACH * repeats)]
    drawing, starting, running = (min(each, key=lambda took: took.cpu_s) for each in zip(*episodes, strict=True))
    name = f"episode, {scenario.system.num_gpus} GPUs x {scenario.spec.tokens} tokens"
    yield Row(f"{name}: draw the routing", drawing.wall_s * 1e3, "ms", drawing)
    yield Row(f"{name}: lower bound and state", starting.wall_s * 1e3, "ms", starting)
    yield Row(f"{name}: run by rule", running.wall_s * 1e3, "ms", running)
    yield Row(f"{name}: set up over run, CPU time", (drawing.cpu_s + starting.cpu_s) / running.cpu_s, "ratio")


def network_rows(network: Network, repeats: int) -> Iterator[Row]:
    """Yields what a decision costs that a network takes inside the engine, the simulation up to it included."""
    scenario = ScenarioSpec().build()
    layer = Layer(scenario, scenario.draw(0))
    exposure = Exposure(kinds=("dispatch", "gemm", "combine"), network=network)
    run, took = layer.run(repeats, exposure)
    name = f"network of width {network.width} in the engine"
    yield per_second(f"{name}: decisions", run.engine.asked, took, "decisions")
    yield Row(f"{name}: one decision and the simulation up to it", took.wall_s / run.engine.asked * 1e6, "us", took)


def random_network(width: int = NETWORK_WIDTH) -> Network:
    """Returns a network of random weights: what it chooses matters less here than that it has to be computed."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.2, shape).astype(np.float32)

    return Network(
        row=draw(NUM_FEATURES, width),
        row_bias=draw(width),
        context=draw(NUM_CONTEXT, width),
        embed=draw(width, width),
        embed_bias=draw(width),
        score_row=draw(width, width),
        score_bias=draw(width),
        score_pool=draw(2 * width, width),
        score=draw(width),
        linear=draw(NUM_CONTEXT, NUM_FEATURES),
    )
