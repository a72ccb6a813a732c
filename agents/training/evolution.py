"""Evolution of a policy of few weights: every generation nudges them and plays a batch of workloads either way.

What is made small is the mean log of makespan over the reference's on the same workload. On each workload pairs of
opposite random nudges say in which direction makespans fall (antithetic evolution strategies, Salimans et al., arXiv
1703.03864). A weight that depends on what shapes a layer is nudged as one number on each layer, and how each shape's
share in it is to change follows from the layers' shapes by the chain rule: so what is estimated from makespans stays
small however many shapes there are. Adam makes the steps; the policy is an average of where they have been.

All episodes run inside the engine; layers share nothing, so workers, threads or others, change no result.
``EvolutionRun`` is a run; ``Evolution`` the strategy, one generation at a time; genome.py tells what the weights are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save

from dysharp_env.config import ConfigError
from dysharp_env.schedules import Exposure, Problem, ScheduleSpec, load_schedule
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import CONTEXT
from dysharp_env.simulator.warmup import notice
from dysharp_env.workers import Workers
from dysharp_env.workload.suite import load_suite

from ..exact.tiny import TRAINING_SEED
from ..opponents.read import best_of
from ..opponents.rollouts import makespans_ps
from ..policies.candidate_policy import CandidatePolicy
from ..policies.files import load_policy, read_tensors
from .finite import Drawn, NotFiniteError, is_finite
from .genome import Genome, Scale
from .nudged import Nudged, Player
from .run_folder import RunFolder
from .run_loop import TrainingRun
from .spec import EvolutionSpec, TrainSpec
from .validation import draw_problems

GENERATION_COLUMNS = ("decisions", "generation", "ratio_to_reference", "worst", "wall_s")
_MEAN_KEPT, _SQUARE_KEPT = 0.8, 0.97  # of Adam's averages of gradients and of their squares
_LEAST = 1e-4  # added to the root of the latter, logs of makespan per weight
_LAST_RATE = 0.1  # of the learning rate at the end of a cycle
_BEYOND = 0.05  # of the decisions asked for, by which the last generation may go beyond them
_MIDWAY = "midway.safetensors"


def read_opening(folder: str) -> Network:
    """Returns what the best policy of a run takes before a layer starts.

    Raises:
        ConfigError: There is no such run, or its policy has no network for that.
    """
    best, card = best_of(folder)
    network = load_policy(best, card.env).opening_network()
    if network is None:
        raise ConfigError(f"opening='{folder}': its policy has no network of its own for what comes before a layer")
    return network


class EvolutionRun(TrainingRun):
    """A run of an evolution strategy."""

    tables = {"generations.csv": GENERATION_COLUMNS, **TrainingRun.tables}

    def __init__(
        self,
        spec: TrainSpec,
        folder: RunFolder,
        watch: Callable[[TrainingRun], None],
        workers: Workers,
    ) -> None:
        """Draws what is trained on and plays the reference on it.

        ``workers`` play.

        Raises:
            ConfigError: A name in the spec is unknown, or does not fit.
        """
        super().__init__(spec, folder, watch, workers)
        assert spec.evolution is not None
        suite = load_suite(spec.env.suite) if spec.env.suite else None
        problems = draw_problems(spec, suite, TRAINING_SEED)
        self._opening = read_opening(spec.opening) if spec.opening else None
        self._evolution = Evolution(
            spec.evolution,
            load_schedule(spec.env.schedule),
            replace(spec.env.exposure(), opening=self._opening),
            problems,
            load_schedule(spec.reference),
            workers,
        )
        self._latest: float | None = None

    def policy(self) -> CandidatePolicy:
        """Returns the policy."""
        return CandidatePolicy.of_network(self._evolution.network(), self.spec.env, self._opening)

    def load_state(self, checkpoint: Path) -> None:
        """Takes the weights out of a checkpoint."""
        evolution = self._evolution
        shapes = dict.fromkeys(("average", "weights"), evolution.weights.shape)
        numbers = read_tensors(checkpoint / "evolution.safetensors", shapes, "the run's settings", torch.float64)
        evolution.weights, evolution.average = numbers["weights"].numpy(), numbers["average"].numpy()

    def state(self) -> dict[str, bytes]:
        """Returns the weights as a file."""
        numbers = {"average": self._evolution.average, "weights": self._evolution.weights}
        return {"evolution.safetensors": save(numbers)}

    def begin(self) -> None:
        """Goes on at the present weights with a random stream of its own."""
        self._evolution.restart(self._seed(self.updates))

    def _seed(self, generations: int) -> int:
        """Returns the seed of the stream that begins after so many generations."""
        return int(np.random.SeedSequence([self.spec.seed, generations]).generate_state(1)[0])

    def midway(self) -> dict[str, bytes]:
        """Returns the averages of gradients and how many generations they are of."""
        return {_MIDWAY: save(self._evolution.momentum())}

    def go_on(self, checkpoint: Path, began: int) -> None:
        """Goes on with the averages of gradients, in the middle of the random stream."""
        self.begin()
        shapes = {name: array.shape for name, array in self._evolution.momentum().items()}
        tensors = read_tensors(checkpoint / _MIDWAY, shapes, "the run's settings", torch.float64)
        momentum = {name: tensor.numpy() for name, tensor in tensors.items()}
        self._evolution.restart(self._seed(self.updates - int(momentum["generations"][0])))
        self._evolution.go_on(momentum)

    def is_over(self) -> bool:
        """Returns whether no other generation fits; one is not begun that would end far beyond the last decision."""
        total = self.spec.total_decisions
        usual = self.decisions / self.updates if self.updates else 0.0
        return self.decisions >= total or self.decisions + usual > (1 + _BEYOND) * total

    def learn(self) -> dict[str, float]:
        """Plays one generation."""
        try:
            latest = self._evolution.step(self.decisions / self.spec.total_decisions)
        except NotFiniteError as error:
            raise NotFiniteError(error.what, error.arrays, self._drawn(error.arrays["drawn"])) from None
        if self.updates == 0 and latest.decisions > (1 + _BEYOND) * self.spec.total_decisions:
            notice(
                f"one generation is {latest.decisions:,} decisions, more than total_decisions="
                f"{self.spec.total_decisions}; it is smaller with fewer evolution.pairs or a smaller evolution.batch"
            )
        self._latest = latest.ratio
        self.decisions += latest.decisions
        self.updates += 1
        row = (self.decisions, self.updates, latest.ratio, latest.worst)
        self.folder.append_rows("generations.csv", GENERATION_COLUMNS, [(*row, round(self.elapsed_s(), 3))])
        return {
            "rollout/ratio_to_reference": latest.ratio,
            "rollout/worst_ratio_to_reference": latest.worst,
            "train/loss": float(np.log(latest.ratio)),
            "train/learning_rate": latest.rate,
        }

    def _drawn(self, places: np.ndarray) -> list[Drawn]:
        """Returns what problems were drawn from; tiny ones from no scenario."""
        assert self.spec.evolution is not None
        if self.spec.evolution.tiny or self.spec.env.suite is None:
            return []
        items = load_suite(self.spec.env.suite).draw()
        return [(items[place].entry, items[place].seed) for place in places.tolist()]

    @property
    def recent(self) -> dict[str, float]:
        """The last generation's ratio."""
        return {} if self._latest is None else {"generation's ratio": self._latest}


@dataclass(frozen=True)
class Generation:
    """The result of one generation.

    Attributes:
        ratio: Geometric mean of makespan over the reference's, over all nudges and workloads.
        worst: Largest ratio on a workload, as the geometric mean over its nudges.
        decisions: Decisions that the policies took.
        rate: The learning rate of its step.
    """

    ratio: float
    worst: float
    decisions: int
    rate: float


class Evolution:
    """Weights on their way, and what they play; what follows ``restart`` depends on them and the seed alone.

    Attributes:
        weights: (weight, 1 + shape) float64, where the steps are.
        average: The same, the policy.
    """

    def __init__(
        self,
        spec: EvolutionSpec,
        base: ScheduleSpec,
        exposure: Exposure,
        problems: Sequence[Problem],
        reference: ScheduleSpec,
        workers: Workers,
    ) -> None:
        """Plays the reference and takes a place to begin at.

        Raises:
            ConfigError: A schedule does not fit a system.
        """
        self._spec, self._problems, self._workers = spec, problems, workers
        self._reference_ps = makespans_ps([reference], problems, workers)[0]
        first = problems[0]
        sizes = first.system.gpu.num_sms, first.workload.layer.tile_tokens
        contexts = np.array([_first_context(problem, base, exposure) for problem in problems])
        scale = Scale.of(spec.shapes, contexts)
        self._shapes = scale.rows(contexts)  # (workload, 1 + shape)
        own = sizes if spec.start == "constant" else None
        self._genome = Genome(base, exposure, scale, spec.gated, spec.gates, own_split=own)
        self._player = Player(self._genome, base, exposure)
        self.weights, self.average = self._genome.start.copy(), self._genome.start.copy()

    def restart(self, seed: int) -> None:
        """Goes on at the present weights; the averages of gradients begin anew."""
        self._rng = np.random.default_rng(seed)
        self._order = np.empty(0, np.int64)
        self._steps, self._mean, self._square = 0, np.zeros_like(self.weights), np.zeros_like(self.weights)

    def momentum(self) -> dict[str, np.ndarray]:
        """Returns what has come of the generations since ``restart``, besides weights, as float64 arrays."""
        return {"mean": self._mean, "square": self._square, "generations": np.array([float(self._steps)])}

    def go_on(self, momentum: Mapping[str, np.ndarray]) -> None:
        """Takes over what ``momentum`` returned, after ``restart`` with the same seed."""
        self._mean, self._square = momentum["mean"], momentum["square"]
        self._steps = int(momentum["generations"][0])
        for _ in range(self._steps):
            self._draw()

    def network(self) -> Network:
        """Returns the policy."""
        return self._genome.network(self.average)

    def step(self, progress: float) -> Generation:
        """Plays a generation and moves the weights; ``progress`` is which part of the run is over."""
        spec = self._spec
        drawn, nudges = self._draw()
        nudged = [Nudged(self._problems[at], self.weights, each) for at, each in zip(drawn, nudges, strict=True)]
        constants = [self._player, *self._problems]
        ends = self._workers.map(self._player, nudged, size=Nudged.size, constants=constants)
        makespans, decisions = (np.array(numbers) for numbers in zip(*ends, strict=True))
        logs = np.log(makespans / self._reference_ps[drawn, None])  # (workload, nudge): those one way, those the other
        gained = np.clip(logs[:, : spec.pairs] - logs[:, spec.pairs :], -spec.clip, spec.clip) / 2
        slopes = np.einsum("wp,wpd->wd", gained, nudges) / (spec.pairs * spec.sigma**2)  # (workload, weight)
        gradient = slopes.T @ self._shapes[drawn] / len(drawn)
        gradient[~self._genome.depends, 1:] = 0.0
        weights = self.weights
        rate = spec.learning_rate * (1 - (1 - _LAST_RATE) * (progress * spec.cycles % 1.0))
        self._move(gradient, rate)
        for what, array in (("the fitness", logs), ("the gradient", gradient), ("a weight", self.weights)):
            if not is_finite(array):
                arrays = {"drawn": drawn, "nudges": nudges, "weights": weights, "makespans_ps": makespans}
                raise NotFiniteError(what, arrays)
        worst = float(np.exp(logs.mean(axis=1).max()))
        return Generation(float(np.exp(logs.mean())), worst, int(decisions.sum()), rate)

    def _move(self, gradient: np.ndarray, rate: float) -> None:
        """Makes a step of Adam."""
        self._steps += 1
        self._mean = _MEAN_KEPT * self._mean + (1 - _MEAN_KEPT) * gradient
        self._square = _SQUARE_KEPT * self._square + (1 - _SQUARE_KEPT) * gradient**2
        mean = self._mean / (1 - _MEAN_KEPT**self._steps)
        root = np.sqrt(self._square / (1 - _SQUARE_KEPT**self._steps))
        self.weights = self.weights - rate * mean / (root + _LEAST)
        self.average = self._spec.average * self.average + (1 - self._spec.average) * self.weights

    def _draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the (workload,) next ones of a random order of all, and their (workload, pair, weight) nudges.

        A new order begins where too few are left.
        """
        spec = self._spec
        if len(self._order) < spec.batch:
            self._order = self._rng.permutation(len(self._problems))
        drawn, self._order = np.sort(self._order[: spec.batch]), self._order[spec.batch :]
        return drawn, self._rng.normal(0, spec.sigma, (len(drawn), spec.pairs, len(self.weights)))


def _first_context(problem: Problem, base: ScheduleSpec, exposure: Exposure) -> np.ndarray:
    """Returns the (context,) of a layer's first decision; zeros if there is none."""
    decision = problem.engine(base, exposure).advance()
    return np.zeros(len(CONTEXT)) if decision is None else decision.context.astype(float)
