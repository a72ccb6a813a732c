"""Rollouts inside the engine are what the same choices give step by step through the ``VecEnv``, to the byte."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import Logger

import dysharp_env
from agents.policies.candidate_policy import PolicySpec
from agents.training.metrics import EpisodeRecorder
from agents.training.ppo import Learner
from agents.training.spec import PpoSpec
from agents.training.vec_env import ScheduleVecEnv
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import NUM_FEATURES, OPENING_KINDS, PLAN

STEPS, COPIES = 64, 3
PPO = PpoSpec(n_steps=STEPS, batch_size=48, n_epochs=2, learning_rate=3e-3)
ENV = EnvSpec(model="olmoe", gpus=4, tokens=12, routing="uniform", max_candidates=16)
ARRAYS = ("candidates", "contexts", "masks", "counts", "actions", "log_probs", "rewards", "starts", "taken", "starting")


def choose(network: Network, rows: np.ndarray, context: np.ndarray, mask: np.ndarray, uniform: float) -> Any:
    """Returns how many candidates there are, the one drawn, and its log-probability, in plain Python."""
    features = rows.reshape(-1, NUM_FEATURES)
    count = 1 + max(np.flatnonzero(mask).max(), np.flatnonzero(features.any(axis=1)).max(initial=0))
    legal = np.flatnonzero(mask)
    scores = network.scores(features[:count], context).astype(float)[legal].tolist()
    best = max(scores)
    weights = [math.exp(score - best) for score in scores]
    total = 0.0
    for weight in weights:
        total += weight
    left, place = uniform * total, 0
    while place < len(weights) - 1 and left >= weights[place]:
        left, place = left - weights[place], place + 1
    return count, legal[place], np.float32(scores[place] - best - math.log(total))


class SteppingLearner(Learner):
    """A learner whose choices are made in Python, and played one step of the ``VecEnv`` at a time."""

    def play(self) -> list[tuple[int, int, dict[str, Any]]]:
        """Fills what the players keep as they would."""
        kept, env, ended = self.players, self.vec_env, []
        network, opening = self.network.scoring_network(), self.network.opening_network()
        uniforms = self.drawn
        observation = {name: array.copy() for name, array in env.episodes.observations.items()}
        for step in range(self.n_steps):
            masks = env.env_method("action_masks")
            kept.candidates[:, step], kept.contexts[:, step] = observation["candidates"], observation["context"]
            kept.masks[:, step], kept.starts[:, step] = masks, kept.starting
            for copy in range(self.n_envs):
                shown = observation["candidates"][copy], observation["context"][copy], masks[copy]
                early = shown[1][: len(OPENING_KINDS)].any()
                answer = choose(opening if opening and early else network, *shown, uniforms[step, copy])
                kept.counts[copy, step], kept.actions[copy, step], kept.log_probs[copy, step] = answer
            observation, rewards, dones, infos = env.step(kept.actions[:, step])
            kept.rewards[:, step], kept.starting[:] = rewards, dones
            ended += [(step, copy, infos[copy]) for copy in np.flatnonzero(dones).tolist()]
        kept.taken[:] = self.n_steps
        return ended

    def begin(self, seed: int) -> None:
        """Remembers the stream that numbers are drawn from."""
        super().begin(seed)
        self._uniforms = self._remembering(self._uniforms)

    def _remembering(self, stream: np.random.Generator) -> Any:
        class Remembering:
            def random(_, shape: tuple[int, int]) -> np.ndarray:  # noqa: N805
                self.drawn = stream.random(shape)
                return self.drawn

        return Remembering()


def learner(
    kind: type[Learner],
    env: EnvSpec,
    baseline: bool,
    threads: int = 1,
    policy: PolicySpec = PolicySpec(hidden=24, value_hidden=16),  # noqa: B008 (frozen)
) -> Learner:
    vec_env = ScheduleVecEnv(env, COPIES, "deepep", baseline)
    made = kind(vec_env, PPO, policy, 5, threads)
    made.set_logger(Logger(None, []))
    made.begin(11)
    return made


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("exposed", [("gemm",), ("split", "dispatch", "gemm", "combine")])
def test_the_engine_keeps_the_bytes_that_steps_of_the_vec_env_give(exposed: tuple[str, ...], baseline: bool) -> None:
    env = ENV.model_copy(update={"exposed": exposed, "hold": "combine" in exposed})
    engine, steps = learner(Learner, env, baseline, threads=2), learner(SteppingLearner, env, baseline)
    ended = 0
    for _ in range(4):
        notes = EpisodeRecorder(), EpisodeRecorder()
        for each, recorder in zip((engine, steps), notes, strict=True):
            torch.manual_seed(0)
            each.collect(recorder)
        for name in ARRAYS:
            assert getattr(engine.players, name).tobytes() == getattr(steps.players, name).tobytes(), name
        for name in ("values", "advantages", "returns"):
            assert np.array_equal(getattr(engine.rollout_buffer, name), getattr(steps.rollout_buffer, name)), name
        mine, theirs = ([row[:-1] for row in recorder.take_rows()] for recorder in notes)
        assert mine == theirs
        ended += len(mine)
        for each in (engine, steps):
            np.random.seed(0)  # noqa: NPY002 - Stable-Baselines3 shuffles with it
            each.update(1.0)
    assert ended >= 3
    assert engine.num_timesteps == steps.num_timesteps == 4 * STEPS * COPIES
    for mine, other in zip(engine.network.parameters(), steps.network.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("opening_hidden", [0, 40])
def test_decisions_before_a_layer_starts_are_taken_by_the_same_numbers(opening_hidden: int, tmp_path: Path) -> None:
    schedule = tmp_path / "planned.yaml"
    text = (Path(dysharp_env.__file__).parents[1] / "configs" / "schedules" / "dysharp.yaml").read_text()
    schedule.write_text(text.replace("name: dysharp", "name: planned") + "\nplans: [dysharp, dysharp-push, mega-moe]\n")
    env = ENV.model_copy(update={"schedule": str(schedule), "exposed": ("plan", "gemm")})
    engine, steps = (
        learner(kind, env, True, policy=PolicySpec(hidden=24, value_hidden=16, opening_hidden=opening_hidden))
        for kind in (Learner, SteppingLearner)
    )
    for each in (engine, steps):
        if each.network.opening is not None:
            torch.nn.init.normal_(each.network.opening.score.weight, generator=torch.Generator().manual_seed(1))
        each.collect(EpisodeRecorder())
    for name in ARRAYS:
        assert getattr(engine.players, name).tobytes() == getattr(steps.players, name).tobytes(), name
    early = engine.players.contexts[:, :, PLAN] > 0
    assert early.sum() >= COPIES
    assert engine.players.actions[early].any()


def test_layers_that_are_done_before_they_ask_take_one_action_in_the_engine_as_well() -> None:
    env = EnvSpec(model="olmoe", gpus=2, tokens=1, routing="uniform", max_candidates=16, exposed=("dispatch",))
    engine, steps = learner(Learner, env, True), learner(SteppingLearner, env, True)
    for each in (engine, steps):
        each.collect(EpisodeRecorder())
    assert engine.players.starts.all()
    for name in ARRAYS:
        assert getattr(engine.players, name).tobytes() == getattr(steps.players, name).tobytes(), name


def test_learning_is_the_same_on_any_number_of_threads() -> None:
    one, two = (learner(Learner, ENV, True, threads) for threads in (1, 2))
    for each in (one, two):
        each.collect(EpisodeRecorder())
        np.random.seed(0)  # noqa: NPY002
        each.update(1.0)
    for mine, other in zip(one.network.parameters(), two.network.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_log_probabilities_are_those_that_learning_starts_from() -> None:
    """Ratios of the first minibatch are 1 up to rounding, and values are those of the critic."""
    made = learner(Learner, ENV, False)
    made.collect(EpisodeRecorder())
    for samples in made.rollout_buffer.get(batch_size=50):
        actions = samples.actions.long().flatten()
        values, log_probs, entropy = made.network.evaluate_actions(samples.observations, actions, samples.action_masks)
        torch.testing.assert_close(log_probs, samples.old_log_prob, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(values.flatten(), samples.old_values, atol=2e-6, rtol=1e-5)
        assert entropy is not None and (entropy >= 0).all()


def test_candidates_are_drawn_as_often_as_they_are_probable() -> None:
    made = learner(Learner, ENV, False)
    torch.nn.init.normal_(made.network.scorer.score.weight)
    players, batch = made.players, made.vec_env.episodes.batch
    players.equip(made.network.scoring_network(), np.tile((np.arange(STEPS) + 0.5) / STEPS, (COPIES, 1)))
    while players.taken[0] < STEPS:
        players.choose(0)  # the same decision again and again: nobody answers it
    observation = {
        "candidates": torch.from_numpy(batch.rows[:1].copy()),
        "context": torch.from_numpy(batch.context[:1].copy()),
    }
    with torch.no_grad():
        chances = made.network.get_distribution(observation, batch.mask[:1]).distribution.probs[0].numpy()  # type: ignore[union-attr]
    often = np.bincount(players.actions[0], minlength=len(chances)) / STEPS
    assert np.abs(often - chances).max() <= 1 / STEPS
    assert (chances > 1.5 / STEPS).sum() > 1
