"""Whether there is memory for a layer, asked before any of it is taken: what cannot fit is refused, not attempted."""

from __future__ import annotations

from pathlib import Path

from dysharp_env.files import ConfigError
from dysharp_env.workload.layer import LayerSpec

# Measured on 8 GPUs, 6,144 to 98,304 slots a GPU: routing, its copies, and the engine's records of a (token, expert).
_SLOT_BYTES = 400
# A queue of the switch for every two GPUs, twice in each direction, on several planes; counts of every GPU and expert.
_PAIR_BYTES, _EXPERT_BYTES = 400, 64
_LEAST_BYTES = 1 << 30  # what is asked for without a look at how much there is
_MEMORY = Path("/proc/meminfo")
# Of a container: its limit, and what of it is taken.
_LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
_CGROUPS = Path("/sys/fs/cgroup")


def require_room(layer: LayerSpec, num_gpus: int, tokens: int, what: str = "") -> None:
    """Checks that the memory that is free can hold a layer while it is simulated.

    Args:
        layer: Its shape.
        num_gpus: GPUs.
        tokens: On all of them together.
        what: Whose layer it is, before the message.

    Raises:
        ConfigError: It cannot.
    """
    needed = _SLOT_BYTES * tokens * layer.top_k + _PAIR_BYTES * num_gpus**2 + _EXPERT_BYTES * num_gpus * layer.experts
    if needed <= _LEAST_BYTES:
        return
    free = free_bytes()
    if free is not None and needed > free:
        size = f"{tokens} tokens with top_k={layer.top_k} of {layer.experts} experts on gpus={num_gpus}"
        raise ConfigError(f"{what}{size} need about {_in_words(needed)} of memory; {_in_words(free)} are free")


def free_bytes() -> int | None:
    """Returns the memory that this process can still take, None where the system does not say."""
    found = [_meminfo(), *(_left(*names) for names in _LIMITS)]
    return min((each for each in found if each is not None), default=None)


def _meminfo() -> int | None:
    try:
        lines = _MEMORY.read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _left(limit: str, taken: str) -> int | None:
    try:
        return max(0, int((_CGROUPS / limit).read_text()) - int((_CGROUPS / taken).read_text()))
    except (OSError, ValueError):  # no such file, or no limit: 'max'
        return None


def _in_words(count: int) -> str:
    return f"{count / (1 << 30):.3g} GB"
