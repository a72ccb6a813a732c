"""The engine is compiled ahead of its first use, and a user who waits for that is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dysharp_env.schedules import load_schedule, simulate
from dysharp_env.simulator import warmup
from dysharp_env.simulator.kernel.loop import advance
from dysharp_env.workload import ScenarioSpec


class FakeTimer:
    """A timer on a clock that stands still unless it is moved."""

    running: list[FakeTimer] = []

    def __init__(self, interval: float, function: Callable[..., None], args: tuple) -> None:
        self.interval, self.function, self.args = interval, function, args

    def start(self) -> None:
        self.running.append(self)

    def cancel(self) -> None:
        self.running.remove(self)


class FakeKernel:
    """A kernel whose compilation moves the clock on."""

    signatures = ()

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def compile(self, signature: tuple) -> None:
        for timer in FakeTimer.running:
            if timer.interval <= self.seconds:
                timer.function(*timer.args)


@pytest.mark.parametrize(("seconds", "announced"), [(2.9, []), (3.0, [warmup.NOTICE]), (60.0, [warmup.NOTICE])])
def test_only_a_long_compilation_is_announced(
    seconds: float, announced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr("threading.Timer", FakeTimer)
    monkeypatch.setattr(warmup, "advance", FakeKernel(seconds))
    warmup.ensure_compiled(lines.append, patience_s=3.0)
    assert lines == announced
    assert not FakeTimer.running


def test_it_compiles_what_the_engine_calls() -> None:
    warmup.ensure_compiled(print)
    signatures = len(advance.signatures)
    warmup.ensure_compiled(print)
    scenario = ScenarioSpec(gpus=2, tokens=2).build()
    simulate(scenario.system, scenario.draw(0), load_schedule("deepep"))
    assert len(advance.signatures) == signatures == 1
