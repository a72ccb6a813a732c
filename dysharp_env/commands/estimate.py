"""How long simulations will take, said before they begin where that is minutes; what would never end is refused.

A small layer of the same kind is tried, and a layer takes as much longer as it has more (token, expert)s.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dysharp_env.commands.progress import Track, duration, track
from dysharp_env.config import ConfigError
from dysharp_env.report.records import run_timed
from dysharp_env.schedules.opponent import Contender
from dysharp_env.simulator.warmup import ensure_compiled, notice
from dysharp_env.workload import Scenario

_SAID_S = 60.0  # what takes as long is said before
_MOST_S = 30 * 86400.0
# Of a (token, expert) on one core of a server: 2 to 4 measured, of packets one for each.
_SLOT_S, _PACKETS = 3e-6, 16
_TRIED_S = 15.0  # by that: what takes longer is worth a try
_TRIAL_SLOTS, _MOST_TRIED = 50_000, 4  # of a small layer; schedules that are tried
_LOOK_S = 1.0
_ALMOST = 0.99  # of what a run has taken: it is not over before it is


@contextmanager
def expected(
    scenarios: Sequence[Scenario], contenders: Sequence[Contender], resolution: str
) -> Iterator[Callable[[], None]]:
    """Says how long it takes to run every layer of scenarios under every contender, if that is long, and how far it is.

    Args:
        scenarios: Machines and layers.
        contenders: Who plays each.
        resolution: What moves through the network as one.

    Yields:
        What is called after each run, which are in the order of the scenarios.

    Raises:
        ConfigError: It would never end.
    """
    sizes = [scenario.source.num_slots for scenario in scenarios for _ in range(scenario.source.num_layers)]
    runs = [size for size in sizes for _ in contenders]
    slot_s = _SLOT_S * (_PACKETS if resolution == "packet" else 1)
    if slot_s * sum(runs) > _TRIED_S:
        largest = max(scenarios, key=lambda scenario: scenario.source.num_slots)
        slot_s = _tried_s(largest, contenders, resolution) or slot_s
    total_s = slot_s * sum(runs)
    what = f"{len(runs)} simulation{'s' * (len(runs) > 1)} of up to {max(sizes, default=0):,} (token, expert)s"
    if total_s > _MOST_S:
        raise ConfigError(f"{what} would take about {total_s / 86400:.0f} days; ask for fewer, or for fewer tokens")
    if total_s < _SAID_S:
        yield lambda: None
        return
    notice(f"{what} will take about {duration(total_s)}; how far they are follows")
    with track("simulates", total_s) as shown:
        progress = _Progress(shown, [slot_s * size for size in runs])
        thread = threading.Thread(target=progress.look, daemon=True)
        thread.start()
        try:
            yield progress.next
        finally:
            progress.over.set()
            thread.join()


def _tried_s(scenario: Scenario, contenders: Sequence[Contender], resolution: str) -> float | None:
    """Returns what a (token, expert) of a smaller layer took, in seconds; None if there is no smaller one."""
    tokens = max(1, _TRIAL_SLOTS // (scenario.system.num_gpus * scenario.layer.top_k))
    try:
        small = scenario.spec.model_copy(update={"tokens": tokens}).build()
    except ConfigError:  # a trace that has fewer, or GPUs of which each has its own
        return None
    if small.source.num_slots >= scenario.source.num_slots:
        return None
    ensure_compiled()
    workload = small.draw(0)
    tried = contenders[:: -(-len(contenders) // _MOST_TRIED)]
    took = [run_timed(small, workload, contender, resolution=resolution).wall_s for contender in tried]
    return sum(took) / len(took) / small.source.num_slots


class _Progress:
    """How far runs are: those that are over, and of the present one as much as time has passed of what it may take."""

    def __init__(self, shown: Track, expected_s: Sequence[float]) -> None:
        self.over = threading.Event()
        self._shown, self._expected_s = shown, expected_s
        self._place, self._began_s = 0, time.monotonic()

    def next(self) -> None:
        """Goes on with the next run."""
        self._place, self._began_s = self._place + 1, time.monotonic()

    def look(self) -> None:
        """Says how far they are until they are over."""
        while not self.over.wait(_LOOK_S):
            place, took_s = self._place, time.monotonic() - self._began_s
            present_s = self._expected_s[place] if place < len(self._expected_s) else 0.0
            self._shown.at(sum(self._expected_s[:place]) + min(took_s, _ALMOST * present_s))
