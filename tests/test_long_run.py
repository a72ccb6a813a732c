"""The short form of ``make long-run``: hundreds of episodes leave nothing behind in a process."""

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from tests.long_run import WAYS, Look, changes, looks, main

ROOT = Path(__file__).resolve().parents[1]
needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone says what a process holds")


@needs_linux
def test_memory_stays_whatever_is_played() -> None:
    ways = [word for way in WAYS for word in ("--way", way)]
    # How fast it is on a machine that does other things says nothing in so short a time.
    options = ["--episodes", "600", "--memory-mb", "0.3", "--slower", "9"]
    child = subprocess.run(
        [sys.executable, "-m", "tests.long_run", *ways, *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stdout + child.stderr
    assert child.stdout.count("  600 episodes") == len(WAYS)


@needs_linux
def test_what_is_kept_and_what_slows_down_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []

    def keep(episodes: int) -> None:
        kept.append(mmap.mmap(-1, 5000 * episodes))  # not from what this process has freed before
        kept[-1].write(bytes(5000 * episodes))

    moved_mb, _ = changes(list(looks(keep, 1000)))
    assert moved_mb == pytest.approx(5.0, rel=0.2)
    assert changes([Look(0, 0, 0, 7.0), Look(1, 10, 1.0, 9.0), Look(2, 11, 1.04, 6.0)]) == pytest.approx((2.0, 0.04))
    first = [Look(0, 0, 0, 7.0), Look(1, 1, 1.0, 7.0)]
    for last, status in ((Look(2, 1, 1.02, 11.0), 0), (Look(2, 1, 1.04, 7.0), 1), (Look(2, 1, 1.0, 12.1), 1)):
        monkeypatch.setattr("tests.long_run.looks", lambda play, episodes, last=last: [*first, last])
        assert main([]) == status
