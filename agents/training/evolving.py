"""Training by evolution: generations of policies of few weights on a suite, played inside the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from agents.exact.tiny import TRAINING_SEED, tiny_layers
from agents.opponents.rollouts import Playable, prepare
from agents.policies.candidate_policy import CandidatePolicy
from agents.policies.files import read_numbers
from agents.training.evolution import Evolution, Generation
from agents.training.metrics import TensorBoard
from agents.training.run_folder import RunFolder
from agents.training.run_loop import Counters, Progress, TrainingRun
from agents.training.spec import TrainSpec
from dysharp_env.schedules import load_schedule
from dysharp_env.workload.suite import load_suite

GENERATION_COLUMNS = ("decisions", "generation", "ratio_to_reference", "worst", "wall_s")


class EvolutionRun(TrainingRun):
    """A run of an evolution strategy."""

    tables = {"generations.csv": GENERATION_COLUMNS, **TrainingRun.tables}

    def __init__(self, spec: TrainSpec, folder: RunFolder, watch: Callable[[Progress], None]):
        """Draws what is trained on and plays the reference on it.

        Raises:
            ConfigError: A name in the spec is unknown, or does not fit.
        """
        super().__init__(spec, folder, watch)
        assert spec.evolution is not None
        self._evolution = Evolution(
            spec.evolution,
            load_schedule(spec.env.schedule),
            spec.env.exposure(),
            _workloads(spec),
            load_schedule(spec.reference),
        )
        self._board: TensorBoard | None = None
        self._latest: Generation | None = None

    def policy(self) -> CandidatePolicy:
        """Returns the policy."""
        return CandidatePolicy.of_network(self._evolution.network(), self.spec.env)

    def load_state(self, checkpoint: Path) -> None:
        """Takes the weights out of a checkpoint."""
        evolution = self._evolution
        shape = evolution.weights.shape
        numbers = read_numbers(checkpoint / "evolution.safetensors", {"average": shape, "weights": shape})
        evolution.weights, evolution.average = numbers["weights"], numbers["average"]

    def save_state(self, counters: Counters) -> None:
        """Saves weights and counters."""
        numbers = save({"average": self._evolution.average, "weights": self._evolution.weights})
        self.folder.save_files({"evolution.safetensors": numbers}, counters, self.decisions)

    def begin(self, board: TensorBoard) -> None:
        """Goes on at the present weights."""
        self._board = board
        self._evolution.restart(int(np.random.SeedSequence([self.spec.seed, self.updates]).generate_state(1)[0]))

    def learn(self) -> dict[str, float]:
        """Plays one generation."""
        latest = self._latest = self._evolution.step(self.decisions / self.spec.total_decisions)
        self.decisions += latest.decisions
        self.updates += 1
        row = (self.decisions, self.updates, latest.ratio, latest.worst)
        self.folder.append_rows("generations.csv", GENERATION_COLUMNS, [(*row, round(self.elapsed_s(), 3))])
        return {
            f"rollout/ratio_to_{self.spec.reference}": latest.ratio,
            "evolution/worst_ratio": latest.worst,
            "evolution/generation": self.updates,
            "time/decisions_per_second": self.rate(),
        }

    def log(self, record: Mapping[str, float]) -> None:
        """Writes a record."""
        assert self._board is not None
        self._board.write(dict(record), dict.fromkeys(record, ()), self.decisions)

    def close(self) -> None:
        """Has nothing to end."""

    def progress(self) -> Progress:
        """Returns where the run is."""
        assert self._latest is not None
        ratio = self._latest.ratio
        return Progress(self.decisions, self.spec.total_decisions, float("nan"), ratio, self.rate(), self.best)


def _workloads(spec: TrainSpec) -> Sequence[Playable]:
    """Returns what a policy is evolved on."""
    assert spec.evolution is not None
    if spec.evolution.tiny:
        return tiny_layers(TRAINING_SEED, spec.evolution.tiny)
    assert spec.env.suite is not None
    return prepare(load_suite(spec.env.suite).draw())
