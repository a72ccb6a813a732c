"""What importers make of files: pieces of routing, or loads; what assembles them asks nothing more of a format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.workload.choices import NO_EXPERT
from dysharp_env.workload.importers.reading import Budget
from dysharp_env.workload.layer import LayerSpec

MOST_EXPERTS = 65536


@dataclass(frozen=True)
class Wanted:
    """What the user says beside the files.

    Attributes:
        model: The model whose routing it is.
        layers: Layers of the model, dense ones included, where the format does not say.
        top_k: Experts a token chose, where the format does not say.
        experts: Experts of a layer, where the format does not say.
        physical: (physical,) the logical expert of each physical one, by layer, or one under None for all: ids are
            physical ones.
        layout: Order of the axes of an array of ids: ``token`` or ``layer`` is the first, ``auto`` guesses.
        steps: First step and end of those to read, of formats that have steps.
        tokens: Tokens to sample from loads.
        seed: Of that sampling.
    """

    model: LayerSpec | None = None
    layers: int | None = None
    top_k: int | None = None
    experts: int | None = None
    physical: dict[int | None, np.ndarray] = field(default_factory=dict)
    layout: str = "auto"
    steps: tuple[int, int] | None = None
    tokens: int = 8192
    seed: int = 0

    def require_top_k(self, where: str) -> int:
        """Returns the experts a token chose, of a format that does not say.

        Raises:
            ConfigError: The user does not say either.
        """
        top_k = self.top_k or (self.model.top_k if self.model else None)
        if top_k is None:
            raise ConfigError(f"{where}: the format does not say how many experts a token has: give top_k or model")
        return top_k

    def require_layers(self, where: str) -> int:
        """Returns the layers of the model, of a format that does not say.

        Raises:
            ConfigError: The user does not say either.
        """
        around = self.model.transformer if self.model else None
        layers = self.layers or (around.layers if around else None)
        if layers is None:
            unsaid = f"; the file of model '{self.model.name}' does not say" if self.model else ", or a model that says"
            raise ConfigError(f"{where}: the format does not say how many layers there are: give layers{unsaid}")
        return layers

    def has_step(self, step: int) -> bool:
        """Returns whether a step is to be read."""
        return self.steps is None or self.steps[0] <= step < self.steps[1]


@dataclass(frozen=True)
class Piece:
    """Routing of consecutive tokens: of a request, or of a step on one GPU.

    Attributes:
        ids: (layer, token, k) int16 or int32 logical experts, ``NO_EXPERT`` where there is none.
        layers: (layer,) the model's numbers.
        where: File and place, as errors name it.
        rank: The GPU that the tokens live on, where the format says.
        prefill: How many of the tokens, from the first, were computed in prefill, where the format says.
        documents: Tokens of each sequence; one sequence if empty.
        weights: (layer, token, k) float gate weights, where the format has them.
    """

    ids: np.ndarray
    layers: tuple[int, ...]
    where: str
    rank: int | None = None
    prefill: int | None = None
    documents: tuple[int, ...] = ()
    weights: np.ndarray | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens."""
        return int(self.ids.shape[1])


@dataclass
class Routing:
    """All that files of one format say of tokens.

    Attributes:
        pieces: In the order in which they stand.
        experts: Experts of a layer, where the format says.
        notes: What was left out or assumed, for people.
    """

    pieces: list[Piece] = field(default_factory=list)
    experts: int | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Counted:
    """All that files of a format without tokens say: loads.

    Attributes:
        counts: (layer, expert) float64.
        layers: (layer,) the model's numbers.
        where: File and place, as errors name it.
        top_k: Experts a token chose, where the format says.
        notes: What was left out or assumed, for people.
    """

    counts: np.ndarray
    layers: tuple[int, ...]
    where: str
    top_k: int | None = None
    notes: list[str] = field(default_factory=list)


def ids_of(array: np.ndarray, where: str, key: str, budget: Budget, ndim: int = 3) -> np.ndarray:
    """Returns a narrow copy of an array of ids of experts; its axes stay as they are.

    Raises:
        ConfigError: It has another number of axes or none, is not of whole numbers, or holds what can be no id.
    """
    if array.ndim != ndim or array.dtype.kind not in "iu" or 0 in array.shape:
        raise ConfigError(
            f"{where}: {key} must be whole numbers with {ndim} axes, not {array.dtype} of shape {array.shape}"
        )
    budget.take(array.size, f"{where}: {key}")
    low, high = int(array.min()), int(array.max())
    if low < NO_EXPERT or high >= MOST_EXPERTS:
        wrong = low if low < NO_EXPERT else high
        raise ConfigError(f"{where}: {key} holds expert {wrong}; ids are 0 to {MOST_EXPERTS - 1}, or -1 for none")
    return np.ascontiguousarray(array, np.int16 if high < 1 << 15 else np.int32)


def counts_of(array: np.ndarray, where: str, key: str) -> np.ndarray:
    """Returns loads, (layer, expert) float64, summed over steps if those come first.

    Raises:
        ConfigError: They have other axes, or are negative or no numbers.
    """
    if array.ndim not in (2, 3) or array.dtype.kind not in "iuf" or 0 in array.shape:
        raise ConfigError(
            f"{where}: {key} must be numbers (layer, expert) or (step, layer, expert), not {array.dtype} of shape"
            f" {array.shape}"
        )
    if array.shape[-1] > MOST_EXPERTS:
        raise ConfigError(f"{where}: {key} has {array.shape[-1]} experts; at most {MOST_EXPERTS} are possible")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ConfigError(f"{where}: {key} must be finite")
    if (array < 0).any():
        raise ConfigError(f"{where}: {key} holds {array.min()}; counts are not negative")
    return array.sum(axis=0, dtype=np.float64) if array.ndim == 3 else array.astype(np.float64)


def to_logical(
    array: np.ndarray, layers: Sequence[int], maps: dict[int | None, np.ndarray], where: str, key: str
) -> np.ndarray:
    """Returns ids of physical experts, (layer, token, k), as logical ones; where nothing was routed they stay.

    Raises:
        ConfigError: A layer has no map, or an id is beyond it.
    """
    if not maps:
        return array
    highest = max(int(each.max()) for each in maps.values())
    logical = np.empty(array.shape, np.int16 if highest < 1 << 15 else np.int32)
    for row, (number, ids) in enumerate(zip(layers, array, strict=True)):
        # Zeros in all places are no choice, and would become one; of a single place, zeros in a whole layer.
        is_blank = ~(ids > 0).any(axis=-1) if ids.shape[-1] > 1 else np.full(len(ids), not (ids > 0).any())
        if is_blank.all():
            logical[row] = ids
            continue
        of_layer = map_of(maps, number, where)
        if int(ids.max()) >= len(of_layer):
            raise ConfigError(
                f"{where}: {key} holds physical expert {ids.max()} in layer {number}; its map has {len(of_layer)}"
            )
        logical[row] = np.append(of_layer, NO_EXPERT)[ids]
        logical[row, is_blank] = ids[is_blank]
    return logical


def map_of(maps: dict[int | None, np.ndarray], number: int, where: str) -> np.ndarray:
    """Returns the logical expert of each physical one of a layer.

    Raises:
        ConfigError: There is none for the layer.
    """
    found = maps.get(number, maps.get(None))
    if found is None:
        raise ConfigError(
            f"{where}: the map of physical experts has no layer {number}; it has {sorted(map(str, maps))}"
        )
    return found
