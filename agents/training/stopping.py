"""Who may train in a run folder, and how a run is asked to stop: by Ctrl-C, or by a signal that means the same."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dysharp_env.config import ConfigError

try:
    import fcntl
except ImportError:  # not on Windows, where nobody is kept out
    fcntl = None  # type: ignore[assignment]

# What schedulers of jobs, terminals that close and people send before they kill.
POLITE = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))


_held = 0  # blocks of ``held`` that this process is in


class Stop:
    """Whether somebody has asked this process to end.

    Attributes:
        asked: Whether somebody has.
        waits: Whether that was in a block of ``held``, which is not over yet.
    """

    def __init__(self) -> None:
        """Nobody has."""
        self.asked = self.waits = False

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal that asks to end."""
        self.asked = True
        if _held:
            self.waits = True
        else:
            raise KeyboardInterrupt

    def obey(self) -> None:
        """Raises KeyboardInterrupt if somebody has asked: the first may have been raised where it is swallowed."""
        if self.asked:
            raise KeyboardInterrupt


_stops: list[Stop] = []  # of this process, the one that signals come to last


@contextmanager
def held() -> Iterator[None]:
    """Lets signals that ask to end wait until a block is over: half a file is nothing to stop at.

    Libraries that are interrupted while they close or remove files may also report something else in its place.
    """
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1
    stop = _stops[-1] if _stops else None
    if stop is not None and stop.waits and not _held:
        stop.waits = False
        raise KeyboardInterrupt


@contextmanager
def politely() -> Iterator[Stop]:
    """Lets signals that ask to end raise ``KeyboardInterrupt``, as Ctrl-C does, in the main thread.

    A process that was started with such a signal ignored, as ``nohup`` does, goes on ignoring it.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *POLITE)}
    ours = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    _stops.append(stop)
    try:
        for number in ours:
            signal.signal(number, stop.interrupt)
        yield stop
    finally:
        for number in ours:
            signal.signal(number, before[number])
        _stops.remove(stop)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in a folder, as long as this one lives.

    Raises:
        ConfigError: Another one trains there.
    """
    if fcntl is None:
        yield
        return
    held = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"run folder '{folder}' is in use: another process trains there") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(held)
