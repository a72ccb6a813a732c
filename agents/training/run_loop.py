"""What every training run does, however it learns: resume, validate, keep the best policy, write its folder."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field
from stable_baselines3.common.logger import Logger

from dysharp_env.config import ConfigError, Spec, parse_spec
from dysharp_env.simulator.warmup import notice
from dysharp_env.workers import Workers

from ..policies.candidate_policy import CandidatePolicy
from ..policies.card import PolicyCard, read_json
from ..policies.files import load_policy
from .board import Board, code_block
from .held_out import describe_validation
from .run_folder import RunFolder
from .settings import shown_settings
from .spec import TrainSpec, read_spec
from .validation import EVALUATION_COLUMNS, Validation, Validator


class Counters(Spec):
    """What a checkpoint remembers besides weights and optimiser."""

    decisions: int = Field(ge=0)
    """Decisions so far."""
    updates: int = Field(ge=0)
    """Passes of the learner over its rollouts so far."""
    best_validation_ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    """Lowest mean makespan over lower bound on the validation suite so far."""
    best_ratio_to_reference: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """That policy's geometric mean of makespan over the reference's."""
    wall_s: float = Field(ge=0, allow_inf_nan=False)
    """Seconds of training so far."""
    began: int | None = Field(default=None, ge=0)
    """Decisions after which the random streams and episodes began that go on behind a checkpoint made on an interrupt;
    none: fresh ones begin behind it."""


class TrainingRun(ABC):
    """A run under way; subclasses learn, and say what else a checkpoint holds.

    Attributes:
        before: What the run was made with up to the checkpoint that it goes on from.
        decisions: Decisions so far.
        updates: Steps of the learner so far.
        best: Lowest mean makespan over lower bound on the validation suite so far.
        latest: The validation made last; None before the first of this process.
        board: What TensorBoard shows besides curves, and ``logger`` where those go, from ``run`` on.
    """

    board: Board
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
        self.before = spec
        self.decisions = self.updates = 0
        self.best: float | None = None
        self.latest: Validation | None = None
        self._best_to_reference: float | None = None
        self._validator = Validator(spec, workers or Workers())
        self._kept: dict[str, list[list[str]]] = {}  # lines of the tables that a resumed run keeps
        self._earlier_s, self._began, self._eval_s = 0.0, time.perf_counter(), 0.0
        self._first = 0
        self._stream = 0  # decisions after which the present random streams began
        self._resumed: Path | None = None  # the checkpoint made on an interrupt that learning goes on from
        self._boundary: tuple[int, dict[str, bytes]] | None = None  # the checkpoint that an interrupt would make

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

    def midway(self) -> dict[str, bytes]:
        """Returns what a checkpoint between two regular ones holds besides ``state``, for ``go_on``."""
        return {}

    def go_on(self, checkpoint: Path, began: int) -> None:
        """Starts learning as it was at a checkpoint that holds ``midway``; see ``begin``.

        Args:
            checkpoint: Its folder.
            began: Decisions at which ``begin`` was called last before.

        Raises:
            ConfigError: It is damaged or does not fit.
        """
        self.begin()

    @abstractmethod
    def learn(self) -> dict[str, float]:
        """Learns for a while, counts decisions and updates, and returns what TensorBoard shows of it."""

    @property
    @abstractmethod
    def recent(self) -> dict[str, float]:
        """What there is to watch between validations, by what it is called; empty before there is anything."""

    def is_over(self) -> bool:
        """Returns whether training has reached its end."""
        return self.decisions >= self.spec.total_decisions

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
        self.before = read_spec(self.folder)
        self.decisions, self.updates = counters.decisions, counters.updates
        self.best, self._best_to_reference = counters.best_validation_ratio, counters.best_ratio_to_reference
        if self.best is not None:
            load_policy(self.folder.best)  # it may stay the best, so it must be whole
        for table, columns in self.tables.items():
            rows = self.folder.read_rows(table, columns)
            self._kept[table] = [row for row in rows if int(row[0]) <= counters.decisions]
        self._earlier_s, self._first = counters.wall_s, counters.decisions
        if counters.began is not None:
            self._resumed, self._stream = checkpoint, counters.began

    def run(self, command: Sequence[str]) -> float:
        """Trains to the end, says on what it validates, and returns the best validation ratio.

        Raises:
            KeyboardInterrupt: Somebody has interrupted it; by then a checkpoint holds the last whole update.
        """
        spec, folder = self.spec, self.folder
        meta = folder.read_meta()
        if command:
            folder.add_command(command)
        for table, rows in self._kept.items():
            folder.replace_rows(table, self.tables[table], rows)
        folder.write_config(spec)
        folder.write_meta({"seed": spec.seed, "started": meta.get("started", _now()), "finished": None})
        notice(describe_validation(spec))
        board = self._open_board()
        try:
            self._start()
            while not self.is_over():
                self._iterate()
        except KeyboardInterrupt:
            if self._boundary is not None:
                folder.save_checkpoint(*self._boundary)
            raise
        if self.best is None:  # a checkpoint from before the first validation already had all decisions
            self._validate()
        assert self.best is not None
        board.end()
        self.logger.close()
        result = {
            "decisions": self.decisions,
            "validation_ratio": self.best,
            "ratio_to_reference": self._best_to_reference,
            "wall_s": self._wall_s(),
        }
        folder.write_meta({"finished": _now(), **result})
        return self.best

    def _open_board(self) -> Board:
        """Returns where curves go, with what the run is made of written there."""
        self.board = Board(self.folder.path, self.decisions or None)
        self.logger = Logger(None, [self.board])
        self.board.begin(*shown_settings(self.spec))
        meta = {**self.folder.read_meta(), "validation": describe_validation(self.spec)}
        for tag, name, language in (("configuration", "config.yaml", "yaml"), ("command", "command.txt", "bash")):
            path = self.folder.path / name
            if path.is_file():
                self.board.text(f"run/{tag}", code_block(path.read_text(encoding="utf-8"), language))
        self.board.text("run/versions", code_block(yaml.safe_dump(meta, sort_keys=False, width=100), "yaml"))
        return self.board

    def _start(self) -> None:
        """Starts learning; what has not been trained yet is validated first."""
        if self._resumed is not None:
            self.go_on(self._resumed, self._stream)
            return
        self._begin()
        if self.decisions == 0:
            self.log(self._validate(), 0)
            self._boundary = self.decisions, self._files(self._stream)
            self.watch(self)

    def _begin(self) -> None:
        self._stream = self.decisions
        self.begin()

    def _iterate(self) -> None:
        """Learns, and where it is time validates and saves."""
        spec, before = self.spec, self.decisions
        record = self.learn()
        last = self.is_over()
        if last or _crossed(before, self.decisions, spec.eval_every_decisions):
            record |= self._validate()
        self.log({**record, **self._times()}, self.decisions)
        if last or _crossed(before, self.decisions, spec.checkpoint_every_decisions):
            self.folder.save_checkpoint(self.decisions, self._files())
            self._boundary = None
            if not last:
                self._begin()
        else:
            self._boundary = self.decisions, self._files(self._stream)
        self.watch(self)

    def _files(self, began: int | None = None) -> dict[str, bytes]:
        """Returns the files of a checkpoint; of one on an interrupt, ``began`` says when the present streams did."""
        counters = Counters(
            decisions=self.decisions,
            updates=self.updates,
            best_validation_ratio=self.best,
            best_ratio_to_reference=self._best_to_reference,
            wall_s=self._wall_s(),
            began=began,
        )
        text = counters.model_dump_json(indent=2) + "\n"
        midway = {} if began is None else self.midway()
        return {**self.state(), **midway, "counters.json": text.encode()}

    def _validate(self) -> dict[str, float]:
        """Keeps the policy if it is the best so far, and returns what TensorBoard shows of it."""
        started, policy, at = time.perf_counter(), self.policy(), self.decisions
        found = self.latest = self._validator(policy)
        self.folder.append_rows("evaluations.csv", EVALUATION_COLUMNS, [(at, *row) for row in found.rows])
        if self.best is None or found.to_bound < self.best:
            self.best, self._best_to_reference = found.to_bound, found.to_reference
            self.folder.save_best(policy, self.card(policy, self.best))
        self.board.histogram("eval/workloads_to_bound", found.bounds, at)
        self.board.histogram("eval/workloads_to_reference", found.references, at)
        if self.spec.pictures:
            self.board.picture("eval/schedule", self._validator.picture(policy, at), at)
        self._eval_s += time.perf_counter() - started
        lines = {f"opponents/{name}": ratio for name, ratio in self._validator.opponents.items()}
        best = {"eval/best_ratio_to_bound": self.best}
        if self._best_to_reference is not None:
            best["eval/best_ratio_to_reference"] = self._best_to_reference
        return {**found.curves(), **best, **lines}

    def _times(self) -> dict[str, float]:
        """Returns where the time goes, as TensorBoard shows it."""
        return {
            "train/updates": self.updates,
            "time/decisions_per_second": self.rate(),
            "time/elapsed_s": self._wall_s(),
            "time/eval_share": self._eval_s / self.elapsed_s(),
        }

    def _wall_s(self) -> float:
        """Returns seconds of training, those before the checkpoint this process continued from included."""
        return round(self._earlier_s + self.elapsed_s(), 1)


def _crossed(before: int, after: int, every: int) -> bool:
    return before // every != after // every


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
