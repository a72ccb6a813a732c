"""Learning which plan a layer wants, by playing them.

A run (``PlanRun``) plays plans of its schedule on layers that it draws from its suite, with other tokens, routing and
machines each time, adds what they took to a table and fits a network to the whole of it; see plan_table.py. On the
first layers it plays all plans, then those that the network of the moment finds promising and a few more.
What is decided besides the plan, the plan's own rule decides. How much of it a run has done is counted in plans played.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from dysharp_env.config import ConfigError
from dysharp_env.schedules import Exposure, Problem, load_schedule
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import NUM_CONTEXT, NUM_FEATURES
from dysharp_env.workers import Workers
from dysharp_env.workload.suite import load_suite

from ..opponents.rollouts import makespans_ps
from ..policies.candidate_policy import CandidatePolicy
from ..policies.files import load_tensors
from .finite import NotFiniteError, is_finite
from .plan_layers import draw_layers
from .plan_table import ARRAYS, Fit, PlanTable, Promising, choose, fit_plans, play_plans
from .run_folder import RunFolder
from .run_loop import TrainingRun
from .spec import TrainSpec


class PlanRun(TrainingRun):
    """A run that learns to choose plans."""

    def __init__(
        self, spec: TrainSpec, folder: RunFolder, watch: Callable[[TrainingRun], None], workers: Workers
    ) -> None:
        """Reads the suite.

        Raises:
            ConfigError: A name in the spec is unknown, or does not fit.
        """
        super().__init__(spec, folder, watch, workers)
        assert spec.planning is not None and spec.env.suite is not None
        self._planning, self._workers = spec.planning, workers
        self._suite = load_suite(spec.env.suite)
        self._schedule, self._reference = load_schedule(spec.env.schedule), load_schedule(spec.reference)
        size = spec.env.max_candidates
        self._table = PlanTable(
            (),
            np.zeros((0, size, NUM_FEATURES), np.float32),
            np.zeros((0, NUM_CONTEXT), np.float32),
            np.zeros((0, size), np.int64),
        )
        self._network = Network.nothing(1)
        self._loss = float("nan")

    def policy(self) -> CandidatePolicy:
        """Returns the policy: the mean of several fits, of which each learns other things by heart."""
        network = self._network
        if len(self._table.names):
            others = [self._fitted(self.spec.seed + member).network for member in range(1, self._planning.members)]
            network = Network.mean_of([network, *others])
        return CandidatePolicy.of_network(Network.nothing(1), self.spec.env, network)

    def load_state(self, checkpoint: Path) -> None:
        """Takes the table out of a checkpoint, and fits the network again."""
        path = checkpoint / "table.safetensors"
        arrays = {name: tensor.numpy() for name, tensor in load_tensors(path).items()}
        empty, rows = self._table, len(arrays.get("features", ()))
        for name in ARRAYS:
            wanted = (rows, *getattr(empty, name).shape[1:])
            if name not in arrays or arrays[name].shape != wanted:
                raise ConfigError(f"'{path}' does not fit the run's settings: '{name}' is not of shape {wanted}")
        self._table = PlanTable(tuple(map(str, range(rows))), *(arrays[name] for name in ARRAYS))
        if rows:
            self._fit()

    def state(self) -> dict[str, bytes]:
        """Returns the table as a file."""
        return {"table.safetensors": save({name: getattr(self._table, name) for name in ARRAYS})}

    def begin(self) -> None:
        """Goes on with the present table."""

    def learn(self) -> dict[str, float]:
        """Plays plans on some more layers, and fits the network anew."""
        exposure = Exposure(max_candidates=self.spec.env.max_candidates)
        drawn = draw_layers(self._suite, self._planning, self.spec.seed, self.updates)
        played = play_plans(drawn, self._schedule, exposure, self._workers, self._promising())
        relative = self._relative(drawn, played)
        self._table = self._table.joined(played)
        if not is_finite(self._table.features) or not is_finite(self._table.context):
            raise self._not_finite("a feature")
        self._fit()
        self.decisions += int(played.legal.sum())
        self.updates += 1
        return {
            **relative,
            "train/loss": self._loss,
            "train/loss_of_first_plan": float(self._table.losses[:, 0].mean()),
            "train/table_layers": len(self._table.names),
        }

    def _relative(self, drawn: Sequence[Problem], played: PlanTable) -> dict[str, float]:
        """Returns how the plans chosen on new layers compare with the reference, where that runs on all of them."""
        try:
            reference_ps = makespans_ps([self._reference], drawn, self._workers)[0]
        except ConfigError:
            return {}
        chosen = [choose(self._network, played, row) for row in range(len(drawn))]
        mine_ps = played.makespans_ps[np.arange(len(drawn)), chosen]
        return {"rollout/ratio_to_reference": float(np.exp(np.log(mine_ps / reference_ps).mean()))}

    @property
    def recent(self) -> dict[str, float]:
        """How much longer than the best plan of each layer the chosen ones take."""
        return {} if np.isnan(self._loss) else {"over best plan": float(np.exp(self._loss))}

    def _promising(self) -> Promising | None:
        """Returns which plans are played next; None, for all of them, on the first layers."""
        planning = self._planning
        if self.updates == 0:
            return None
        return Promising(self._network, planning.best, planning.others, (self.spec.seed, self.updates))

    def _fit(self) -> None:
        fit = self._fitted(self.spec.seed)
        self._network, self._loss = fit.network, fit.loss

    def _fitted(self, seed: int) -> Fit:
        try:
            fit = fit_plans(self._table, self._planning.width, seed, steps=self._planning.steps)
        except ValueError:  # a network refuses weights that are not finite
            raise self._not_finite("a weight of a fit") from None
        if not np.isfinite(fit.loss):
            raise self._not_finite("the loss of a fit")
        return fit

    def _not_finite(self, what: str) -> NotFiniteError:
        return NotFiniteError(what, {name: getattr(self._table, name) for name in ARRAYS})
