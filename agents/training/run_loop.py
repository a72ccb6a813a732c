"""What every training run does, however it learns: resume, validate, keep the best policy, write its folder."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field
from stable_baselines3.common.logger import Logger

from dysharp_env.config import ConfigError, Spec, parse_spec
from dysharp_env.simulator.warmup import notice
from dysharp_env.workers import Workers

from ..policies.candidate_policy import CandidatePolicy
from ..policies.card import PolicyCard, read_json
from ..policies.files import load_policy
from .held_out import describe_validation
from .metrics import TensorBoard
from .run_folder import RunFolder
from .spec import TrainSpec
from .validation import EVALUATION_COLUMNS, Validator


class Counters(Spec):
    """What a checkpoint remembers besides weights and optimiser."""

    decisions: int = Field(ge=0)
    """Decisions so far."""
    updates: int = Field(ge=0)
    """Passes of the learner over its rollouts so far."""
    best_validation_ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    """Lowest mean makespan over lower bound on the validation suite so far."""
    wall_s: float = Field(ge=0, allow_inf_nan=False)
    """Seconds of training so far."""


class TrainingRun(ABC):
    """A run under way; subclasses learn, and say what else a checkpoint holds.

    Attributes:
        decisions: Decisions so far.
        updates: Steps of the learner so far.
        best: Lowest mean makespan over lower bound on the validation suite so far.
        logger: Where curves go, from ``begin`` on.
    """

    logger: Logger
    tables: Mapping[str, Sequence[str]] = {"evaluations.csv": EVALUATION_COLUMNS}
    """Columns of the tables that a run adds lines to, the first of them the number of decisions."""

    def __init__(
        self,
        spec: TrainSpec,
        folder: RunFolder,
        watch: Callable[[TrainingRun], None],
        workers: Workers | None = None,
    ) -> None:
        """Draws the validation suite, which ``workers`` will play; None: this process.

        Raises:
            ConfigError: A name in the spec is unknown, or does not fit.
        """
        self.spec, self.folder, self.watch = spec, folder, watch
        self.decisions = self.updates = 0
        self.best: float | None = None
        self._validator = Validator(spec, workers or Workers())
        self._kept: dict[str, list[list[str]]] = {}  # lines of the tables that a resumed run keeps
        self._earlier_s, self._began = 0.0, time.perf_counter()
        self._first = 0

    @abstractmethod
    def policy(self) -> CandidatePolicy:
        """Returns the policy as it is now."""

    @abstractmethod
    def load_state(self, checkpoint: Path) -> None:
        """Takes weights, and all that learning goes on from, out of a checkpoint.

        Raises:
            ConfigError: It is damaged or does not fit.
        """

    @abstractmethod
    def state(self) -> dict[str, bytes]:
        """Returns the files of a checkpoint, by name; its counters are added to them."""

    @abstractmethod
    def begin(self) -> None:
        """Starts learning, or goes on after a checkpoint: what follows depends on no more than that holds."""

    @abstractmethod
    def learn(self) -> dict[str, float]:
        """Learns for a while, counts decisions and updates, and returns what TensorBoard shows of it."""

    @abstractmethod
    def recent(self) -> tuple[float, float]:
        """Returns mean return and mean ratio of the last episodes, to be watched; nan before the first.

        The ratio is makespan over lower bound. Under evolution it is that over the reference's, and no return is known.
        """

    def log(self, record: Mapping[str, float], step: int) -> None:
        """Writes a record, and whatever else has been logged since the last one."""
        for name, value in record.items():
            self.logger.record(name, value)
        self.logger.dump(step)

    def card(self, policy: CandidatePolicy, ratio: float | None = None) -> PolicyCard:
        """Returns the card of the present policy, which has that validation ratio."""
        spec = self.spec
        return PolicyCard(
            name=spec.name,
            seed=spec.seed,
            env=spec.env,
            policy=policy.spec,
            decisions=self.decisions,
            validation_ratio=ratio,
        )

    def elapsed_s(self) -> float:
        """Returns seconds since this process began."""
        return time.perf_counter() - self._began

    def rate(self) -> float:
        """Returns decisions a second since this process began, everything included."""
        return (self.decisions - self._first) / self.elapsed_s()

    def restore(self) -> None:
        """Goes back to the newest checkpoint; what was recorded after it will be recorded again.

        It only reads: a run that cannot be resumed stays as it is.
        """
        checkpoint = self.folder.newest_checkpoint()
        self.load_state(checkpoint)
        source = f"{checkpoint}/counters.json"
        counters = parse_spec(Counters, read_json(Path(source)), source=source)
        if counters.decisions != int(checkpoint.name):
            raise ConfigError(f"{source}: decisions={counters.decisions} must be the number of its folder")
        self.decisions, self.updates = counters.decisions, counters.updates
        self.best = counters.best_validation_ratio
        if self.best is not None:
            load_policy(self.folder.best)  # it may stay the best, so it must be whole
        for table, columns in self.tables.items():
            rows = self.folder.read_rows(table, columns)
            self._kept[table] = [row for row in rows if int(row[0]) <= counters.decisions]
        self._earlier_s, self._first = counters.wall_s, counters.decisions

    def run(self, command: Sequence[str]) -> float:
        """Trains to the end, says on what it validates, and returns the best validation ratio."""
        spec, folder = self.spec, self.folder
        meta = folder.read_meta()
        if command:
            folder.add_command(command)
        for table, rows in self._kept.items():
            folder.replace_rows(table, self.tables[table], rows)
        folder.write_config(spec)
        folder.write_meta({"seed": spec.seed, "started": meta.get("started", _now()), "finished": None})
        notice(describe_validation(spec))
        self.logger = Logger(None, [TensorBoard(folder.path, self.decisions or None)])
        self.begin()
        if self.decisions == 0:
            self.log(self._validate(), 0)
        while self.decisions < spec.total_decisions:
            self._iterate()
        if self.best is None:  # a checkpoint from before the first validation already had all decisions
            self._validate()
        assert self.best is not None
        self.logger.close()
        result = {"decisions": self.decisions, "validation_ratio": self.best, "wall_s": self._wall_s()}
        folder.write_meta({"finished": _now(), **result})
        return self.best

    def _iterate(self) -> None:
        """Learns, and where it is time validates and saves."""
        spec, before = self.spec, self.decisions
        record = self.learn()
        last = self.decisions >= spec.total_decisions
        if last or _crossed(before, self.decisions, spec.eval_every_decisions):
            record |= self._validate()
        self.log(record, self.decisions)
        if last or _crossed(before, self.decisions, spec.checkpoint_every_decisions):
            counters = Counters(
                decisions=self.decisions,
                updates=self.updates,
                best_validation_ratio=self.best,
                wall_s=self._wall_s(),
            )
            text = counters.model_dump_json(indent=2) + "\n"
            self.folder.save_checkpoint(self.decisions, {**self.state(), "counters.json": text.encode()})
            if not last:
                self.begin()
        self.watch(self)

    def _validate(self) -> dict[str, float]:
        """Keeps the policy if it is the best so far, and returns what TensorBoard shows of it."""
        policy = self.policy()
        to_bound, to_reference = self._validator(policy, self.decisions, self.folder)
        if self.best is None or to_bound < self.best:
            self.best = to_bound
            self.folder.save_best(policy, self.card(policy, self.best))
        return {"eval/ratio_to_bound": to_bound, f"eval/ratio_to_{self.spec.reference}": to_reference}

    def _wall_s(self) -> float:
        """Returns seconds of training, those before the checkpoint this process continued from included."""
        return round(self._earlier_s + self.elapsed_s(), 1)


def _crossed(before: int, after: int, every: int) -> bool:
    return before // every != after // every


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
