"""What every training run does, however it learns: resume, validate, keep the best policy, write its folder."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from stable_baselines3.common.logger import Logger

from dysharp_env.config import ConfigError
from dysharp_env.simulator.warmup import notice
from dysharp_env.workers import Workers

from ..policies.candidate_policy import CandidatePolicy
from ..policies.card import PolicyCard
from ..policies.files import load_policy
from .board import Board, code_block
from .checkpoint import COUNTERS, Counters, read_counters, require_whole
from .finite import NotFiniteError, is_finite, keep
from .held_out import describe_validation
from .provenance import begin_process, changed_settings, end_process, now, processes_of, without_process
from .run_folder import RunFolder
from .settings import shown_settings
from .spec import TrainSpec, read_settings, read_spec
from .stopping import held
from .validation import EVALUATION_COLUMNS, Validation, Validator

_POLICY_FILES = ("policy.safetensors", "policy.json")


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
        self.logger = Logger(None, [])
        self.decisions = self.updates = 0
        self.best: float | None = None
        self.latest: Validation | None = None
        self._best_to_reference: float | None = None
        self._validator = Validator(spec, workers or Workers())
        self._kept: dict[str, list[list[str]]] = {}  # lines of the tables that a resumed run keeps
        self._earlier_s, self._began, self._eval_s = 0.0, time.perf_counter(), 0.0
        self._first = 0
        self._stream = 0  # decisions after which the present random streams began
        self._resumed: Path | None = None  # the checkpoint between two regular ones that learning goes on from
        self._boundary: tuple[int, dict[str, bytes]] | None = None  # the checkpoint that an interrupt would make
        self._saved_s = time.monotonic()  # when the newest checkpoint was made
        self._best_files: dict[str, bytes] = {}  # of the best policy, once there is one
        self._config = spec.to_yaml().encode()
        self._process: dict[str, Any] = {}  # what meta.json says of this process

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
        """Goes back to the newest checkpoint that is whole, and says so if a newer one is not.

        What was recorded after it will be recorded again; a run that has none begins anew. It only reads: a run that
        cannot be resumed stays as it is.

        Raises:
            ConfigError: There are checkpoints, but none that is whole and fits; or a table is damaged.
        """
        self.before = read_spec(self.folder)
        self._kept = {table: [] for table in self.tables}
        if not self.folder.checkpoints():
            notice(f"run folder '{self.folder.path}' has no checkpoint yet: training begins anew")
        refused: ConfigError | None = None
        for checkpoint in reversed(self.folder.checkpoints()):
            try:
                self._restore(checkpoint)
            except ConfigError as error:
                refused = refused or error
                continue
            if refused is not None:
                notice(f"{refused}; goes on from the checkpoint before, at {self.decisions:,} decisions")
            return
        if refused is not None:
            others = "; nor is there another whole checkpoint" if len(self.folder.checkpoints()) > 1 else ""
            raise ConfigError(f"{refused}{others}")

    def _restore(self, checkpoint: Path) -> None:
        """Goes back to a checkpoint.

        Raises:
            ConfigError: It is not whole or does not fit, or a table is damaged.
        """
        require_whole(checkpoint)
        self.load_state(checkpoint)
        counters = read_counters(checkpoint)
        if counters.best_validation_ratio is not None:
            # Checkpoints of earlier versions hold neither the best policy nor settings.
            best = checkpoint / "best" if (checkpoint / "best").is_dir() else self.folder.best
            load_policy(best)  # it may stay the best, so it must be whole
            self._best_files = {name: (best / name).read_bytes() for name in _POLICY_FILES}
        kept = {}
        for table, columns in self.tables.items():
            rows = self.folder.read_rows(table, columns)
            kept[table] = [row for row in rows if int(row[0]) <= counters.decisions]
        if (checkpoint / "config.yaml").is_file():
            self.before = read_settings(checkpoint)
        self.decisions, self.updates = counters.decisions, counters.updates
        self.best, self._best_to_reference = counters.best_validation_ratio, counters.best_ratio_to_reference
        self._kept, self._earlier_s, self._first = kept, counters.wall_s, counters.decisions
        if counters.began is not None:
            self._resumed, self._stream = checkpoint, counters.began

    def run(self, command: Sequence[str]) -> float:
        """Trains to the end, says on what it validates, and returns the best validation ratio.

        However it ends, a checkpoint holds the last whole update by then, unless there is no room for one.

        Raises:
            ConfigError: Something cannot be written, or numbers are no longer finite.
            KeyboardInterrupt: Somebody has interrupted it.
        """
        try:
            self._prepare(command)
            self._start()
            while not self.is_over():
                self._iterate()
            if self.best is None:  # a checkpoint from before the first validation already had all decisions
                self._validate()
            self.board.end()
            self._end("finished")
        except NotFiniteError as error:
            self._stop("failed")
            where = f"training stopped after {self.decisions:,} decisions: {error}"
            raise ConfigError(f"{where}; {keep(error, self.folder.path)}") from None
        except BaseException as error:
            self._stop("stopped" if isinstance(error, KeyboardInterrupt) else "failed")
            raise
        assert self.best is not None
        return self.best

    def _prepare(self, command: Sequence[str]) -> None:
        """Writes what is known before learning begins, and puts back what is of after the checkpoint."""
        spec, folder = self.spec, self.folder
        meta = folder.read_meta()
        processes = processes_of(meta, folder.path)
        if command:
            folder.add_command(command)
        folder.go_back_to(self.decisions)
        for table, rows in self._kept.items():
            folder.replace_rows(table, self.tables[table], rows)
        self._put_best_back()
        process = begin_process(self.decisions, changed_settings(self.before, spec))
        first = {"seed": spec.seed, "started": meta.get("started", now()), "finished": None}
        folder.write_meta({**without_process(meta), **first, "processes": [*processes, process]})
        self._process = process
        folder.write_config(spec)
        notice(describe_validation(spec))
        self._open_board()

    def _put_best_back(self) -> None:
        """Makes the best policy what it was at the checkpoint, and says so if it has been damaged since."""
        best = self.folder.best
        if not self._best_files or all(
            (best / name).is_file() and (best / name).read_bytes() == content
            for name, content in self._best_files.items()
        ):
            return
        try:
            load_policy(best)  # whole: it is of after the checkpoint
        except ConfigError as error:
            notice(f"{error}; puts back the best policy of the checkpoint")
        self.folder.put_best_back(self._best_files)

    def _stop(self, end: str) -> None:
        """Saves the last whole update and notes how the run ended, as far as there is room for that."""
        if not self._process:
            return
        with held():
            with suppress(ConfigError):
                self._save()
            with suppress(ConfigError):
                self._end(end)

    def _end(self, end: str) -> None:
        """Notes in ``meta.json`` how this process ended, and what has come of the run if it is finished."""
        self.logger.close()
        meta = self.folder.read_meta()
        if end == "finished":
            meta |= {"finished": now(), "decisions": self.decisions, "validation_ratio": self.best}
            meta |= {"ratio_to_reference": self._best_to_reference, "wall_s": self._wall_s()}
        newest = self.folder.newest_checkpoint()
        ended = end_process(self._process, end, int(newest.name) if newest else 0)
        self.folder.write_meta({**meta, "processes": [*meta["processes"][:-1], ended]})

    def _open_board(self) -> None:
        """Opens where curves go, and writes there what the run is made of."""
        self.board = Board(self.folder.path, self.decisions or None)
        self.logger = Logger(None, [self.board])
        self.board.begin(*shown_settings(self.spec))
        meta = {**self.folder.read_meta(), "validation": describe_validation(self.spec)}
        for tag, name, language in (("configuration", "config.yaml", "yaml"), ("command", "command.txt", "bash")):
            path = self.folder.path / name
            if path.is_file():
                self.board.text(f"run/{tag}", code_block(path.read_text(encoding="utf-8"), language))
        self.board.text("run/versions", code_block(yaml.safe_dump(meta, sort_keys=False, width=100), "yaml"))

    def _start(self) -> None:
        """Starts learning; what has not been trained yet is validated first."""
        if self._resumed is not None:
            self.go_on(self._resumed, self._stream)
            return
        self._begin()
        if self.decisions == 0:
            self.log(self._validate(), 0)
            self._boundary = self.decisions, self._files(self._stream)
            self._save()
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
            self._boundary = self.decisions, self._files()
            self._save()
            if not last:
                self._begin()
        else:
            self._boundary = self.decisions, self._files(self._stream)
            if time.monotonic() - self._saved_s >= spec.checkpoint_minutes * 60:
                self._save()
        self.watch(self)

    def _save(self) -> None:
        """Makes the checkpoint of the last whole update, if there is none yet."""
        if self._boundary is not None:
            self.folder.save_checkpoint(*self._boundary)
            self._boundary, self._saved_s = None, time.monotonic()

    def _files(self, began: int | None = None) -> dict[str, bytes]:
        """Returns the files of a checkpoint; of one that is no regular one, ``began`` says when present streams did."""
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
        best = {f"best/{name}": content for name, content in self._best_files.items()}
        return {**self.state(), **midway, **best, COUNTERS: text.encode(), "config.yaml": self._config}

    def _validate(self) -> dict[str, float]:
        """Keeps the policy if it is the best so far, and returns what TensorBoard shows of it."""
        started, policy, at = time.perf_counter(), self.policy(), self.decisions
        found = self.latest = self._validator(policy)
        if not is_finite(found.bounds) or not is_finite(found.references):
            raise NotFiniteError("a ratio of the validation", {"bounds": found.bounds, "references": found.references})
        self.folder.append_rows("evaluations.csv", EVALUATION_COLUMNS, [(at, *row) for row in found.rows])
        if self.best is None or found.to_bound < self.best:
            self.best, self._best_to_reference = found.to_bound, found.to_reference
            self._best_files = self.folder.save_best(policy, self.card(policy, self.best))
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
