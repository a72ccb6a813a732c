"""``python -m agents.latency``: what one decision of a policy costs, and would cost a kernel.

Measured are answers through Stable-Baselines3, in torch, and of the networks alone inside the engine, by kind of
decision; estimated is one warp of a GPU (kernel_cost.py), for ``agents.evaluate --decision-us``. Without ``--policy``
it is a policy of the default size with random weights. ``python -m dysharp_env bench`` measures what needs no agent.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numba import njit

from dysharp_env.bench.layers import network_rows
from dysharp_env.bench.timing import Row, Seconds, least, timed
from dysharp_env.commands.bench import bench_table
from dysharp_env.config import ConfigError
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.schedules import Exposure, Problem, load_schedule
from dysharp_env.simulator.jit.rows import rows
from dysharp_env.simulator.kernel.network import best_scored
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import DECISION_KINDS, FEATURES
from dysharp_env.simulator.state.records import ROOT
from dysharp_env.simulator.warmup import ensure_compiled
from dysharp_env.workload import ScenarioSpec

from .evaluation.kernel_cost import decision_us, multiply_adds
from .kit import Command, check_options, deliver, entry
from .opponents.players import Learned
from .opponents.read import learned_of, read_contender, run_folders
from .policies.candidate_policy import CandidatePolicy
from .policies.files import load_policy

_REPEATS = 3
_SHOWN = 500  # decisions that are answered
_LAYERS = 10  # most layers that they are of: a plan is decided once in each
_TIMES = 20  # times the engine answers each: once is near the resolution of a clock


def build() -> Command:
    """Returns the options of the command."""
    command = Command("latency", __doc__, run)
    return command.add("--policy", metavar="NAME", help="a run folder or a distilled rule's .json").add_json()


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit status."""
    check_options(args)
    ensure_compiled()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows: list[Row] = []
    if args.policy is None:
        spec = EnvSpec()
        policy = CandidatePolicy(spec.observation_space(), spec.action_space(), lambda _: 0.0)
        learned = Learned(None, spec, policy.scoring_network())
        rows += [*policy_rows(policy, learned, _SHOWN), *network_rows(learned.network, _REPEATS)]
    else:
        contender = read_contender(args.policy)
        if len(learned_of(contender)) != 1:
            raise ConfigError(f"policy='{args.policy}' must be one run folder or a rule's .json")
        (learned,) = learned_of(contender)
        for folder in run_folders(contender):
            rows += policy_rows(load_policy(folder / "best"), learned, _SHOWN)
    rows += engine_rows(learned, _SHOWN)
    config = {"torch_threads": 1, "policy": args.policy}
    deliver(args, config, {"rows": [row.record() for row in rows]}, bench_table(rows))
    return 0


def policy_rows(policy: CandidatePolicy, learned: Learned, decisions: int) -> Iterator[Row]:
    """Yields microseconds of one answer at batch size 1, to so many decisions of one episode, or of several."""
    shown = [(observation, mask) for _, observation, mask in _decisions(learned, decisions)]

    def through_predict() -> None:
        for observation, mask in shown:
            policy.predict(observation, deterministic=True, action_masks=mask)

    def through_torch() -> None:
        for observation, mask in shown:
            policy.choose({name: array[None] for name, array in observation.items()}, mask[None])

    for name, answer in (("predict of Stable-Baselines3", through_predict), ("the scorer in torch", through_torch)):
        _, took = least(lambda answer=answer: timed(answer), _REPEATS)  # type: ignore[misc]
        yield Row(f"one answer, {name}", took.wall_s / len(shown) * 1e6, "us", took)


def engine_rows(learned: Learned, decisions: int) -> Iterator[Row]:
    """Yields what networks alone cost inside the engine, and what a warp would take, on the same decisions."""
    shown = [*_decisions(learned, decisions)]
    for kind in sorted({kind for kind, _, _ in shown}):
        of_kind = [(observation, mask) for other, observation, mask in shown if other == kind]
        yield from _kind_rows(learned.network_of(kind), DECISION_KINDS[kind], learned.env.max_candidates, of_kind)


def _kind_rows(
    network: Network, kind: str, size: int, shown: Sequence[tuple[dict[str, np.ndarray], np.ndarray]]
) -> Iterator[Row]:
    """Yields the rows of one kind of decision, whose (observation, mask) have room for ``size`` candidates."""
    scenario = ScenarioSpec().build()
    problem = Problem.of(scenario.system, scenario.draw(0))
    # A layer that only lends the network its place: what it shows is overwritten.
    lent = Exposure(("gemm",), max_candidates=size, network=network)
    state = problem.engine(load_schedule("dysharp"), lent).state
    took = Seconds(0.0, 0.0)
    for observation, mask in shown:
        state.features[:] = observation["candidates"].reshape(-1, len(FEATURES))
        state.context[:], state.mask[:] = observation["context"], mask
        state.root["num_candidates"] = mask.sum()

        def answer() -> int:
            return answer_often(state.root, _TIMES)

        answer()
        _, once = least(lambda answer=answer: timed(answer), _REPEATS)  # type: ignore[misc]
        took = Seconds(took.wall_s + once.wall_s, took.cpu_s + once.cpu_s)
    name = f"one answer, {kind}, network of width {network.width}"
    yield Row(f"{name} in the engine", took.cpu_s / (len(shown) * _TIMES) * 1e6, "us", took)
    candidates = round(float(np.mean([mask.sum() for _, mask in shown])))
    what = f"{name}, {candidates} candidates"
    yield Row(f"{what}: multiply-adds", multiply_adds(network, kind, candidates), "multiply-adds")
    yield Row(f"{what}: estimate for one warp of a GPU", decision_us(network, kind, candidates), "us")


# Not cached: a cache on disk would not notice that the engine's layout has changed.
@njit(error_model="numpy")
def answer_often(roots: np.ndarray, times: int) -> int:
    """Returns the sum of the rows that a layer's network takes when it is asked so many times."""
    total = 0
    for _ in range(times):
        total += best_scored(rows(roots.ctypes.data, ROOT)[0])
    return total


def _decisions(learned: Learned, decisions: int) -> Iterator[tuple[int, dict[str, np.ndarray], np.ndarray]]:
    """Yields kind, observation and mask of the first decisions that a policy is asked, in a few layers at most."""
    env = TokenScheduleEnv(**learned.env.model_dump())
    layers, done = 0, True
    for _ in range(decisions):
        if done:
            if layers == _LAYERS:
                return
            observation, _ = env.reset(seed=layers)
            layers += 1
        mask, context = env.action_masks(), observation["context"]
        kind = int(context[: len(DECISION_KINDS)].argmax())
        yield kind, observation, mask
        features = observation["candidates"].reshape(-1, len(FEATURES))[: mask.sum()]
        scores = learned.network_of(kind).scores(features, context)
        observation, _, terminated, truncated, _ = env.step(int(scores.argmax()))
        done = terminated or truncated


main = entry(build, __name__)
