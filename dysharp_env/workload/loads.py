"""Loads without tokens: how many tokens chose each expert of each layer, and tokens sampled from that.

A file holds counts (layer, expert), or (step, layer, expert), which are summed. Dense layers, which are rows of zeros,
are left out. Which experts a token chooses together is not in loads. What is sampled takes it as little as possible:
tokens are independent, a token draws its experts one after the other without replacement (by Gumbel noise on the
logarithm of weights), and it keeps to the model's limit of groups, if it has one.

The weights are such that every expert is chosen as often as the loads say. Drawing in proportion to the loads would
choose hot experts too seldom, as no token takes one twice. An expert of weight w is among the first k of a token about
as often as an exponential time of rate w comes before the moment at which k have come on average, hence

    weight = -log(1 - share of tokens that choose the expert)

in units of that moment. Of 256 experts and top-8 that is right to within sampling. Where a limit of groups shifts the
choice, the weights are corrected from sampled tokens until it fits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dysharp_env.files import ConfigError, shown
from dysharp_env.workload.choices import count_loads
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.npz import array_names, read_arrays, split_array_name
from dysharp_env.workload.routing import LEAST_SHARE, MOST_SHARE, RoutingModel, draw_tokens, log_weight

# Rounds of correction, and the tokens of each: with these, loads of 8 GPUs under the group limit of DeepSeek-R1 come
# out within 1 % (measured on its loads). Later rounds correct by less, which averages their chance away.
_ROUNDS, _ROUND_TOKENS, _WHOLE_ROUNDS = 8, 8192, 3


@dataclass(frozen=True)
class LayerLoads:
    """Tokens that chose each expert, by layer.

    Attributes:
        counts: (layer, expert) float64 counts, or anything in proportion to them within a layer.
        layer_index: (layer,) int64 the model's number of each layer.
        num_dense: Layers of the file that had no loads, and are not here.
    """

    counts: np.ndarray
    layer_index: np.ndarray
    num_dense: int = 0

    def for_layer(self, layer: LayerSpec) -> LayerLoads:
        """Returns the loads if they are of a layer with those experts.

        Raises:
            ConfigError: They are not. The message says "it"; callers put the file's name before.
        """
        if self.counts.shape[1] != layer.choices:
            zero = f" and {layer.zero_experts} that compute nothing" if layer.zero_experts else ""
            raise ConfigError(f"it has {self.counts.shape[1]} experts; model '{layer.name}' has {layer.experts}{zero}")
        return self


def is_loads_name(routing: str) -> bool:
    """Returns whether a routing name means loads: ``FILE.npz:NAME``."""
    return split_array_name(routing)[1] is not None


def load_loads(name: str) -> LayerLoads:
    """Returns the loads that an array of an npz file holds.

    ``layer_index`` of the file numbers its layers if it has as many; without it they count from 0.

    Raises:
        ConfigError: The file or the array is missing, or it holds no loads.
    """
    path, array = split_array_name(name)
    arrays = read_arrays(path, (str(array), "layer_index"))
    if array not in arrays:
        raise ConfigError(f"'{path}' lacks the array '{array}'; it holds {shown(sorted(array_names(path)))}")
    counts = arrays[array]
    if counts.dtype.kind not in "iuf" or counts.ndim not in (2, 3) or counts.size == 0:
        raise ConfigError(f"loads '{name}' must be numbers (layer, expert), not {counts.dtype} of shape {counts.shape}")
    counts = counts.astype(np.float64)
    if not (np.isfinite(counts) & (counts >= 0)).all():
        raise ConfigError(f"loads '{name}' must be finite and not negative")
    if counts.ndim == 3:
        counts = counts.sum(axis=0)
    numbers = arrays.get("layer_index", np.arange(len(counts)))
    if (
        numbers.shape != counts.shape[:1]
        or numbers.dtype.kind not in "iu"
        or len(set(numbers.tolist())) != len(numbers)
    ):
        numbers = np.arange(len(counts))
    is_moe = counts.sum(axis=1) > 0
    if not is_moe.any():
        raise ConfigError(f"loads '{name}' are all zero")
    return LayerLoads(counts[is_moe], numbers[is_moe].astype(np.int64), int(np.count_nonzero(~is_moe)))


def sampling_model(name: str) -> RoutingModel:
    """Returns the generator that samples tokens with popularity that loads give: nothing but that."""
    return RoutingModel(name, obeys_groups=True)


def popularity_of(counts: np.ndarray, layer: LayerSpec) -> np.ndarray:
    """Returns the popularity, (``layer.choices``,) float32, with which tokens come out at given loads.

    Args:
        counts: (``layer.choices``,) tokens that chose each expert, or anything in proportion; some above 0.
        layer: The layer they are of.
    """
    wanted = np.clip(layer.top_k * counts / counts.sum(), LEAST_SHARE, MOST_SHARE)
    popularity = log_weight(wanted)
    if layer.topk_group == layer.n_group:
        return popularity.astype(np.float32)
    rng, model = np.random.default_rng(0), sampling_model("fit")
    for turn in range(_ROUNDS):
        drawn = draw_tokens(model, layer, popularity.astype(np.float32), np.array([_ROUND_TOKENS]), rng)
        # As if a few more tokens had come as wanted: an expert that none chose is not infinitely unpopular.
        got = (count_loads(drawn, layer.choices) + 4 * wanted) / (_ROUND_TOKENS + 4)
        step = min(1.0, _WHOLE_ROUNDS / (turn + 1))
        popularity += step * (log_weight(wanted) - log_weight(np.minimum(got, MOST_SHARE)))
    return popularity.astype(np.float32)
