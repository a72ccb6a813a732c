"""The cache of machine code never stands in the way: what cannot be written or read there is compiled."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dysharp_env import native as module

ROOT = Path(__file__).resolve().parents[1]
# A function that says on a line of a file that it is being compiled, and returns twice its argument.
SOURCE = """
import sys, time
from numba.extending import overload
from dysharp_env.native import native

def slow(x):
    raise NotImplementedError

@overload(slow)
def _slow(x):
    with open(sys.argv[1], "a") as log:
        log.write("compiled\\n")
    time.sleep(float(sys.argv[2]))
    return lambda x: 2 * x

@native
def twice(x):
    return slow(x)

print(twice(21))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SOURCE)
    return path


def start(script: Path, sleep_s: float = 0.0, **environment: str) -> subprocess.Popen[str]:
    cache = {"NUMBA_CACHE_DIR": str(script.parent / "cache")}
    return subprocess.Popen(
        [sys.executable, str(script), str(script.parent / "log"), str(sleep_s)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **cache, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(script: Path, **environment: str) -> int:
    """Runs the script, which must answer; returns how often its function has been compiled so far."""
    process = start(script, **environment)
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "42\n")
    return (script.parent / "log").read_text().count("compiled")


def test_what_is_kept_is_not_compiled_again(script: Path) -> None:
    assert [run(script), run(script)] == [1, 1]


@pytest.mark.parametrize(("ending", "damage"), [("nbi", "cut"), ("nbi", "other"), ("nbc", "cut"), ("nbc", "changed")])
def test_a_damaged_file_is_a_miss(script: Path, ending: str, damage: str) -> None:
    assert run(script) == 1
    (path,) = (script.parent / "cache").rglob(f"*.{ending}")
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "cut": content[:middle],
            "changed": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "other": b"not a cache",
        }[damage]
    )
    assert [run(script), run(script)] == [2, 2]


def test_of_many_that_miss_at_once_one_compiles(script: Path) -> None:
    processes = [start(script, 1.0) for _ in range(4)]
    assert [process.communicate(timeout=120)[0] for process in processes] == ["42\n"] * 4
    assert (script.parent / "log").read_text().count("compiled") == 1


def test_a_lock_does_not_outlive_its_process(script: Path) -> None:
    first = start(script, 60.0)
    while not (script.parent / "log").exists():
        time.sleep(0.02)
    first.kill()
    first.wait()
    assert run(script) == 2


def test_it_is_compiled_whatever_numba_is_told(script: Path) -> None:
    assert run(script, NUMBA_DISABLE_JIT="1") == 1


def test_folders_are_tried_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, home, temporary = tmp_path / "package", tmp_path / "home", tmp_path / "temporary"
    for folder in (package, home, temporary):
        folder.mkdir()
    monkeypatch.setattr(module, "_PACKAGE", package)
    monkeypatch.setattr(module.config, "CACHE_DIR", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(temporary))
    own = temporary / f"dysharp_env-{os.getuid()}"
    assert module.cache_root() == package / "__pycache__"
    # A file in a folder's place is as good as no permission, and so for root too.
    _block(package / "__pycache__")
    assert module.cache_root() == home / ".cache" / "dysharp_env"
    monkeypatch.setenv("HOME", str(package / "__pycache__"))
    assert module.cache_root() == own and own.stat().st_mode & 0o777 == 0o700
    own.chmod(0o777)
    assert module.cache_root() is None
    monkeypatch.setattr(module.config, "CACHE_DIR", str(tmp_path / "mine"))
    assert module.cache_root() == tmp_path / "mine"


def _block(folder: Path) -> None:
    if folder.is_dir():
        folder.rmdir()
    folder.write_text("")


def test_where_nothing_can_be_written_every_run_compiles() -> None:
    code = (
        "import dysharp_env.native as native; native._is_writable = lambda folder: False;"
        "twice = native.native(lambda x: 2 * x); print(twice(21), twice.stats.cache_path)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "42 None\n"
