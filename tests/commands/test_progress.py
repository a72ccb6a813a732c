"""How far a command is: plain lines where there is no terminal, and how long the rest takes."""

from __future__ import annotations

import pytest

from dysharp_env.commands import progress
from dysharp_env.commands.progress import Clock, duration, track


def test_the_time_left_follows_from_what_this_process_has_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    clock = Clock(100, before=40)
    assert clock.left() == "? left"
    now, clock.done = 10.0, 60  # 20 in 10 s
    assert clock.left() == "20 s left"
    clock.done = 100
    assert clock.left() == "0 s left"


def test_durations_are_read_at_a_glance() -> None:
    assert [duration(each) for each in (0.4, 59, 60, 200, 7500)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "3 min 20 s",
        "2 h 5 min",
    ]


def test_lines_come_now_and_then_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with track("plays", 10) as shown:
        for done in range(1, 11):
            now += 6.0
            shown.at(done, f"{done} layers")
        shown.at(10, line="one more thing")
    lines = [line[10:] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["plays 20%, 2 layers, 48 s left", "plays 70%, 7 layers, 18 s left", "one more thing, 0 s left"]


def test_what_is_short_or_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with track("plays", 2) as shown:
        shown.at(1)
    with track("plays", 2, quiet=True) as shown:
        shown.at(1, line="a line")
    assert capsys.readouterr().err == ""
