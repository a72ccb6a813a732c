"""Kills trainings at random moments, resumes them to their ends, and compares with one that nobody stopped.

``python -m tests.agents.training.kills --kills 100 --polite 20`` ends with the counts as JSON. Every training is a
process of its own, forked from this one, which has loaded all that takes long, so that most moments are moments of
training. Moments are uniform over the length of a run, from its first write on, or uniform over its file operations.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from agents.train import main as train_main
from agents.training.stopping import POLITE
from tests.agents.training.tiny import EVOLUTION

COMMON = {"checkpoint_minutes": 0.004, "pictures": False, "opponents": [], "validation": "smoke"}
ENV = {"model": "olmoe", "gpus": 4, "tokens": 16, "routing": "uniform", "exposed": ["dispatch", "gemm", "combine"]}
CONFIGS: dict[str, dict[str, Any]] = {
    "PPO": {
        "name": "killed-ppo",
        "env": {**ENV, "max_candidates": 16, "seeds": [0, 10_000]},
        "total_decisions": 2048,
        "num_envs": 4,
        "eval_every_decisions": 512,
        "checkpoint_every_decisions": 1024,
        "ppo": {"n_steps": 64, "batch_size": 128, "n_epochs": 2},
        "policy": {"hidden": 16, "value_hidden": 16},
    },
    "evolution": {
        **EVOLUTION,
        "name": "killed-evolution",
        "total_decisions": 1600,
        "eval_every_decisions": 400,
        "checkpoint_every_decisions": 800,
    },
}
_WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
_MOST_PROCESSES = 100  # of one run, after which it will never end
_TIMED = {"episodes.csv", "generations.csv"}  # whose last column is wall time


@dataclass
class Ended:
    """How a process ended: its exit status, or minus the signal that killed it; and what it said."""

    status: int
    said: str


class Training:
    """A training process, forked."""

    def __init__(self, argv: list[str], log: Path, at_write: Callable[[], None] = lambda: None) -> None:
        """Starts it; ``at_write`` is called in it before every file operation in its run folder."""
        self.log = log
        self.pid = os.fork()
        if not self.pid:
            _train(argv, log, at_write)

    def wait(self, until: float | None = None) -> int | None:
        """Returns its wait status, or None if it still runs at that time."""
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return status
            if until is not None and time.monotonic() >= until:
                return None
            time.sleep(0.004)

    def ended(self, status: int) -> Ended:
        return Ended(os.waitstatus_to_exitcode(status), self.log.read_text(errors="replace"))


def _train(argv: list[str], log: Path, at_write: Callable[[], None]) -> None:
    """Trains in a process just forked, and never returns."""
    status = 70
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)

        def hook(event: str, args: tuple[Any, ...]) -> None:
            is_write = event in _WRITES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR))
            if is_write and "killed-" in str(args[0]):
                at_write()

        sys.addaudithook(hook)
        status = train_main(argv)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def result(run: Path) -> dict[str, Any]:
    """Returns what must be the same however often a run was stopped."""
    last = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    found: dict[str, Any] = {f"last/{path.name}": path.read_bytes() for path in sorted(last.glob("*.safetensors"))}
    found |= {f"best/{path.name}": path.read_bytes() for path in sorted((run / "best").iterdir())}
    for table in sorted(run.glob("*.csv")):
        lines = table.read_text().splitlines()
        found[table.name] = [line.rpartition(",")[0] if table.name in _TIMED else line for line in lines]
    found["left behind"] = sorted(str(path.relative_to(run)) for path in run.rglob(".*"))
    found["checkpoints"] = last.name
    return found


def _said(root: Path) -> int:
    """Returns how many bytes of command lines processes have written into the run folder."""
    return sum(path.stat().st_size for path in root.glob("killed-*/command.txt"))


class Killer:
    """Stops runs of one trainer again and again.

    Attributes:
        counts: How often what happened.
        wrong: What was not as it must be.
    """

    def __init__(self, trainer: str, folder: Path, rng: random.Random) -> None:
        """Trains once without a stop, which says how long a run is and what comes of it."""
        self.trainer, self.folder, self.rng = trainer, folder, rng
        self.counts, self.wrong = Counter[str](), list[str]()
        self.config = folder / f"{trainer}.yaml"
        self.config.write_text(yaml.safe_dump({**CONFIGS[trainer], **COMMON}))
        warm = [f"--set={key}=100" for key in ("total_decisions", "eval_every_decisions")]
        assert train_main(["--config", str(self.config), "--run-dir", str(folder / "warm"), "--quiet", *warm]) == 0
        writes = folder / f"{trainer}.writes"
        writes.touch()

        def note() -> None:
            os.write(handle, b".")

        handle = os.open(writes, os.O_WRONLY | os.O_APPEND)
        root = self._root()
        process = self._started(root, None, note)
        began = self._first_write(process, root)
        ended = process.ended(process.wait() or 0)
        os.close(handle)
        assert ended.status == 0, ended.said
        assert b"." in writes.read_bytes()
        self.length_s, self.writes = time.monotonic() - began, writes.stat().st_size
        self.whole = self._result(root)

    def _root(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder, prefix=f"{self.trainer}-"))

    def _run(self, root: Path) -> Path | None:
        """Returns the run folder; None if a process was killed before it had made one, and another begins anew."""
        found = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
        assert len(found) <= 1, found
        return found[0] if found else None

    def _started(self, root: Path, run: Path | None, at_write: Callable[[], None] = lambda: None) -> Training:
        begin = ["--config", str(self.config), "--run-dir", str(root)]
        argv = begin if run is None else ["--resume", str(run)]
        return Training(argv, root / "said.txt", at_write)

    def _first_write(self, process: Training, root: Path, before: int | None = None) -> float:
        """Waits until there is a run folder, and until it holds more bytes of commands than before; returns when."""
        while not [path for path in root.glob("killed-*")] or (before is not None and _said(root) <= before):
            time.sleep(0.0005)
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
        return time.monotonic()

    def stop(self, number: int, times: int, at_writes: bool = False) -> None:
        """Trains a run that is stopped by a signal so many times, if it does not end before, and compares."""
        root, run = self._root(), None
        for place in range(_MOST_PROCESSES):
            stopping = place < times
            at_write = self._suicide(number) if at_writes and stopping else lambda: None
            # A process that has not begun yet knows of no polite end.
            before = None if number == signal.SIGKILL else _said(root)
            process = self._started(root, run, at_write)
            began = self._first_write(process, root, before)
            run = self._run(root)
            until = began + self.rng.uniform(0, self.length_s) if stopping and not at_writes else None
            status = process.wait(until)
            if status is None:
                os.kill(process.pid, number)
                status = process.wait()
            ended = process.ended(status or 0)
            if ended.status == 0:
                break
            self._judge(number, ended, run)
        else:
            self.wrong.append(f"{root}: it never ended")
            return
        self._compare(root)
        shutil.rmtree(root)

    def _suicide(self, number: int) -> Callable[[], None]:
        left = self.rng.randrange(self.writes)

        def at_write() -> None:
            nonlocal left
            left -= 1
            if left == -1:
                os.kill(os.getpid(), number)

        return at_write

    def _judge(self, number: int, ended: Ended, run: Path | None) -> None:
        """Counts a stop, and checks that it was one, in a line where it was a polite one."""
        name = signal.Signals(number).name
        self.counts[name] += 1
        if number == signal.SIGKILL:
            is_right = ended.status == -number
        else:
            is_right = ended.status == 130 and f"continue with: python -m agents.train --resume {run}" in ended.said
            is_right |= "\nrun folder: " in ended.said  # all was over; whoever is late meets no training
            is_right &= "Traceback" not in ended.said
        if not is_right:
            self.wrong.append(f"{run or 'no folder yet'}: after {name} status {ended.status}: {ended.said[-600:]}")

    def _result(self, root: Path) -> dict[str, Any]:
        run = self._run(root)
        assert run is not None, root
        return result(run)

    def _compare(self, root: Path) -> None:
        found = self._result(root)
        self.counts["runs"] += 1
        differ = [key for key in {**self.whole, **found} if found.get(key) != self.whole.get(key)]
        self.counts["runs that end as one that was not stopped"] += not differ
        if differ:
            self.wrong.append(f"{root}: {differ} differ from a run that was not stopped")

    def fill_disk(self) -> None:
        """Trains on a disk that is full from a random file operation on, then with room again, and compares."""
        root, left = self._root(), self.rng.randrange(self.writes)

        def at_write() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        process = self._started(root, None, at_write)
        ended = process.ended(process.wait() or 0)
        if ended.status == 0:  # it took fewer file operations than the first run
            shutil.rmtree(root)
            return
        self.counts["full disks"] += 1
        said = [line for line in ended.said.splitlines() if line.startswith("error: ")]
        if ended.status != 2 or len(said) != 1 or "No space left" not in said[0] or "Traceback" in ended.said:
            self.wrong.append(f"{root}: on a full disk status {ended.status}: {ended.said[-600:]}")
            return
        runs = [path for path in root.glob("killed-*")]
        if not runs:  # it never came to a checkpoint
            shutil.rmtree(root)
            return
        process = self._started(root, runs[0])
        ended = process.ended(process.wait() or 0)
        if ended.status != 0:
            self.wrong.append(f"{runs[0]}: after a full disk status {ended.status}: {ended.said[-600:]}")
            return
        self._compare(root)
        shutil.rmtree(root)


def missions(args: argparse.Namespace, rng: random.Random) -> Iterator[tuple[Callable[[Killer], None], str, int]]:
    """Yields what to do to a run, under what it is counted, and how many of that there must be of each trainer."""
    yield lambda killer: killer.stop(signal.SIGKILL, rng.randint(1, 4)), "SIGKILL", args.kills
    for number in (signal.SIGINT, *POLITE):
        yield lambda killer, n=number: killer.stop(n, rng.randint(1, 3)), signal.Signals(number).name, args.polite
    yield lambda killer: killer.stop(signal.SIGKILL, rng.randint(1, 4), at_writes=True), "SIGKILL", args.at_writes
    yield lambda killer: killer.fill_disk(), "full disks", args.full


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="SIGKILLs of both trainers together")
    parser.add_argument("--polite", type=int, default=0, metavar="N", help="signals of each polite sort, likewise")
    parser.add_argument("--at-writes", type=int, default=0, metavar="N", help="SIGKILLs at file operations, likewise")
    parser.add_argument("--full", type=int, default=0, metavar="N", help="disks that become full, likewise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    started, rng = time.monotonic(), random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    killers = {trainer: Killer(trainer, folder, rng) for trainer in CONFIGS}
    told: dict[str, Any] = {"seed": args.seed, "trainers": {}}
    for place, (trainer, killer) in enumerate(killers.items()):
        before: Counter[str] = Counter()
        for act, counted, wanted in missions(args, rng):
            share = (wanted + 1 - place) // len(killers)
            while killer.counts[counted] - before[counted] < share:
                act(killer)
            before = killer.counts.copy()
            if wanted:
                print(f"{trainer}: {counted}: {dict(before)}, {len(killer.wrong)} wrong", file=sys.stderr, flush=True)
        told["trainers"][trainer] = {
            "run_s": round(killer.length_s, 2),
            "file_operations": killer.writes,
            **killer.counts,
            "wrong": killer.wrong,
        }
    told["wall_s"] = round(time.monotonic() - started, 1)
    text = json.dumps(told, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    is_wrong = any(killer.wrong for killer in killers.values())
    if not is_wrong:
        shutil.rmtree(folder)
    return int(is_wrong)


if __name__ == "__main__":
    sys.exit(main())
