"""Generators of expert choices that look like real routing, or like the distributions papers assume.

Token ``t`` scores expert ``e`` with

    popularity[e] + sigma_doc * b[document(t), e] + sigma_token * u[t, e] + Gumbel noise

and takes its ``top_k`` best. ``popularity`` holds for the whole layer, ``b`` for one document, and ``u`` is a
first-order autoregressive process along the document with coefficient ``rho``: the three time scales of measured
routing. Without the middle terms this is drawing ``top_k`` experts without replacement in proportion to
``exp(popularity)``. Every GPU has documents of its own; popularity is shared by all. Experts that compute nothing are
chosen as any other, and leave a token with fewer.

The fitted presets reproduce load imbalance and token-to-token locality of per-token traces of the named model, and
``deepseek-r1`` the loads of all layers of one that serves. They use the expert count, top-k and expert groups of the
layer at hand, so any preset can drive any layer. Not modelled: which expert is hot (it is drawn anew each time) and
drift of popularity over a run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import numpy as np

from dysharp_env.config import ConfigError, did_you_mean
from dysharp_env.native import native
from dysharp_env.workload.choices import NO_EXPERT, count_loads, in_front
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.placement import contiguous_placement

DOCUMENT_TOKENS = 256  # the mean document of the DeepSeek-V2-Lite traces the generator was fitted to has about 250
_BLOCK_SCORES = 4_000_000  # scores held at once: bounds memory at some 50 MB whatever the workload's size
# COMET (arXiv 2502.19811) gives 0.032 as the standard deviation of the share of tokens an expert receives in
# ByteDance's training, and varies it around a mean share of 1/8. At 64 experts or more an absolute 0.032 would exceed
# the mean share itself, so it is read relative to that mean: a coefficient of variation of 8 * 0.032 = 0.256.
_NORMAL_REFERENCE_EXPERTS = 8
# Shares of tokens that choose an expert are held within these, so that logarithms are finite.
LEAST_SHARE, MOST_SHARE = 1e-9, 0.999
_EARLIER = 1  # tells the stream of an earlier batch from that of the batch at hand


@dataclass(frozen=True)
class RoutingModel:
    """Parameters of one generator; see the module's formula."""

    name: str
    popularity: Literal["lognormal", "normal", "power", "sampled-power"] = "lognormal"
    """How popularity is drawn: ``sigma_expert`` times a normal; log(1 + spread times a normal); -alpha log(rank); loads
    that are samples of a power law, see ``_draw_sampled_power``."""
    sigma_expert: float = 0.0
    """Standard deviation (lognormal), relative load spread (normal) or exponent alpha (power, sampled-power)."""
    sigma_doc: float = 0.0
    sigma_token: float = 0.0
    rho: float = 0.0
    obeys_groups: bool = False
    """Whether a token is limited to ``topk_group`` of the layer's ``n_group`` expert groups."""
    document_tokens: int = DOCUMENT_TOKENS
    sigma_group: float = 0.0
    """Lognormal only: standard deviation of what experts of one of the layer's ``n_group`` groups have in common."""
    layer_spread: tuple[float, float] = (0.0, 0.0)
    """How much layers differ: ``sigma_expert`` and ``sigma_group`` are drawn too, each times the exponential of this
    times one normal, the layer's skew."""
    quantile: float | None = None
    """The layer's skew among all, from 0 to 1, in place of a drawn one."""


# Fitted to per-token traces of DeepSeek-V2-Lite (github deepseek-ai/ESFT) and gpt-oss-20b (github
# AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting), and for the others to published load statistics: Qwen3-30B-A3B;
# DeepSeek-V3's expert loads on GPQA; and DeepSeek-R1 decoding at EP32 with max/mean 2.56 over GPUs (NVIDIA). The match
# is that of the mean over many draws of popularity; one draw over 32 experts has a load CV that varies by some 14 %.
_FITTED = (
    RoutingModel("dsv2-lite", "lognormal", 0.53, 0.71, 1.20, 0.80, obeys_groups=True),
    RoutingModel("gpt-oss-20b", "lognormal", 1.0, 0.26, 1.44, 0.98, obeys_groups=True),
    RoutingModel("qwen3-30b", "lognormal", 1.03, 0.74, 2.27, 0.97, obeys_groups=True),
    RoutingModel("deepseek-v3", "lognormal", 1.0, 0.7, 2.0, 0.95, obeys_groups=True),
    RoutingModel("deepseek-v3-skewed", "lognormal", 1.6, 0.7, 2.0, 0.95, obeys_groups=True),
)
# Fitted to the loads of DeepSeek-R1's 58 MoE layers in two runs of SGLang, prefill and decode, 256 experts in groups of
# 32 (medians over layers; in brackets the worst): busiest expert over mean 8.2 and 5.8 (13.4, 10.5), busiest GPU over
# mean 1.82 and 1.79 (4.3, 3.7) on 8 GPUs, 2.5 and 2.3 (6.9, 8.0) on 32. Popularity alone: loads say no more.
_SERVED = RoutingModel("deepseek-r1", "lognormal", 0.7, sigma_group=0.35, layer_spread=(0.2, 0.5), obeys_groups=True)
_ASSUMED = (
    RoutingModel("uniform"),  # every set of top_k experts is equally likely; no groups, as in the paper's counts
    # DySHARP (arXiv 2605.05607) trains with 0.032 and infers with a power law of 0.5 to 2.5, typically 1.5.
    RoutingModel("paper-normal", "normal", 0.032 * _NORMAL_REFERENCE_EXPERTS),
    RoutingModel("power-law", "power", 1.5),
)
# What AIConfigurator (github ai-dynamo/aiconfigurator, collector/helper.py) measures GEMMs with as ``power_law_1.2``.
_MEASURED_WITH = RoutingModel("aiconfigurator", "sampled-power", 1.2)
# ``mixed`` draws one of these: it has to stay the same draw for the same seed.
_MIXED = (*_ASSUMED, *_FITTED)
ROUTING_MODELS: dict[str, RoutingModel] = {model.name: model for model in (*_MIXED, _SERVED, _MEASURED_WITH)}
# What stands behind the colon of a name, and its limits.
_PARAMETERS = {
    "paper-normal": ("STD", 0.0, 0.1),
    "power-law": ("ALPHA", 0.0, 10.0),
    "aiconfigurator": ("ALPHA", 0.0, 10.0),
    "deepseek-r1": ("QUANTILE", 0.01, 0.99),
    **{model.name: ("SIGMA", 0.0, 4.0) for model in _FITTED},
}


def routing_names() -> list[str]:
    """Returns the names of all generators.

    ``mixed`` draws one of the others each time, but for ``deepseek-r1`` and ``aiconfigurator``.
    """
    return [*ROUTING_MODELS, "mixed"]


def describe_routing() -> dict[str, tuple[str, str]]:
    """Returns what each generator is for people: its parameter with limits, if it has one, and a sentence."""
    texts = {
        "uniform": "every set of top-k experts is equally likely",
        "paper-normal": "loads vary as in DySHARP's training: 0.032 at a mean share of 1/8 (arXiv 2605.05607)",
        "power-law": "popularity falls as rank to the power -ALPHA, 1.5 as in DySHARP's inference (arXiv 2605.05607)",
        "deepseek-r1": "fitted to the loads of all layers of DeepSeek-R1 as SGLang serves it",
        "dsv2-lite": "fitted to tokens of DeepSeek-V2-Lite",
        "gpt-oss-20b": "fitted to tokens of gpt-oss-20b",
        "qwen3-30b": "fitted to published loads of Qwen3-30B-A3B",
        "deepseek-v3": "fitted to published loads of DeepSeek-V3",
        "deepseek-v3-skewed": "fitted to the loads of DeepSeek-R1 decoding on 32 GPUs",
        "aiconfigurator": "loads as AIConfigurator draws them to measure GEMMs with",
        "mixed": "another of those above each time, but deepseek-r1 and aiconfigurator",
    }
    found = {}
    for name in routing_names():
        what, low, high = _PARAMETERS.get(name, ("", 0.0, 0.0))
        found[name] = (what, f"{texts[name]}; {what} from {low:g} to {high:g}" if what else texts[name])
    return found


def routing_candidates(routing: str) -> list[RoutingModel]:
    """Returns the models a routing name stands for: one, or those of ``mixed``.

    Names may have a parameter: ``power-law:ALPHA``, ``aiconfigurator:ALPHA``, ``paper-normal:STD``,
    ``deepseek-r1:QUANTILE`` (a layer less skewed than all but so many of R1's) and, of the presets fitted to tokens,
    ``NAME:SIGMA`` (in place of ``sigma_expert``).

    Raises:
        ConfigError: The name is unknown or its parameter is refused.
    """
    if routing == "mixed":
        return list(_MIXED)
    name, colon, given = routing.partition(":")
    model = ROUTING_MODELS.get(name)
    if model is None:
        raise ConfigError(
            f"routing='{routing}' is unknown; choose from {routing_names()}, 'recorded', or a path that ends in .npz"
            f"{did_you_mean(name, [*routing_names(), 'recorded'])}"
        )
    if not colon:
        return [model]
    if name not in _PARAMETERS:
        raise ConfigError(f"routing='{routing}': '{name}' takes no parameter; those that do are {list(_PARAMETERS)}")
    what, low, high = _PARAMETERS[name]
    try:
        value = float(given)
    except ValueError:
        value = np.nan
    if not low <= value <= high:
        raise ConfigError(f"routing='{routing}': '{given}' must be a number from {low} to {high}")
    if what == "QUANTILE":
        return [replace(model, name=routing, quantile=value)]
    spread = value * _NORMAL_REFERENCE_EXPERTS if what == "STD" else value
    return [replace(model, name=routing, sigma_expert=spread)]


def draw_routing(
    model: RoutingModel,
    layer: LayerSpec,
    num_gpus: int,
    tokens_per_gpu: int,
    rng: np.random.Generator,
    aligned: bool = False,
) -> np.ndarray:
    """Returns the experts of as many tokens on every GPU, (num_gpus, tokens_per_gpu, top_k) int32, best score first.

    ``aligned`` starts every GPU's first document at its first token, rather than anywhere before it.
    """
    counts = np.full(num_gpus, tokens_per_gpu)
    popularity = draw_popularity(model, layer, rng, counts)
    return draw_tokens(model, layer, popularity, counts, rng, aligned).reshape(num_gpus, tokens_per_gpu, layer.top_k)


def draw_tokens(
    model: RoutingModel,
    layer: LayerSpec,
    popularity: np.ndarray,
    tokens_of_gpu: np.ndarray,
    rng: np.random.Generator,
    aligned: bool = False,
) -> np.ndarray:
    """Returns the experts of every token, (token, top_k) int32, best score first, ``NO_EXPERT`` behind the last.

    Args:
        model: Gives all of a score but popularity.
        layer: Gives experts, top-k and groups.
        popularity: (``layer.choices``,) float32 popularity in the layer, as ``draw_popularity`` returns it.
        tokens_of_gpu: (gpu,) tokens of each GPU, any of them 0.
        rng: Where chance comes from.
        aligned: Whether every GPU's first document starts at its first token, rather than anywhere before it.
    """
    limited = model.obeys_groups and layer.topk_group < layer.n_group
    blocks = [np.empty((0, layer.top_k), np.int32)]
    first, num_gpus = 0, len(tokens_of_gpu)
    while first < num_gpus:
        tokens = int(tokens_of_gpu[first])
        most = max(1, _BLOCK_SCORES // (max(tokens, 1) * layer.choices))
        # Neighbours with as many tokens are drawn at once.
        same = tokens_of_gpu[first : first + most] == tokens
        count = len(same) if same.all() else int(same.argmin())
        first += count
        if tokens:
            scores = _draw_scores(model, popularity, (count, tokens), rng, aligned)
            if limited:
                _mask_groups(scores, layer.n_group, layer.topk_group)
            blocks.append(_best(scores, layer.top_k).reshape(-1, layer.top_k))
    return _keep_computing(np.concatenate(blocks), layer)


def draw_past_loads(
    model: RoutingModel, layer: LayerSpec, popularity: np.ndarray, tokens_of_gpu: np.ndarray, seed: int
) -> np.ndarray:
    """Returns the tokens of each logical expert, (experts,), in an earlier batch: other tokens, the same popularity.

    ``seed`` is that of the batch at hand; the earlier one has a stream of its own.
    """
    earlier = draw_tokens(model, layer, popularity, tokens_of_gpu, np.random.default_rng([seed, _EARLIER]))
    return count_loads(earlier, layer.experts)


def draw_popularity(
    model: RoutingModel, layer: LayerSpec, rng: np.random.Generator, tokens_of_gpu: np.ndarray
) -> np.ndarray:
    """Returns a layer's popularity of every expert, (``layer.choices``,) float32, in units of log probability.

    Only ``sampled-power`` depends on the tokens of each GPU, (gpu,).
    """
    if model.popularity == "sampled-power":
        return _draw_sampled_power(model.sigma_expert, layer, rng, tokens_of_gpu)
    if model.popularity == "power":
        return (-model.sigma_expert * np.log(1.0 + rng.permutation(layer.choices))).astype(np.float32)
    normal = rng.standard_normal(layer.choices, dtype=np.float32)
    if model.popularity == "normal":
        # A load cannot be negative: the few draws beyond four deviations are held at a hundredth of the mean.
        return np.log(np.maximum(1.0 + model.sigma_expert * normal, 0.01))
    if not model.sigma_group:
        return model.sigma_expert * normal
    sigmas = (model.sigma_expert, model.sigma_group)
    skew = rng.standard_normal() if model.quantile is None else NormalDist().inv_cdf(model.quantile)
    of_expert, of_group = (
        sigma * np.exp(spread * skew) for sigma, spread in zip(sigmas, model.layer_spread, strict=True)
    )
    popularity = of_expert * _standardised(normal)
    common = _standardised(rng.standard_normal(layer.n_group))
    popularity[: layer.experts] += of_group * np.repeat(common, layer.experts // layer.n_group)
    return popularity.astype(np.float32)


def _draw_sampled_power(
    alpha: float, layer: LayerSpec, rng: np.random.Generator, tokens_of_gpu: np.ndarray
) -> np.ndarray:
    """Returns the popularity of loads that are samples of a power law with density x^-alpha, cut at both ends.

    From 1 to 0.8 of all tokens, or from 0.01 to 2 where tokens choose fewer experts than there are; then scaled to what
    tokens choose together, and the first GPU made the busiest. Unlike there, where each expert has consecutive tokens,
    tokens are independent; and loads are what is expected, not what comes out.
    """
    tokens = max(1, int(tokens_of_gpu.sum()))
    is_dense = tokens * layer.top_k > layer.choices
    low, high = (1.0, max(0.8 * tokens, 1.0)) if is_dense else (0.01, 2.0)
    uniform, power = rng.random(layer.choices), 1.0 - alpha
    if abs(power) < 1e-9:
        loads = low * (high / low) ** uniform
    else:
        loads = (low**power + uniform * (high**power - low**power)) ** (1.0 / power)
    held = contiguous_placement(layer.choices, len(tokens_of_gpu)).gpu_of_expert
    busiest = int(np.bincount(held, loads).argmax())
    first, other = np.flatnonzero(held == 0), np.flatnonzero(held == busiest)
    count = min(len(first), len(other))
    loads[first[:count]], loads[other[:count]] = loads[other[:count]], loads[first[:count]].copy()
    share = np.clip(layer.top_k * loads / loads.sum(), LEAST_SHARE, MOST_SHARE)
    return log_weight(share).astype(np.float32)


def log_weight(share: np.ndarray) -> np.ndarray:
    """Returns the log of the weights with which experts are chosen by given shares of tokens, see ``loads``."""
    return np.log(-np.log1p(-share))


def _standardised(normal: np.ndarray) -> np.ndarray:
    """Returns draws with mean 0 and deviation 1: a layer's skew is what is drawn for it, not chance among a few."""
    centred = normal - normal.mean()
    return centred / max(float(centred.std()), 1e-9)


def _keep_computing(ids: np.ndarray, layer: LayerSpec) -> np.ndarray:
    """Returns ids, (token, k), without experts that compute nothing, the others in order and ``NO_EXPERT`` behind."""
    if not layer.zero_experts:
        return ids
    return in_front(np.where(ids < layer.experts, ids, NO_EXPERT))


def _draw_scores(
    model: RoutingModel, popularity: np.ndarray, extent: tuple[int, int], rng: np.random.Generator, aligned: bool
) -> np.ndarray:
    """Returns scores, (gpu, token, expert) float32, for an ``extent`` of (GPUs, tokens of each)."""
    num_gpus, tokens = extent
    shape = (num_gpus, tokens, len(popularity))
    # The floor only keeps log() finite; the smallest exponential that float32 draws is above it or exactly zero.
    scores = -np.log(np.maximum(rng.standard_exponential(shape, dtype=np.float32), np.float32(1e-30)))
    scores += popularity
    if not (model.sigma_doc or model.sigma_token):
        return scores
    phase = np.zeros(num_gpus, dtype=np.int64) if aligned else rng.integers(model.document_tokens, size=num_gpus)
    document = (phase[:, None] + np.arange(tokens)) // model.document_tokens  # (gpu, token)
    if model.sigma_doc:
        taste = rng.standard_normal((num_gpus, int(document.max()) + 1, len(popularity)), dtype=np.float32)
        _add_taste(scores, taste, document, np.float32(model.sigma_doc))
    if model.sigma_token:
        drift = rng.standard_normal(shape, dtype=np.float32)
        keep = np.where(document[:, 1:] == document[:, :-1], model.rho, 0.0).astype(np.float32)
        fresh = np.sqrt(1.0 - keep * keep)  # keeps the variance at one; a new document starts afresh
        _add_drift(scores, drift, keep, fresh, np.float32(model.sigma_token))
    return scores


@native
def _add_taste(scores: np.ndarray, taste: np.ndarray, document: np.ndarray, sigma: np.float32) -> None:
    """Adds to (gpu, token, expert) scores what each token's document, (gpu, token), likes, (gpu, document, expert)."""
    for gpu in range(scores.shape[0]):
        for token in range(scores.shape[1]):
            own, liked = scores[gpu, token], taste[gpu, document[gpu, token]]
            for expert in range(len(own)):
                own[expert] += sigma * liked[expert]


@native
def _add_drift(scores: np.ndarray, drift: np.ndarray, keep: np.ndarray, fresh: np.ndarray, sigma: np.float32) -> None:
    """Turns normals, (gpu, token, expert), into a process along the tokens, in place, and adds it to the scores.

    ``keep`` and ``fresh``, (gpu, token - 1), are the shares of the token before and of what is new.
    """
    for gpu in range(scores.shape[0]):
        for token in range(scores.shape[1]):
            own, walk = scores[gpu, token], drift[gpu, token]
            if token > 0:
                before, old, new = drift[gpu, token - 1], keep[gpu, token - 1], fresh[gpu, token - 1]
                for expert in range(len(walk)):
                    walk[expert] = walk[expert] * new + old * before[expert]
            for expert in range(len(own)):
                own[expert] += walk[expert] * sigma


def _mask_groups(scores: np.ndarray, n_group: int, topk_group: int) -> None:
    """Sets to -inf, in place, all scores outside a token's ``topk_group`` best groups.

    A group is worth the sum of its two best experts (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
    """
    grouped = scores.reshape(*scores.shape[:-1], n_group, -1)
    worth = np.partition(grouped, -2, axis=-1)[..., -2:].sum(axis=-1) if grouped.shape[-1] > 1 else grouped[..., 0]
    left_out = np.argpartition(worth, -topk_group, axis=-1)[..., :-topk_group]
    np.put_along_axis(grouped, left_out[..., None], -np.inf, axis=-2)


def _best(scores: np.ndarray, top_k: int) -> np.ndarray:
    """Returns the indices of the ``top_k`` largest scores along the last axis, largest first, int32."""
    chosen = np.argpartition(scores, scores.shape[-1] - top_k, axis=-1)[..., scores.shape[-1] - top_k :]
    order = np.argsort(-np.take_along_axis(scores, chosen, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(chosen, order, axis=-1).astype(np.int32)
