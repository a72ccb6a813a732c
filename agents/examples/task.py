"""What the examples share: the layers that they learn to schedule, and how they are compared at the end.

On each layer of 64 tokens a GPU the agent first chooses one of 32 ways to run it, then orders the GEMMs' rows: about 17
decisions, of which most have two to four legal answers. A masked action is an error, so that a learner which does not
obey the masks stops at once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np

import dysharp_env  # noqa: F401  registers the environments
from dysharp_env.simulator.state.observation import FEATURES

from ..evaluation.statistics import Estimate, geometric_mean
from ..kit import Command, check_options

ENV_ID, MASKED_ID = "DySHARP/TokenSchedule-v2", "DySHARP/TokenScheduleMasked-v2"
FIRST_HELD_OUT = 1_000_000
# Plain values only, as RLlib sends them to its workers.
SETTINGS: dict[str, Any] = {
    "model": "mixtral-8x7b",
    "gpus": 4,
    "tokens": 64,
    "routing": "uniform",
    "schedule": "dysharp-tuned",
    "exposed": ["plan", "gemm"],
    "hold": False,
    "invalid_action": "raise",
    "seeds": [0, FIRST_HELD_OUT],
}
Observation = dict[str, np.ndarray]
Env = gymnasium.Env[Observation, Any]
Choose = Callable[[Observation, np.ndarray], int]  # from an observation and its (max_candidates,) bool mask


class Comparison(NamedTuple):
    """How an agent plays layers that it was not trained on; all ratios are geometric means of paired makespans.

    Attributes:
        trained: The agent's makespan over that of random legal choices.
        rule: The same of the schedule's own rule.
        layers: Layers played.
        decisions: Decisions that the agent took.
        masked: How many of them were masked actions.
    """

    trained: Estimate
    rule: Estimate
    layers: int
    decisions: int
    masked: int

    def __str__(self) -> str:
        lines = [
            f"{name} takes {ratio.value:.3f} of the time of random choices ({ratio.low:.3f} to {ratio.high:.3f})"
            for name, ratio in (("the agent", self.trained), ("the schedule's rule", self.rule))
        ]
        return "\n".join(
            [*lines, f"on {self.layers} held-out layers; masked actions: {self.masked} of {self.decisions}"]
        )


def compare(env: Env, choose: Choose, seed: int = 0, layers: int = 64) -> Comparison:
    """Plays held-out layers by an agent, by random choices and by the schedule's own rule.

    Args:
        env: An environment of ``SETTINGS``, whose observations the agent takes.
        choose: The agent.
        seed: Seed of the random choices.
        layers: Held-out layers.
    """
    rng = np.random.default_rng(seed)
    by_rule = gymnasium.make(ENV_ID, **SETTINGS)
    seeds = range(FIRST_HELD_OUT, FIRST_HELD_OUT + layers)
    agent = [play(env, each, choose) for each in seeds]
    chance = [play(env, each, lambda _, mask: int(rng.choice(np.flatnonzero(mask)))) for each in seeds]
    rule = [play(by_rule, each, follow_rule) for each in seeds]

    def over_chance(infos: list[dict[str, Any]]) -> Estimate:
        pairs = zip(infos, chance, strict=True)
        return geometric_mean(np.log([[mine["makespan_us"] / other["makespan_us"] for mine, other in pairs]]), seed)

    decisions = sum(info["asked"] for info in agent)
    masked = sum(info["invalid_actions"] for info in agent)
    return Comparison(over_chance(agent), over_chance(rule), layers, decisions, masked)


def play(env: Env, workload_seed: int, choose: Choose) -> dict[str, Any]:
    """Plays one layer and returns its last info."""
    observation, info = env.reset(options={"workload_seed": workload_seed})
    done = False
    while not done:
        action = choose(observation, info["action_mask"].astype(bool))
        observation, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
    return info


def follow_rule(observation: Observation, mask: np.ndarray) -> int:
    """Returns the candidate that the schedule's own rule would take, of which the features tell."""
    candidates = observation["candidates"].reshape(len(mask), len(FEATURES))
    return int(candidates[:, FEATURES.index("ruled")].argmax())


def command(name: str, description: str | None, train: Callable[[float, int], tuple[Env, Choose]]) -> Command:
    """Returns the command line of an example.

    Args:
        name: Of its module.
        description: Its help.
        train: Trains for minutes with a seed, and returns an environment and the agent that it was made for.
    """

    def run(args: argparse.Namespace) -> int:
        check_options(args)
        started = time.perf_counter()
        env, choose = train(args.minutes, args.seed)
        print(f"{time.perf_counter() - started:.0f} s of training")
        print(compare(env, choose, args.seed))
        return 0

    made = Command(f"examples.{name}", description, run)
    made.add("--minutes", type=float, default=2.0, metavar="M", help="how long to train")
    return made.add_seed("the learner")
