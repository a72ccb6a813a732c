"""Training by MaskablePPO, from top to bottom.

A run (``PpoRun``) goes in updates: every environment copy plays ``ppo.n_steps`` decisions under the present policy,
then the policy makes some epochs of clipped gradient steps on them. Between updates it is validated and saved, see
run_loop.py. Stable-Baselines3's ``learn`` owns its loop; here training needs to stop between updates and to continue
later as if nothing had happened. So the loop is outside, and ``Learner`` offers its two halves. What an update is is
Stable-Baselines3's ``train``; the networks are those of candidate_policy.py; curves.py says what is logged.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save as save_arrays
from safetensors.torch import save
from sb3_contrib import MaskablePPO
from torch.nn.utils import get_total_norm

from dysharp_env.simulator.playing import Players
from dysharp_env.simulator.state.observation import CONTEXT, DECISION_KINDS, FEATURES
from dysharp_env.simulator.warmup import notice
from dysharp_env.workers import Workers

from ..policies.candidate_policy import CandidatePolicy, PolicySpec
from ..policies.card import read_card
from ..policies.files import load_optimizer, load_weights, optimizer_tensors, policy_files, read_tensors
from .buffer import EngineRollouts
from .finite import Drawn, NotFiniteError, first_not_finite, is_finite
from .imitation import draw_lessons, imitate
from .metrics import EPISODE_COLUMNS, EpisodeRecorder
from .run_folder import RunFolder
from .run_loop import TrainingRun
from .spec import PpoSpec, TrainSpec
from .validation import EVALUATION_COLUMNS
from .vec_env import ScheduleVecEnv

_SAMPLED_DECISIONS = 1024
_MIDWAY = "midway.safetensors"
_KEYS = (624,)  # the shape of a Mersenne Twister's state
_MANY = 20_000  # decisions that take more than some seconds to play again


class PpoRun(TrainingRun):
    """A run of MaskablePPO."""

    tables = {"episodes.csv": EPISODE_COLUMNS, "evaluations.csv": EVALUATION_COLUMNS}

    def __init__(
        self,
        spec: TrainSpec,
        folder: RunFolder,
        watch: Callable[[TrainingRun], None],
        workers: Workers | None = None,
    ) -> None:
        """Makes environments and networks; ``workers`` play validations.

        Raises:
            ConfigError: A name in the spec is unknown, or does not fit.
        """
        super().__init__(spec, folder, watch, workers)
        self._episodes = EpisodeRecorder()
        self._played: list[np.ndarray] = []  # (step, copy) actions of the updates since ``begin``
        vec_env = ScheduleVecEnv(spec.env, spec.num_envs, spec.reference, spec.baseline)
        self._learner = Learner(vec_env, spec.ppo, spec.policy, spec.seed, spec.torch_threads)

    def policy(self) -> CandidatePolicy:
        """Returns the policy as it is now."""
        return self._learner.network

    def load_state(self, checkpoint: Path) -> None:
        """Takes policy and optimiser out of a checkpoint."""
        card = read_card(checkpoint)
        load_weights(checkpoint, self._learner.network, card)
        load_optimizer(checkpoint, self._learner.network, card)

    def state(self) -> dict[str, bytes]:
        """Returns policy and optimiser as files."""
        policy = self._learner.network
        optimizer = save(optimizer_tensors(policy.optimizer))
        return {**policy_files(policy, self.card(policy)), "optimizer.safetensors": optimizer}

    def begin(self) -> None:
        """Starts fresh episodes and random streams; before the first decision imitates, where that is asked for."""
        self._equip()
        if self.spec.imitation is not None and self.decisions == 0:
            self._imitate()
        self._learner.begin(self._seed(self.decisions))
        self._played = []

    def _equip(self) -> None:
        learner = self._learner
        learner.num_timesteps, learner._n_updates = self.decisions, self.updates
        learner.set_logger(self.logger)

    def _seed(self, began: int) -> int:
        """Returns the seed of streams that begin after so many decisions."""
        # Stable-Baselines3 adds the copy's index to the seed, so it stays clear of 2**31.
        return int(np.random.SeedSequence([self.spec.seed, began]).generate_state(1)[0] % 2**30)

    def midway(self) -> dict[str, bytes]:
        """Returns the actions since ``begin``, which lead to where episodes are, and the stream of minibatches."""
        stream: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - that Stable-Baselines3 draws from
        keys, place = stream["state"]["key"], stream["state"]["pos"]
        played = self._played or [np.zeros((0, self.spec.num_envs), np.int64)]
        arrays = {"actions": np.concatenate(played), "keys": keys.astype(np.int64), "place": np.array([place])}
        return {_MIDWAY: save_arrays(arrays)}

    def go_on(self, checkpoint: Path, began: int) -> None:
        """Plays the episodes again up to where they were, unless other ones are asked for by now."""
        before, now = self.before, self.spec
        if any(getattr(before, name) != getattr(now, name) for name in ("env", "num_envs", "seed")):
            self._equip()
            self._stream = self.decisions
            self._learner.begin(self._seed(self.decisions))
            return
        shape = ((self.decisions - began) // now.num_envs, now.num_envs)
        shapes = {"actions": shape, "keys": _KEYS, "place": (1,)}
        arrays = read_tensors(checkpoint / _MIDWAY, shapes, fits="its counters", dtype=torch.int64)
        self._equip()
        self._learner.begin(self._seed(began))
        actions = arrays["actions"].numpy()
        if actions.size > _MANY:
            notice(f"plays {actions.size:,} decisions again, to go on where episodes were")
        self._learner.play_again(actions)
        keys, place = arrays["keys"].numpy().astype(np.uint32), int(arrays["place"][0])
        np.random.set_state(("MT19937", keys, place, 0, 0.0))  # noqa: NPY002
        self._played = [actions]

    def _imitate(self) -> None:
        """Teaches the policy look-ahead's choices, shows each pass, and validates what came of it."""
        spec, learner = self.spec, self._learner
        assert spec.imitation is not None
        draws, order = np.random.SeedSequence(spec.seed).spawn(1)[0].generate_state(2).tolist()
        lessons = draw_lessons(learner.vec_env.episodes, spec.imitation, draws)
        for epoch, fit in enumerate(imitate(learner.network, lessons, spec.imitation, order), start=1):
            self.log({"imitation/loss": fit.loss, "imitation/accuracy": fit.accuracy}, epoch)
            if not np.isfinite(fit.loss) or first_not_finite(learner.network.named_parameters()):
                arrays = {name: tensor.numpy() for name, tensor in lessons.observations.items()}
                raise NotFiniteError(f"the loss of imitation or a weight after pass {epoch}", arrays)

    def learn(self) -> dict[str, float]:
        """Collects a rollout and improves the policy on it."""
        learner, episodes = self._learner, self._episodes
        learner.collect(episodes)
        learner.require_finite_rollout()
        statistics = kind_statistics(learner)
        learner.update(1.0 - learner.num_timesteps / self.spec.total_decisions)
        self.decisions, self.updates = learner.num_timesteps, learner._n_updates
        self._played.append(learner.players.actions.T.copy())
        self.folder.append_rows("episodes.csv", EPISODE_COLUMNS, episodes.take_rows())
        seconds = {
            "env": learner.vec_env.env_seconds,
            "policy": learner.rollout_seconds - learner.vec_env.env_seconds,
            "update": learner.update_seconds,
        }
        shares = {f"time/{part}_share": taken / self.elapsed_s() for part, taken in seconds.items()}
        return {**episodes.means(), **statistics, **shares}

    @property
    def recent(self) -> dict[str, float]:
        """Mean return and makespan over lower bound of the last episodes."""
        names = {"return": "return", "ratio": "ratio_to_bound"}
        return {short: self._episodes.recent(name) for short, name in names.items() if self._episodes.means()}


class Learner(MaskablePPO):
    """MaskablePPO over ``CandidatePolicy``, driven one rollout and one update at a time."""

    rollout_buffer: EngineRollouts  # type: ignore[assignment]

    def __init__(self, vec_env: ScheduleVecEnv, spec: PpoSpec, policy: PolicySpec, seed: int, threads: int = 1) -> None:
        """Makes the networks from ``seed``; it needs ``set_logger``, and ``begin`` starts the environments.

        ``threads`` play copies; what is learned is the same for any number.
        """
        batch = vec_env.episodes.batch
        self.players = Players(batch.features, batch.context, batch.mask, spec.n_steps)
        super().__init__(
            CandidatePolicy,
            vec_env,
            learning_rate=spec.rate,
            clip_range=spec.clip,
            **spec.model_dump(exclude={"learning_rate", "learning_rate_schedule", "clip_range", "clip_range_schedule"}),
            policy_kwargs={"spec": policy},
            rollout_buffer_class=EngineRollouts,
            rollout_buffer_kwargs={"players": self.players},
            seed=seed,
            device="cpu",
        )
        self.vec_env, self._pool = vec_env, ThreadPoolExecutor(threads)
        self.network.mapping = self._pool.map
        self._uniforms = np.random.default_rng(seed)
        self._played: list[Drawn] = []  # the workloads of the present rollout
        self.network.optimizer.register_step_pre_hook(lambda *_: self._require_finite_gradient())
        self.update_seconds = 0.0
        self.rollout_seconds = 0.0

    @property
    def network(self) -> CandidatePolicy:
        """The policy being trained."""
        assert isinstance(self.policy, CandidatePolicy)
        return self.policy

    def begin(self, seed: int) -> None:
        """Starts fresh episodes and random streams from ``seed``.

        What follows depends only on the weights, the optimiser, the number of decisions so far and this seed. Training
        calls it at every checkpoint, which is why a resumed run is the same as one that was never stopped.
        """
        np.random.seed(seed)  # noqa: NPY002 - Stable-Baselines3 shuffles its buffers with the global stream
        self._uniforms = np.random.default_rng(seed)
        self.vec_env.seed(seed)
        self._last_obs = None
        self._setup_learn(0, reset_num_timesteps=False)
        self.players.begin()

    def collect(self, episodes: EpisodeRecorder) -> None:
        """Fills the rollout buffer: ``n_steps`` decisions of every copy, each drawn with a number of its own."""
        started = time.perf_counter()
        uniforms = self._uniforms.random((self.n_steps, self.n_envs))
        network = self.network
        self.players.equip(network.scoring_network(), uniforms.T, network.opening_network())
        self._played = []
        for step, _, info in self.play():
            episodes.note(self.num_timesteps + (step + 1) * self.n_envs, info)
            self._played.append(info["drawn"])
        self.num_timesteps += self.n_steps * self.n_envs
        network.set_training_mode(False)
        self.rollout_buffer.take_over(network, self.vec_env.episodes.observations)
        self.rollout_seconds += time.perf_counter() - started

    def play(self) -> list[tuple[int, int, dict[str, Any]]]:
        """Lets the players fill their room; see ``ScheduleVecEnv.play``."""
        return self.vec_env.play(self.players, self._pool.map)

    def play_again(self, actions: np.ndarray) -> None:
        """Takes the (step, copy) actions that were taken after ``begin``, and draws the numbers that chose them."""
        self._uniforms.random(actions.size)
        for row in actions:
            self.vec_env.step(row)
        self.vec_env.seat(self.players)

    def require_finite_rollout(self) -> None:
        """Checks what decisions showed, and what they were chosen by and gave.

        Raises:
            NotFiniteError: Something is not finite.
        """
        kept = self.players
        for what, array in (("candidates", kept.candidates), ("context", kept.contexts)):
            if not is_finite(array):
                names = FEATURES if what == "candidates" else CONTEXT
                place = int(np.flatnonzero(~np.isfinite(array))[0]) % array.shape[-1] % len(names)
                raise self._not_finite(f"'{names[place]}' of {what}")
        for what, array in (("log probability", kept.log_probs), ("reward", kept.rewards)):
            if not is_finite(array):
                raise self._not_finite(f"a {what}")

    def _require_finite_gradient(self) -> None:
        """Checks gradients before a step."""
        gradients = [each.grad for each in self.network.parameters() if each.grad is not None]
        if not bool(get_total_norm(gradients).isfinite()):
            raise self._not_finite("a gradient")  # of which weight, clipping has hidden

    def _not_finite(self, what: str) -> NotFiniteError:
        """Returns what stops training: the rollout, and the workloads that it is of."""
        kept = self.players
        names = ("candidates", "contexts", "masks", "counts", "actions", "log_probs", "rewards", "starts")
        return NotFiniteError(
            what, {name: getattr(kept, name) for name in names}, [*self._played, *self.vec_env.drawn()]
        )

    def update(self, progress_remaining: float) -> None:
        """Improves the policy on the rollout buffer."""
        started = time.perf_counter()
        self._current_progress_remaining = progress_remaining
        self.train()
        loss = self.logger.name_to_value["train/loss"]
        if not np.isfinite(loss):
            raise self._not_finite("the loss")
        if name := first_not_finite(self.network.named_parameters()):
            raise self._not_finite(f"weight '{name}'")
        self.update_seconds += time.perf_counter() - started


def kind_statistics(learner: Learner) -> dict[str, float]:
    """Returns, for each kind of decision in the rollout just collected: its share, entropy, and mean chosen place.

    The place is the chosen row over the number of legal ones: 0 is always the first, near 1 always the last. A sample
    of evenly spaced decisions is enough and cheap.
    """
    buffer = learner.rollout_buffer
    contexts = buffer.observations["context"]
    steps, copies = contexts.shape[:2]
    picked = np.linspace(0, steps * copies - 1, min(_SAMPLED_DECISIONS, steps * copies)).astype(np.int64)
    step, copy = np.divmod(picked, copies)
    observation = {name: torch.from_numpy(array[step, copy]) for name, array in buffer.observations.items()}
    masks = buffer.action_masks[step, copy]
    with torch.no_grad():
        entropy = learner.network.get_distribution(observation, masks).entropy()
    assert entropy is not None
    place = buffer.actions[step, copy].reshape(-1) / np.maximum(masks.sum(axis=1), 1)
    kinds = contexts[step, copy, : len(DECISION_KINDS)].argmax(axis=1)
    statistics = {"rollout/entropy": float(entropy.mean())}
    for index, kind in enumerate(DECISION_KINDS):
        chosen = kinds == index
        if chosen.any():
            statistics[f"kinds/{kind}_share"] = float(chosen.mean())
            statistics[f"kinds/{kind}_entropy"] = float(entropy.numpy()[chosen].mean())
            statistics[f"kinds/{kind}_place"] = float(place[chosen].mean())
    return statistics
