"""Fits weights to what a policy decides before a layer starts: its way to run it, and copies of experts.

There the policy is a network, and what it does shows on layers that nobody plays. A rule's scores are fitted to the
network's by cross-entropy: they are sums of features with weights that are linear in a few context values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from dysharp_env.schedules import Problem
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import CONTEXT, DECISION_KINDS, FEATURES, OPENING_KINDS
from dysharp_env.workload.suite import SuiteSpec

from ..opponents.players import Learned
from ..policies.linear import FEATURES_OF_KIND
from ..policies.rule import Linear
from ..policies.steering import INPUTS
from ..training.plan_layers import draw_layers
from ..training.spec import PlanningSpec
from .fitting import by_error

_STEPS, _RATE, _DECAY = 1000, 0.3, 1e-3  # of AdamW; the rate falls to 0 along a half cosine
_WEIGHED = tuple(dict.fromkeys(name for kind in OPENING_KINDS for name in FEATURES_OF_KIND[kind]))
_COLUMNS = [FEATURES.index(name) for name in _WEIGHED]


def drawn_layers(suite: SuiteSpec, count: int, seed: int) -> Iterator[Problem]:
    """Yields so many layers as training draws them, a few in memory at a time."""
    spec, batches = PlanningSpec(), 0
    while count > 0:
        layers = draw_layers(suite, spec, seed, batches)[:count]
        yield from layers
        count, batches = count - len(layers), batches + 1


@dataclass(frozen=True)
class Openings:
    """What a policy was shown before layers, and how it scored that.

    Attributes:
        kinds: Those that it decides, of ``OPENING_KINDS``.
        features: (decision, candidate, feature) float32; rows behind the last candidate are 0.
        contexts: (decision, context) float32.
        scores: (decision, candidate) float64 of the policy; -inf where there is no candidate.
    """

    kinds: tuple[str, ...]
    features: np.ndarray
    contexts: np.ndarray
    scores: np.ndarray

    @classmethod
    def watch(cls, policy: Learned, problems: Iterable[Problem]) -> Openings:
        """Returns what a policy decides before layers, which are not played.

        Raises:
            ConfigError: The schedule beneath does not fit a system.
        """
        kinds = tuple(kind for kind in OPENING_KINDS if kind in policy.env.exposed)
        features, contexts, scores = [], [], []
        for problem in problems:
            run = problem.start(policy.base, replace(policy.exposure, kinds=kinds))
            while (waiting := run.waiting) is not None:
                features.append(waiting.features)
                contexts.append(waiting.context)
                count, network = waiting.num_candidates, policy.network_of(waiting.kind)
                scores.append(np.full(len(waiting.mask), -np.inf))
                scores[-1][:count] = network.scores(waiting.features[:count], waiting.context)
                if kinds == ("plan",):
                    break  # nothing else is asked, and starting the layer takes longest
                run.decide(int(scores[-1].argmax()))
        return cls(kinds, np.array(features), np.array(contexts), np.array(scores))

    @property
    def varying(self) -> list[str]:
        """The context values that are not the same in all decisions, which weights can depend on."""
        return [name for name in INPUTS[:-1] if np.ptp(self.contexts[:, CONTEXT.index(name)]) > 0]

    def choose_names(self, count: int) -> list[str]:
        """Returns context values in the order in which they explain scores: each adds most to those before it."""
        return by_error(self.varying, count, lambda names: self._fit(names)[0])

    def fit(self, names: Sequence[str]) -> dict[str, dict[str, Linear]]:
        """Returns weights by kind and feature that are linear in some context values; what weighs 0 is left out."""
        names = [name for name in INPUTS[:-1] if name in names]
        _, constants, slopes = self._fit(names)
        found: dict[str, dict[str, Linear]] = {}
        for kind, row in zip(self.kinds, constants, strict=True):
            columns = {name: _WEIGHED.index(name) for name in FEATURES_OF_KIND[kind]}
            linears = {
                feature: Linear(constant=row[place], weights=dict(zip(names, slopes[:, place].tolist(), strict=True)))
                for feature, place in columns.items()
            }
            found[kind] = {name: linear for name, linear in linears.items() if linear.constant or linear.slopes}
        return found

    def agreement(self, network: Network) -> float:
        """Returns the part of the decisions in which a network takes what the policy takes."""
        agreed = 0
        for rows, context, scores in zip(self.features, self.contexts, self.scores, strict=True):
            legal = np.isfinite(scores)
            agreed += network.best(rows[: legal.sum()], context, legal[: legal.sum()]) == scores.argmax()
        return agreed / len(self.scores)

    def _fit(self, names: Sequence[str]) -> tuple[float, np.ndarray, np.ndarray]:
        """Returns the cross-entropy, (kind, weighed) constants and (name, weighed) weights of context values.

        Every kind counts the same. Values have mean 0 and deviation 1 meanwhile, so that all are decayed alike.
        """
        values = self.contexts[:, [CONTEXT.index(name) for name in names]].astype(np.float64)
        means, deviations = values.mean(axis=0), np.maximum(values.std(axis=0), 1e-9)
        scaled = torch.from_numpy((values - means) / deviations)
        of_kind = self.contexts[:, [DECISION_KINDS.index(kind) for kind in self.kinds]].astype(np.float64)
        counts = torch.from_numpy((of_kind / np.maximum(of_kind.sum(axis=0), 1)).sum(axis=1) / len(self.kinds))
        kinds, features = torch.from_numpy(of_kind), torch.from_numpy(self.features[:, :, _COLUMNS].astype(np.float64))
        wanted = torch.softmax(torch.from_numpy(self.scores), dim=1)
        legal = torch.from_numpy(np.isfinite(self.scores))
        constants = torch.zeros(len(self.kinds), len(_WEIGHED), dtype=torch.float64, requires_grad=True)
        slopes = torch.zeros(len(names), len(_WEIGHED), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.AdamW([constants, slopes], lr=_RATE, weight_decay=_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
        for _ in range(_STEPS):
            weights = kinds @ constants + scaled @ slopes
            scores = torch.bmm(features, weights[:, :, None])[:, :, 0].masked_fill(~legal, -1e9)
            loss = -counts @ (wanted * torch.log_softmax(scores, dim=1)).sum(dim=1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        of_values = slopes.detach().numpy() / deviations[:, None]
        rows = constants.detach().numpy() - means @ of_values
        return float(loss.detach()), rows.round(6) + 0.0, of_values.round(6) + 0.0
