"""A run folder as training a steering policy leaves it, made from weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.policies.candidate_policy import CandidatePolicy
from agents.policies.card import PolicyCard
from agents.policies.rule import WISHES, Linear, linear_network
from agents.policies.steering import INPUTS
from agents.training.run_folder import RunFolder
from agents.training.spec import TrainSpec
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import CONTEXT, FEATURES, GEMM

SPLITS = ((8, 11), (1, 1), (1, 11), (4, 4), (16, 1), (16, 20), (4, 20, 32), (16, 4, 32))
ENV = EnvSpec(
    schedule="dysharp-order", exposed=("split",), hold=False, partial_tiles=False, splits=SPLITS, split_moments=4
)


def steering(seed: int, spread: float) -> Network:
    """Returns a policy that wants fewer dispatch SMs the more is sent, more to combine the more is computed."""
    rng = np.random.default_rng(seed)
    means = {
        "split_dispatch": (0.1, {"sent": -0.09}),
        "split_combine": (0.02, {"gemm_done": 0.11}),
        "split_early": (0.1, {}),
    }
    wishes = []
    for name, (constant, mean) in means.items():
        drawn = rng.normal(0, spread / WISHES[name], len(INPUTS) - 1)
        weights = {value: mean.get(value, 0.0) + float(more) for value, more in zip(INPUTS[:-1], drawn, strict=True)}
        wishes.append(Linear(constant=constant, weights=weights))
    return linear_network(wishes)


def write_run(path: Path, network: Network, seed: int = 0, env: EnvSpec = ENV) -> str:
    """Writes a run folder whose best policy is a network, and returns its path."""
    policy = CandidatePolicy.of_network(network, env)
    spec = TrainSpec(name="steered", env=env, policy=policy.spec, seed=seed, validation="smoke")
    folder = RunFolder(path)
    folder.best.mkdir(parents=True)
    folder.write_config(spec)
    folder.save_best(policy, PolicyCard(name="steered", seed=seed, env=env, policy=policy.spec, decisions=0))
    return str(path)


@pytest.fixture(scope="session")
def steered_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run whose policy decides on splits alone."""
    return write_run(tmp_path_factory.mktemp("runs") / "steered", steering(0, spread=0.3))


@pytest.fixture(scope="session")
def linear_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same, with a policy that looks at two context values."""
    return write_run(tmp_path_factory.mktemp("runs") / "linear", steering(1, spread=0.0), seed=1)


@pytest.fixture(scope="session")
def row_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same, with rows weighed by two features whose weights depend on two context values."""
    linear = np.zeros((len(CONTEXT), len(FEATURES)), np.float32)
    size, hold = FEATURES.index("size"), FEATURES.index("is_hold")
    linear[GEMM, size], linear[GEMM, hold] = 0.5, -0.25
    linear[CONTEXT.index("gemm_done"), size], linear[CONTEXT.index("l2_room"), hold] = 0.25, -0.5
    env = ENV.model_copy(update={"exposed": ("split", "gemm"), "hold": True, "partial_tiles": True})
    network = replace(steering(1, spread=0.0), linear=linear)
    return write_run(tmp_path_factory.mktemp("runs") / "rows", network, env=env)
