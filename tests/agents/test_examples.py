"""Examples of other people's learners: they obey masks, their weights change, and they improve over random choices."""

from __future__ import annotations

import ast
import time
from pathlib import Path
from types import ModuleType

import gymnasium
import numpy as np
import pytest
import torch

import agents.examples
from agents.examples import cleanrl_style, sb3_from_scratch, task
from agents.examples.task import ENV_ID, SETTINGS, Comparison, compare
from dysharp_env.simulator.state.observation import FEATURES

EXAMPLES = ("sb3_from_scratch", "cleanrl_style", "rllib_masked", "torchrl_masked")


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def short_comparison(env: task.Env, choose: task.Choose) -> Comparison:
    """Returns how an agent plays four layers, in which a masked action would have been an error."""
    result = compare(env, choose, layers=4)
    assert result.layers == 4 and result.decisions >= 4 and result.masked == 0
    assert f"masked actions: 0 of {result.decisions}" in str(result)
    return result


def test_the_rule_is_a_legal_candidate_and_compared_like_an_agent() -> None:
    taken = []

    def follow(shown: task.Observation, mask: np.ndarray) -> int:
        action = task.follow_rule(shown, mask)
        ruled = shown["candidates"].reshape(len(mask), len(FEATURES))[:, FEATURES.index("ruled")]
        taken.append((bool(mask[action]), ruled[action], ruled.sum()))
        return action

    result = compare(gymnasium.make(ENV_ID, **SETTINGS), follow, layers=4)
    assert result.trained == result.rule and result.rule.value != 1.0
    assert set(taken) == {(True, 1.0, 1.0)} and len(taken) == result.decisions


def test_ratios_are_of_the_same_layers_by_random_choices() -> None:
    env = gymnasium.make(ENV_ID, **SETTINGS)

    def makespans(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)

        def chance(_: task.Observation, mask: np.ndarray) -> int:
            return int(rng.choice(np.flatnonzero(mask)))

        return np.array([task.play(env, task.FIRST_HELD_OUT + layer, chance)["makespan_us"] for layer in range(3)])

    rng = np.random.default_rng(0)
    result = compare(env, lambda _, mask: int(rng.choice(np.flatnonzero(mask))), seed=1, layers=3)
    assert result.trained.value == pytest.approx(np.exp(np.log(makespans(0) / makespans(1)).mean()))
    assert result.trained.low <= result.trained.value <= result.trained.high


def test_sb3_learns_and_obeys_masks() -> None:
    model = sb3_from_scratch.learner(seed=0, num_envs=2, num_steps=64)
    before = weights(model.policy)
    model.learn(total_timesteps=128)
    assert not torch.equal(weights(model.policy), before)
    env = gymnasium.make(ENV_ID, **SETTINGS)
    short_comparison(env, lambda shown, mask: int(model.predict(shown, action_masks=mask)[0]))


def test_cleanrl_style_learns_obeys_masks_and_logs(tmp_path: Path) -> None:
    ppo = cleanrl_style.Ppo(cleanrl_style.Args(num_envs=2, num_steps=64, logs=str(tmp_path)))
    before = weights(ppo.agent)
    metrics = ppo.collect() | ppo.update()
    assert not torch.equal(weights(ppo.agent), before)
    held = ppo.rollout
    assert held.masks.gather(-1, held.actions[..., None]).all()
    # Steps that started anew are the ones after an end, and are not learned from.
    assert torch.equal(~held.acted[1:], held.dones[:-1] > 0) and held.acted[0].all()
    assert (held.rewards[~held.acted] == 0).all() and (held.rewards[held.acted] < 0).any()
    assert metrics["charts/episodic_return"] == -metrics["charts/ratio"] < -1
    assert {name.partition("/")[0] for name in metrics} == {"charts", "losses"}
    assert all(np.isfinite(value) for value in metrics.values())


def test_advantages_are_returns_less_values_and_do_not_cross_an_end() -> None:
    args = cleanrl_style.Args(num_envs=1, num_steps=4)
    held = cleanrl_style.Rollout(args, 1, 1)
    held.rewards[:, 0] = torch.tensor([-1.0, -2.0, 0.0, -4.0])
    held.values[:, 0] = torch.tensor([0.5, 0.25, 7.0, 1.0])
    held.dones[1, 0] = 1.0  # the third step starts anew
    advantages, returns = held.returns(args, last=torch.tensor([-8.0]))
    acted = [0, 1, 3]
    assert returns[acted, 0].tolist() == [-3.0, -2.0, -12.0]  # -1 - 2; -2; -4 and what is expected behind the end
    assert advantages[acted, 0].tolist() == [-3.5, -2.25, -13.0]


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert sb3_from_scratch.main(["--minutes", "0"]) == 2
    assert capsys.readouterr().err == "error: minutes=0 must be above 0 and at most 43200, 30 days\n"


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_use_nothing_of_the_package_s_own_training(name: str) -> None:
    path = Path(agents.examples.__file__).with_name(f"{name}.py")
    imported = {
        node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.level
    }
    assert imported == {"kit", "task"}
    assert f"``{name}``" in str(agents.examples.__doc__)


def improves_within_five_minutes(module: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    result = compare(*module.train(2.0, 0))
    seconds = time.monotonic() - started
    with capsys.disabled():
        print(f"\n{module.__name__}, {seconds:.0f} s in all\n{result}")
    assert result.masked == 0 and result.layers == 64
    assert result.trained.high < 0.9
    assert seconds < 300


@pytest.mark.slow
def test_rllib_with_two_workers_improves_over_random(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray.rllib", exc_type=ImportError)
    from agents.examples import rllib_masked

    assert rllib_masked.ENV_RUNNERS == 2
    improves_within_five_minutes(rllib_masked, capsys)


@pytest.mark.slow
def test_torchrl_improves_over_random(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchrl")
    from agents.examples import torchrl_masked

    improves_within_five_minutes(torchrl_masked, capsys)
