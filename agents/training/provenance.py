"""Who trained a run: every process with its versions, commit and machine, for ``meta.json``."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dysharp_env import __version__
from dysharp_env.config import ConfigError, Spec

_PACKAGES = ("torch", "stable-baselines3", "sb3-contrib", "gymnasium", "numpy", "numba", "safetensors")


def describe_machine() -> dict[str, Any]:
    """Returns versions, commit and machine."""
    return {
        "version": __version__,
        "commit": _git_commit(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "processor": _processor()},
    }


def begin_process(from_decisions: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what there is to say of this process as it begins to train; it has not ended until ``end_process``.

    Args:
        from_decisions: Decisions that it goes on from.
        changes: What it changes; see ``changed_settings``.
    """
    began = {"started": now(), "ended": None, "end": None, "from_decisions": from_decisions, "to_decisions": None}
    return {**began, "changes": {**changes}, **describe_machine()}


def end_process(process: Mapping[str, Any], end: str, decisions: int) -> dict[str, Any]:
    """Returns what there is to say of a process that ends; of one that is killed nobody says so.

    Args:
        process: What ``begin_process`` returned.
        end: ``finished``, ``stopped`` or ``failed``.
        decisions: Decisions that can be gone on from.
    """
    return {**process, "ended": now(), "end": end, "to_decisions": decisions}


def processes_of(meta: Mapping[str, Any], source: Path) -> list[dict[str, Any]]:
    """Returns the processes that have trained a run so far; earlier versions wrote of the first one alone.

    Raises:
        ConfigError: They are damaged.
    """
    processes = meta.get("processes")
    if processes is None:
        first = {key: meta[key] for key in ("started", *_OF_PROCESS) if key in meta}
        return [first] if first else []
    if not isinstance(processes, list) or not all(isinstance(each, dict) for each in processes):
        raise ConfigError(f"'{source}' is damaged: processes must be a list of mappings")
    return [*processes]


_OF_PROCESS = ("version", "commit", "python", "packages", "machine")


def without_process(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is not of a process in ``meta.json`` of earlier versions."""
    return {key: value for key, value in meta.items() if key not in _OF_PROCESS}


def changed_settings(before: Spec, after: Spec) -> dict[str, list[Any]]:
    """Returns the dotted settings that differ, each with what it was and what it is."""
    old, new = _flat(before.model_dump(mode="json")), _flat(after.model_dump(mode="json"))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return {key: [old.get(key), new.get(key)] for key in keys}


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def now() -> str:
    """Returns the time as ``meta.json`` has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _git_commit() -> str | None:
    try:
        here = Path(__file__).resolve().parent
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    if sys.platform.startswith("linux"):
        try:
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
        except OSError:
            pass
    return platform.processor()
