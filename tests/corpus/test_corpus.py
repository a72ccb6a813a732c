"""Whatever a file is, its parser says what is wrong with it in one line, at once, and in little memory."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.corpus.cases import CASES, Case
from tests.corpus.parsers import PARSERS
from tests.ending import Ended, fault_of, run_forked

ROOT = Path(__file__).resolve().parents[2]


def of_parser(name: str) -> list[Case]:
    return [case for case in CASES if case.parser.name == name]


def prepared(case: Case, folder: Path) -> Callable[[], int]:
    """Returns the command of a file of the corpus, which it writes."""
    folder.mkdir()
    path = case.write(folder)
    return lambda: case.parser.main(path)


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
    ends = run_forked([partial(prepared, case, tmp_path / str(place)) for place, case in enumerate(cases)], tmp_path)
    capsys.readouterr()
    found = [f"{cases[len(ends)].name}: ends the process, or hangs"] if len(ends) < len(cases) else []
    for case, ended in zip(cases, ends, strict=False):
        fault = ended.fault()
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


# Starts a process and tells how it ended. Peak memory counts that of whoever it is started by, so that has to be small.
_LAUNCHER = """
import json, os, sys
child = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[2:]], os.environ)
_, ended, usage = os.wait4(child, 0)
told = os.waitstatus_to_exitcode(ended), usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
with open(sys.argv[1], "w") as file:
    json.dump(told, file)
"""


def run_alone(argv: Sequence[str], folder: Path) -> Ended:
    """Returns how a process of Python ended, with all processor seconds and megabytes that it took."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        launcher = [sys.executable, "-S", "-c", _LAUNCHER, str(folder / "told"), *argv]
        subprocess.run(launcher, env=env, stdout=out, stderr=err, check=True)
    printed = [(folder / name).read_text(encoding="utf-8", errors="surrogateescape") for name in ("out", "err")]
    status, took_s, peak_mb = json.loads((folder / "told").read_text())
    return Ended(status, *printed, took_s, peak_mb)


def test_processes_are_measured(tmp_path: Path) -> None:
    """This one is larger than what it starts."""
    little = run_alone(["-S", "-c", "print(1)"], tmp_path)
    code = "x = b'x' * (200 << 20); sum(range(10_000_000)); raise SystemExit(3)"
    much = run_alone(["-S", "-c", code], tmp_path)
    assert (little.status, little.out, much.status) == (0, "1\n", 3)
    assert little.more_mb < 60 and 180 < much.more_mb - little.more_mb < 220
    assert much.took_s > little.took_s + 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_each_in_a_process_of_its_own(name: str, tmp_path: Path) -> None:
    """Takes half an hour; processor time and peak memory are those beyond imports."""
    if (library := PARSERS[name].library) and importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}")
    cases = of_parser(name)
    worst_s = worst_mb = 0.0
    found = []
    (tmp_path / "run").mkdir()
    # Importing the command, its libraries and what its options list: by a file that is not there.
    missing = PARSERS[name].argv(tmp_path / "run" / "a" / PARSERS[name].file)
    code = f"import {library or 'sys'}, runpy, sys; runpy.run_module(sys.argv.pop(1), None, '__main__', True)"
    before = min((run_alone(["-c", code, *missing[1:]], tmp_path) for _ in "12"), key=lambda ended: ended.took_s)
    assert before.status == 2, before.err
    for place, case in enumerate(cases):
        (tmp_path / str(place)).mkdir()
        ended = run_alone(case.parser.argv(case.write(tmp_path / str(place))), tmp_path)
        ended = ended._replace(took_s=ended.took_s - before.took_s, more_mb=ended.more_mb - before.more_mb)
        worst_s, worst_mb = max(worst_s, ended.took_s), max(worst_mb, ended.more_mb)
        fault = ended.fault()
        found += [f"{case.name}: {fault}"] if fault else []
    print(f"{name}: {len(cases)} files, at most {worst_s:.2f} s and {worst_mb:.0f} MB more")
    assert not found, "\n".join(found)
