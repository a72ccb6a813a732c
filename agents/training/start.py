"""Starts, continues and shows training runs, by whichever algorithm they ask for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from dysharp_env.commands.progress import track
from dysharp_env.config import ConfigError, load_spec, preset_names
from dysharp_env.envs.episodes import Episodes
from dysharp_env.schedules import Exposure, Starter, load_schedule
from dysharp_env.workers import Threads, Workers

from ..exact.tiny import VALIDATION_SEED
from .evolution import EvolutionRun
from .held_out import validation_suite
from .planning import PlanRun
from .ppo import PpoRun
from .run_folder import RunFolder
from .run_loop import TrainingRun
from .spec import TrainSpec
from .stopping import alone_in, politely
from .validation import Validation, draw_problems


def read_run_dir(given: str) -> Path:
    """Returns the folder that ``--run-dir`` names.

    Raises:
        ConfigError: It names none.
    """
    if not given:
        raise ConfigError("run-dir='' must name a folder, such as 'runs'")
    return Path(given)


def load_config(name: str) -> TrainSpec:
    """Returns the settings of a preset or a .yaml file; a path into ``configs/train`` works from any folder.

    Raises:
        ConfigError: There are none of that name, or one is wrong.
    """
    path = Path(name)
    if not path.is_file() and path.parent.as_posix() == "configs/train" and path.stem in preset_names("train"):
        name = path.stem
    return load_spec(TrainSpec, "train", name)


def start_run(spec: TrainSpec, root: Path) -> RunFolder:
    """Returns a new run folder, after checking that the spec's names can be read: a mistake leaves nothing behind.

    Raises:
        ConfigError: A scenario, schedule or suite is unknown or does not fit, or the folder cannot be made.
    """
    _require_fit(spec)
    return RunFolder.create(root, spec.name, spec.seed, spec)


def _require_fit(spec: TrainSpec) -> None:
    reference, schedule, exposure = load_schedule(spec.reference), load_schedule(spec.env.schedule), spec.env.exposure()
    if spec.evolution is not None and spec.evolution.tiny:
        # Those play on a machine of their own, not in the environment.
        for problem in draw_problems(spec, None, VALIDATION_SEED):
            problem.offer(reference, Exposure())
            problem.offer(schedule, exposure)
        return
    for source in Episodes(spec.env, 1).sources:
        Starter(source.scenario.system, source.scenario.layer, reference)
    for name in spec.opponents:
        load_schedule(name)
    first = validation_suite(spec).draw()[0]
    Starter(first.scenario.system, first.scenario.layer, schedule, exposure=exposure)


def train_with_progress(
    spec: TrainSpec,
    folder: RunFolder,
    command: Sequence[str],
    *,
    resume: bool = False,
    quiet: bool = False,
    workers: Workers | None = None,
) -> float:
    """Trains and says on standard error how far it is; returns the best validation ratio."""
    newest = folder.newest_checkpoint() if resume else None
    before = int(newest.name) if newest else 0
    with track("trains", spec.total_decisions, before=before, quiet=quiet) as shown:
        told: list[Validation | None] = [None]

        def watch(run: TrainingRun) -> None:
            best = "-" if run.best is None else f"{run.best:.3f}"
            recent = "".join(f"{name} {value:.3f} " for name, value in run.recent.items())
            line = "" if run.latest is told[0] else describe_progress(run)
            told[0] = run.latest
            shown.at(run.decisions, f"{run.decisions:,} at {run.rate():,.0f}/s {recent}val {best}", line)

        return train(spec, folder, resume=resume, command=command, watch=watch, workers=workers)


def describe_progress(run: TrainingRun) -> str:
    """Returns what the last validation of a run found, in a line."""
    latest, total = run.latest, run.spec.total_decisions
    assert latest is not None and run.best is not None
    return (
        f"{run.decisions:,} of {total:,} decisions ({run.decisions / total:.0%}):"
        f" {latest.to_reference:.3f} of {run.spec.reference}, {latest.to_bound:.3f} of the bound, best {run.best:.3f}"
    )


def train(
    spec: TrainSpec,
    folder: RunFolder,
    *,
    resume: bool = False,
    command: Sequence[str] = (),
    watch: Callable[[TrainingRun], None] = lambda _: None,
    workers: Workers | None = None,
) -> float:
    """Trains into a run folder and returns the best validation ratio.

    Args:
        spec: The run.
        folder: Where everything is written, ``config.yaml`` included.
        resume: Whether to continue from the folder's newest whole checkpoint, or to begin anew where it has none.
            Nothing is written before it is read.
        command: The command line, for ``command.txt``.
        watch: Called after every update.
        workers: Who plays for evolution; None: threads of this process, as many as the spec says.

    Raises:
        ConfigError: A name in the spec is unknown, the checkpoint cannot be read, another process trains there, or
            something cannot be written or is not finite. A run that never came to a checkpoint leaves no folder.
        KeyboardInterrupt: Somebody has interrupted it, or asked it to end by a signal.
    """
    torch.set_num_threads(1)
    with alone_in(folder.path), politely() as stop:
        is_new = {path.name for path in folder.path.iterdir()} <= {"config.yaml"}

        def watch_both(run: TrainingRun) -> None:
            watch(run)
            stop.obey()

        try:
            return _train(spec, folder, resume, command, watch_both, workers)
        except Exception as error:
            if stop.asked:  # whatever a library has made of being interrupted
                raise KeyboardInterrupt from None
            if is_new and not resume and not folder.checkpoints():
                shutil.rmtree(folder.path, ignore_errors=True)
            if _is_of_memory(error):
                less = "num_envs, ppo.n_steps, env.tokens or evolution.batch"
                raise ConfigError(f"not enough memory: it takes less with smaller {less}{_way_on(folder)}") from None
            raise


def _train(
    spec: TrainSpec,
    folder: RunFolder,
    resume: bool,
    command: Sequence[str],
    watch: Callable[[TrainingRun], None],
    workers: Workers | None,
) -> float:
    if spec.planning is not None:
        with workers or Threads(spec.planning.threads) as playing:
            return _run(PlanRun(spec, folder, watch, playing), resume, command)
    if spec.evolution is None:
        with Threads(spec.torch_threads) as playing:
            return _run(PpoRun(spec, folder, watch, playing), resume, command)
    with workers or Threads(spec.evolution.threads) as playing:
        return _run(EvolutionRun(spec, folder, watch, playing), resume, command)


def _run(run: TrainingRun, resume: bool, command: Sequence[str]) -> float:
    if resume:
        run.restore()
    try:
        return run.run(command)
    except ConfigError as error:
        raise ConfigError(f"{error}{_way_on(run.folder)}") from None


def _way_on(folder: RunFolder) -> str:
    """Returns how to go on, for the end of a line; nothing where there is nothing to go on from."""
    return f"; {folder.way_on()}" if folder.checkpoints() else ""


def _is_of_memory(error: Exception) -> bool:
    """Returns whether an error says that there is too little memory; torch has no sort of its own for that."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error))
