"""Training by MaskablePPO, collect and update in turn, and the door to every kind of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from stable_baselines3.common.logger import Logger

from agents.policies.candidate_policy import CandidatePolicy
from agents.training.evolving import EvolutionRun
from agents.training.imitation import draw_lessons, imitate
from agents.training.learner import Learner
from agents.training.metrics import EPISODE_COLUMNS, EpisodeRecorder, TensorBoard, kind_statistics, time_shares
from agents.training.run_folder import RunFolder
from agents.training.run_loop import Counters, Progress, TrainingRun
from agents.training.spec import TrainSpec
from agents.training.validation import EVALUATION_COLUMNS
from agents.training.vec_env import ScheduleVecEnv


def train(
    spec: TrainSpec,
    folder: RunFolder,
    *,
    resume: bool = False,
    command: Sequence[str] = (),
    watch: Callable[[Progress], None] = lambda _: None,
) -> float:
    """Trains into a run folder and returns the best validation ratio.

    Args:
        spec: The run.
        folder: Where everything is written, ``config.yaml`` included.
        resume: Whether to continue from the folder's newest checkpoint. Nothing is written before it is read.
        command: The command line, for ``command.txt``.
        watch: Called after every update.

    Raises:
        ConfigError: A name in the spec is unknown, or the checkpoint cannot be read.
    """
    torch.set_num_threads(spec.torch_threads)
    run = (PpoRun if spec.evolution is None else EvolutionRun)(spec, folder, watch)
    if resume:
        run.restore()
    return run.run(command)


class PpoRun(TrainingRun):
    """A run of MaskablePPO."""

    tables = {"episodes.csv": EPISODE_COLUMNS, "evaluations.csv": EVALUATION_COLUMNS}

    def __init__(self, spec: TrainSpec, folder: RunFolder, watch: Callable[[Progress], None]):
        """Makes environments and networks.

        Raises:
            ConfigError: A name in the spec is unknown, or does not fit.
        """
        super().__init__(spec, folder, watch)
        self._episodes = EpisodeRecorder(spec.reference)
        vec_env = ScheduleVecEnv(spec.env, spec.num_envs, spec.reference, spec.baseline)
        self._learner = Learner(vec_env, spec.ppo, spec.policy, spec.seed)

    def policy(self) -> CandidatePolicy:
        """Returns the policy as it is now."""
        return self._learner.network

    def load_state(self, checkpoint: Path) -> None:
        """Takes policy and optimiser out of a checkpoint."""
        self.folder.restore_checkpoint(self._learner.network)

    def save_state(self, counters: Counters) -> None:
        """Saves policy, optimiser and counters."""
        self.folder.save_checkpoint(self._learner.network, counters, self.decisions)

    def begin(self, board: TensorBoard) -> None:
        """Starts fresh episodes and random streams; before the first decision imitates, where that is asked for."""
        learner = self._learner
        learner.num_timesteps, learner._n_updates = self.decisions, self.updates
        learner.set_logger(Logger(None, [board]))
        if self.spec.imitation is not None and self.decisions == 0:
            self._imitate(board)
        # Stable-Baselines3 adds the copy's index to the seed, so it stays clear of 2**31.
        seed = int(np.random.SeedSequence([self.spec.seed, self.decisions]).generate_state(1)[0] % 2**30)
        learner.begin(self._episodes, seed)

    def _imitate(self, board: TensorBoard) -> None:
        """Teaches the policy look-ahead's choices, shows each pass, and validates what came of it."""
        spec, learner = self.spec, self._learner
        assert spec.imitation is not None
        draws, order = np.random.SeedSequence(spec.seed).spawn(1)[0].generate_state(2).tolist()
        lessons = draw_lessons(learner.vec_env.episodes, spec.imitation, draws)
        for epoch, fit in enumerate(imitate(learner.network, lessons, spec.imitation, order), start=1):
            record = {"imitation/loss": fit.loss, "imitation/accuracy": fit.accuracy}
            board.write(record, dict.fromkeys(record, ()), epoch)
        self.log(self._validate())

    def learn(self) -> dict[str, float]:
        """Collects a rollout and improves the policy on it."""
        learner, episodes = self._learner, self._episodes
        learner.collect(episodes)
        statistics = kind_statistics(learner)
        learner.update(1.0 - learner.num_timesteps / self.spec.total_decisions)
        self.decisions, self.updates = learner.num_timesteps, learner._n_updates
        self.folder.append_rows("episodes.csv", EPISODE_COLUMNS, episodes.take_rows())
        return {**episodes.means(), **statistics, **time_shares(learner, self.elapsed_s(), self.rate())}

    def log(self, record: Mapping[str, float]) -> None:
        """Writes a record together with what the learner has logged of its update."""
        for name, value in record.items():
            self._learner.logger.record(name, value)
        self._learner.logger.dump(self.decisions)

    def progress(self) -> Progress:
        """Returns where the run is."""
        means = self._episodes.recent("return"), self._episodes.recent("ratio")
        return Progress(self.decisions, self.spec.total_decisions, *means, self.rate(), self.best)

    def close(self) -> None:
        """Closes the environments."""
        self._learner.vec_env.close()
