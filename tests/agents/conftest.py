"""Run folders as training leaves them, made from weights, and a distilled rule's file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.policies.candidate_policy import CandidatePolicy
from agents.policies.card import PolicyCard
from agents.policies.rule import WISHES, Linear, Rule, linear_network
from agents.policies.steering import INPUTS
from agents.training.run_folder import RunFolder
from agents.training.spec import TrainSpec
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import CONTEXT, CONTEXT_MEANINGS, FEATURE_MEANINGS, FEATURES, GEMM, PLAN

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


def write_run(path: Path, network: Network, seed: int = 0, env: EnvSpec = ENV, opening: Network | None = None) -> str:
    """Writes a run folder whose best policy is a network, perhaps with one for openings, and returns its path."""
    policy = CandidatePolicy.of_network(network, env, opening)
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


PLANNED = EnvSpec(schedule="dysharp-open", exposed=("plan", "gemm"))


@pytest.fixture(scope="session")
def plan_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run that weighs plans and rows: what fuses less the more L2 holds, what exchanges counts the more tokens."""
    opening, rows = (np.zeros((len(CONTEXT), len(FEATURES)), np.float32) for _ in range(2))
    in_gemm, counts, size = map(FEATURES.index, ("in_gemm", "counts", "size"))
    opening[PLAN, FEATURES.index("order")], opening[PLAN, in_gemm], opening[PLAN, counts] = -4.0, 8.0, -5.0
    opening[CONTEXT.index("l2_room"), in_gemm], opening[CONTEXT.index("tokens_per_expert"), counts] = -50.0, 50.0
    rows[GEMM, FEATURES.index("ruled")], rows[GEMM, size], rows[CONTEXT.index("all_sent"), size] = 1.0, 0.5, 1.5
    networks = [replace(Network.nothing(), linear=linear) for linear in (rows, opening)]
    return write_run(tmp_path_factory.mktemp("runs") / "planned", networks[0], env=PLANNED, opening=networks[1])


@pytest.fixture(scope="session")
def plan_rule() -> Rule:
    """A rule for plans and rows."""
    return Rule(
        name="planning",
        schedule="dysharp-open",
        context={name: CONTEXT_MEANINGS[name] for name in ("gemm_share", "l2_room", "all_sent")},
        features={name: FEATURE_MEANINGS[name] for name in ("in_gemm", "paid", "size", "ruled")},
        weights={
            "plan": {
                "paid": Linear(constant=-0.25, weights={}),
                "in_gemm": Linear(constant=0.4, weights={"l2_room": 0.7, "gemm_share": -3.1}),
            },
            "gemm": {
                "ruled": Linear(constant=1.0, weights={}),
                "size": Linear(constant=0.5, weights={"all_sent": 1.5}),
            },
        },
    )


@pytest.fixture(scope="session")
def rule_file(plan_rule: Rule, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of that rule."""
    path = tmp_path_factory.mktemp("rules") / "rule.json"
    path.write_text(json.dumps(plan_rule.model_dump(mode="json")))
    return str(path)
