"""Whatever a file is, its parser says what is wrong with it in one line, at once, and in little memory."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.corpus.cases import CASES, Case
from tests.corpus.parsers import PARSERS

ROOT = Path(__file__).resolve().parents[2]
MOST_S, MOST_MB = 2.0, 300
_MOST_LETTERS = 4100
_HANGS_S = 60


def fault_of(status: int, out: str, err: str) -> str | None:
    """Returns what is wrong with how a command ended that was given a file of the corpus."""
    lines = err.splitlines()
    if status != 2:
        return f"exit status {status}: {err[-300:]}"
    if len(lines) != 1 or not lines[0].startswith("error: ") or out:
        return f"not one line: {out[-200:]!r} {err[-300:]!r}"
    if len(lines[0]) > _MOST_LETTERS or re.search(r"\S{260}", lines[0]):
        return f"a line of {len(lines[0])} letters: {lines[0][:300]}"
    return None if lines[0].isprintable() else f"what cannot be printed: {lines[0]!a}"


def of_parser(name: str) -> list[Case]:
    return [case for case in CASES if case.parser.name == name]


class Ended(NamedTuple):
    """How a command ended, what it printed, and processor seconds and megabytes beyond what was taken before."""

    status: int
    out: str
    err: str
    took_s: float
    more_mb: float


def run_forked(cases: list[Case], folder: Path) -> list[Ended]:
    """Returns how the command ended on each file, in a fork of this process: fewer than there are if one ends it."""
    child = os.fork()
    if child == 0:
        with (folder / "ended").open("w") as told, contextlib.suppress(BaseException):
            before_kb = _resident_kb()
            for place, case in enumerate(cases):
                signal.alarm(_HANGS_S)
                (folder / str(place)).mkdir()
                path = case.write(folder / str(place))
                began_s = time.process_time()
                with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
                    try:
                        status = case.parser.main(path)
                    except BaseException:
                        status = 99
                        traceback.print_exc()
                took_s = time.process_time() - began_s
                more_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024
                told.write(json.dumps([status, out.getvalue(), err.getvalue(), took_s, more_mb]) + "\n")
                told.flush()
        os._exit(0)
    os.waitpid(child, 0)
    return [Ended(*json.loads(line)) for line in (folder / "ended").read_text().splitlines()]


def _resident_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_reads_what_is_whole_and_refuses_its_files(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a fork of a process that has loaded what the command needs; megabytes are those of all its files together."""
    parser = PARSERS[name]
    if parser.library and importlib.util.find_spec(parser.library) is None:
        pytest.skip(f"needs {parser.library}")
    whole = tmp_path / "whole" / parser.file
    whole.parent.mkdir(parents=True)
    assert parser.main(whole) == 2  # there is none yet
    parser.beside(tmp_path / "whole")
    whole.write_bytes(parser.whole())
    parser.read(whole)  # nothing is refused because all is
    cases = of_parser(name)
    ends = run_forked(cases, tmp_path)
    capsys.readouterr()
    found = [f"{cases[len(ends)].name}: ends the process, or hangs"] if len(ends) < len(cases) else []
    for case, ended in zip(cases, ends, strict=False):
        fault = fault_of(*ended[:3])
        if fault is None and (ended.took_s > MOST_S or ended.more_mb > MOST_MB):
            fault = f"{ended.took_s:.1f} s and {ended.more_mb:.0f} MB"
        found += [f"{case.name}: {fault}"] if fault else []
    worst = f"{max(ended.took_s for ended in ends):.2f} s and {max(ended.more_mb for ended in ends):.0f} MB more"
    print(f"{name}: {len(cases)} files, at most {worst}")
    assert not found, "\n".join(found)


def test_there_are_enough_and_no_name_is_twice() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len({*names}) >= 150
    assert all(len(of_parser(name)) >= 9 for name in PARSERS)


def test_faults_are_seen() -> None:
    assert fault_of(2, "", "error: 'x' is no file\n") is None
    for status, out, err in (
        (1, "", "error: x\n"),
        (2, "x", "error: x\n"),
        (2, "", "Traceback\nerror: x\n"),
        (2, "", "error: " + "x" * 300),
        (2, "", "error: \x1b[2J\n"),
    ):
        assert fault_of(status, out, err)


def run_alone(argv: list[str], folder: Path) -> tuple[int, str, str, float, float]:
    """Returns exit status, what was printed, processor seconds and peak megabytes of a process."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen([sys.executable, *argv], env=env, stdout=out, stderr=err)
        _, ended, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(ended)
    printed = [(folder / name).read_text(encoding="utf-8", errors="surrogateescape") for name in ("out", "err")]
    return process.returncode, *printed, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_each_in_a_process_of_its_own(name: str, tmp_path: Path) -> None:
    """Takes half an hour; processor time and peak memory are those beyond what the file that is not there takes."""
    if (library := PARSERS[name].library) and importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}")
    cases = of_parser(name)
    worst_s = worst_mb = 0.0
    found = []
    (tmp_path / "run").mkdir()
    # Importing the command, its libraries and what its options list.
    before = min(run_alone(PARSERS[name].argv(tmp_path / "run" / "a" / PARSERS[name].file), tmp_path)[3:] for _ in "12")
    for place, case in enumerate(cases):
        (tmp_path / str(place)).mkdir()
        *ended, took_s, peak_mb = run_alone(case.parser.argv(case.write(tmp_path / str(place))), tmp_path)
        more_s, more_mb = took_s - before[0], peak_mb - before[1]
        worst_s, worst_mb = max(worst_s, more_s), max(worst_mb, more_mb)
        fault = fault_of(*ended)
        if fault is None and (more_s > MOST_S or more_mb > MOST_MB):
            fault = f"{more_s:.1f} s and {more_mb:.0f} MB"
        found += [f"{case.name}: {fault}"] if fault else []
    print(f"{name}: {len(cases)} files, at most {worst_s:.2f} s and {worst_mb:.0f} MB more")
    assert not found, "\n".join(found)
