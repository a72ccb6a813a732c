"""Where experts live: physical experts, each the weights of one logical expert on one GPU.

A router chooses *logical* experts, of which a layer has ``experts``. A *physical* expert is a slot on a GPU that holds
the weights of one of them; those of one logical expert are its *replicas*. A placement may also hold *copies*, physical
experts whose weights come over the links while the layer runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from dysharp_env.config import ConfigError

NOWHERE = -1  # where a copy's weights come from, of a physical expert that is no copy


@dataclass(frozen=True, eq=False)
class Placement:
    """The physical experts of a layer, in any order. The arrays are read-only copies.

    Attributes:
        num_gpus: GPUs of the layer; any of them may hold none.
        gpu_of_expert: (physical,) int32 the GPU of each.
        logical_of_expert: (physical,) int32 the logical expert of each; by default all of them once, in order.
        copied_from: (physical,) int32 the physical expert, on another GPU, that sends a copy its weights while the
            layer runs; ``NOWHERE`` for those that are there before.

    Raises:
        ConfigError: An id is out of range, no replica of a logical expert is there before the layer, or a copy comes
            from another expert, from its own GPU, or in the end from nowhere.
    """

    num_gpus: int
    gpu_of_expert: np.ndarray
    logical_of_expert: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    copied_from: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))

    def __post_init__(self) -> None:
        gpus = np.asarray(self.gpu_of_expert)
        logical = np.asarray(self.logical_of_expert) if len(self.logical_of_expert) else np.arange(len(gpus))
        sources = np.asarray(self.copied_from) if len(self.copied_from) else np.full(len(gpus), NOWHERE)
        if self.num_gpus < 1:
            raise ConfigError(f"gpus={self.num_gpus} must be at least 1")
        for name, array in (("gpu_of_expert", gpus), ("logical_of_expert", logical), ("copied_from", sources)):
            if array.dtype.kind not in "iu":
                raise ConfigError(f"{name} must hold whole numbers, not {array.dtype}")
            if array.ndim != 1 or len(array) != len(gpus) or len(array) == 0:
                raise ConfigError(f"{name} has shape {array.shape}; it must hold one number for each expert")
        _require_range("gpu_of_expert", gpus, 0, self.num_gpus, "GPU")
        _require_range("logical_of_expert", logical, 0, len(gpus), "expert")
        _require_range("copied_from", sources, NOWHERE, len(gpus), "expert")
        _check_copies(gpus, logical, sources)
        for name, array in (("gpu_of_expert", gpus), ("logical_of_expert", logical), ("copied_from", sources)):
            narrow = np.array(array, np.int32)
            narrow.flags.writeable = False
            object.__setattr__(self, name, narrow)

    def __deepcopy__(self, memo: dict[int, object]) -> Placement:
        return self  # as nothing about it ever changes

    def __len__(self) -> int:
        """Returns how many physical experts there are."""
        return len(self.gpu_of_expert)

    @cached_property
    def num_logical(self) -> int:
        """Logical experts."""
        return int(self.logical_of_expert.max()) + 1

    @cached_property
    def held(self) -> np.ndarray:
        """(gpu,) int64 physical experts that each GPU holds, copies with them."""
        return np.bincount(self.gpu_of_expert, minlength=self.num_gpus)

    @cached_property
    def replicas(self) -> tuple[np.ndarray, np.ndarray]:
        """(logical + 1,) int64 the first place of each expert's replicas, and (physical,) int32 those, in order."""
        first = np.concatenate([[0], np.cumsum(np.bincount(self.logical_of_expert))])
        return first, np.argsort(self.logical_of_expert, kind="stable").astype(np.int32)

    @property
    def is_copy(self) -> np.ndarray:
        """(physical,) bool, whether its weights come while the layer runs."""
        return self.copied_from != NOWHERE

    @cached_property
    def num_copies(self) -> int:
        """Physical experts whose weights come while the layer runs."""
        return int(np.count_nonzero(self.is_copy))

    @cached_property
    def is_plain(self) -> bool:
        """Whether every logical expert is there once, under its own number."""
        return np.array_equal(self.logical_of_expert, np.arange(len(self)))


def _require_range(name: str, array: np.ndarray, low: int, end: int, what: str) -> None:
    wrong = (array < low) | (array >= end)
    if wrong.any():
        raise ConfigError(f"{name} names {what} {array[wrong][0]}; there are {what}s 0 to {end - 1}")


def _check_copies(gpus: np.ndarray, logical: np.ndarray, sources: np.ndarray) -> None:
    there = np.zeros(int(logical.max()) + 1, bool)
    there[logical[sources == NOWHERE]] = True
    if not there.all():
        raise ConfigError(f"no GPU holds logical expert {np.flatnonzero(~there)[0]} when the layer begins")
    copies = np.flatnonzero(sources != NOWHERE)
    parents = sources[copies]
    for copy, parent in zip(copies.tolist(), parents.tolist(), strict=True):
        if logical[copy] != logical[parent]:
            raise ConfigError(f"copied_from: expert {copy} would get the weights of another, {parent}")
        if gpus[copy] == gpus[parent]:
            raise ConfigError(f"copied_from: experts {copy} and {parent} are on the same GPU, {gpus[copy]}")
    # A chain of copies longer than there are copies goes round.
    for _ in range(len(copies)):
        parents = np.where(parents == NOWHERE, NOWHERE, sources[parents])
        if (parents == NOWHERE).all():
            return
    if len(copies):
        raise ConfigError("copied_from: copies get their weights from each other, and none from where they are")


def contiguous_placement(experts: int, num_gpus: int) -> Placement:
    """Returns the placement in which each GPU holds consecutive experts, once: the first GPUs one more if need be."""
    shares = np.full(num_gpus, experts // num_gpus) + (np.arange(num_gpus) < experts % num_gpus)
    return Placement(num_gpus, np.repeat(np.arange(num_gpus, dtype=np.int32), shares))
