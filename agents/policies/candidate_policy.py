"""A policy that scores candidates one by one, so the number of candidates and of GPUs does not matter.

Every candidate row goes through one shared network together with the context of its decision. The mean and maximum of
the embeddings tell each candidate what it competes with, and a second shared network turns embedding and pool into one
logit. Nothing has a size that depends on how many candidates there are: weights trained at 32 candidates act at 64. The
value comes from a network of its own over the context and the pooled features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from pydantic import Field
from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution, MaskableDistribution
from sb3_contrib.common.maskable.policies import MaskableMultiInputActorCriticPolicy
from torch import Tensor, nn

from dysharp_env.config import Spec
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import load_schedule
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import CONTEXT, DECISION_KINDS, FEATURES, OPENING_KINDS, SPLIT

from .pieces import Map, in_pieces
from .ragged import choice, pack, pool, rectified_sum, weigh

Observation = dict[str, Tensor]
_PIECE = 512  # decisions of a batch that are worked on together: what they take fits in a core's cache
_OPENING = [CONTEXT.index(f"is_{kind}") for kind in OPENING_KINDS]
# By the engine's name for weights, what the scorer calls them; all but ``linear`` lie (output, input) in torch.
_PARAMETERS = {
    "row": "embed_row.weight",
    "row_bias": "embed_row.bias",
    "context": "embed_context.weight",
    "embed": "embed.weight",
    "embed_bias": "embed.bias",
    "score_row": "score_row.weight",
    "score_bias": "score_row.bias",
    "score_pool": "score_pool.weight",
    "score": "score.weight",
    "linear": "linear",
}


class PolicySpec(Spec):
    """Size of the networks."""

    hidden: int = Field(default=64, ge=1, le=4096)
    """Width of the candidate embedding and of the scoring layer."""
    opening_hidden: int = Field(default=0, ge=0, le=4096)
    """The same of a network of its own for what is decided before a layer starts, which is seldom and weighs much; 0
    leaves that to the first."""
    value_hidden: int = Field(default=64, ge=1, le=4096)
    """Width of both layers of the value network."""
    hold_reluctance: float = Field(default=4.0, ge=0, allow_inf_nan=False)
    """What hold's logit starts below the others'; it is learned from there. A group that holds half of the time makes
    an episode several times longer, and what its other choices are worth is lost in that noise."""
    ruled: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """What the logit of the candidate that the schedule's own rule would take starts above the others', but for what is
    decided before a layer; it is learned from there. Above 0 learning begins near the rule, whatever the plan is."""
    rule: str = ""
    """A schedule whose rule the scorer starts at, and learns to refine; its weight for hold, where it has one, takes
    the place of ``hold_reluctance``. Empty starts at no preference."""
    rule_scale: float = Field(default=20.0, gt=0, allow_inf_nan=False)
    """What the rule's weights are multiplied with to be logits: the higher, the less is tried beside its choice."""

    def linear(self) -> np.ndarray:
        """Returns the (context, feature) weights that scores start at: one rule for each kind of decision.

        Raises:
            ConfigError: There is no such schedule.
        """
        weights = np.zeros((len(CONTEXT), len(FEATURES)))
        rules = weights[: len(DECISION_KINDS)]
        order, hold = FEATURES.index("order"), FEATURES.index("is_hold")
        if self.rule:
            rules[:] = load_schedule(self.rule).rule.matrix()
            # A kind without weights takes the first candidate.
            rules[~rules.any(axis=1), order] = -1.0
            rules *= self.rule_scale
        rules[SPLIT:, FEATURES.index("ruled")] = self.ruled
        unwilling = rules[:, hold] == 0
        rules[unwilling, hold] = -self.hold_reluctance
        return weights


@dataclass(frozen=True)
class Decisions:
    """A batch of decisions, of which most fill few of the rows that there are room for.

    Attributes:
        rows: (row, feature), the candidates of the first decision, then those of the second, and so on.
        counts: (batch,) int64, how many each decision has.
        places: (row,) int64, where rows are in a table of all decisions: decision * size + candidate.
        size: Candidates that there is room for.
        context: (batch, context).
    """

    rows: Tensor
    counts: Tensor
    places: Tensor
    size: int
    context: Tensor

    @classmethod
    def of(cls, observation: Observation) -> Decisions:
        """Returns the decisions of a batch of observations: candidates up to the last row that is not all 0."""
        candidates = observation["candidates"]
        table = candidates.reshape(len(candidates), -1, len(FEATURES))
        batch, size, _ = table.shape
        rows, counts = table.new_empty(batch * size, len(FEATURES)), torch.empty(batch, dtype=torch.int64)
        places = torch.empty(batch * size, dtype=torch.int64)
        total = pack(table.numpy(), rows.numpy(), counts.numpy(), places.numpy())
        return cls(rows[:total], counts, places[:total], size, observation["context"])

    def table(self, numbers: Tensor) -> Tensor:
        """Returns (batch, size) numbers from (row,) ones, 0 where there is no candidate."""
        batch = len(self.counts)
        return numbers.new_zeros(batch * self.size).index_put((self.places,), numbers).reshape(batch, -1)

    def having(self, some: Tensor, rows: Tensor) -> Decisions:
        """Returns some of the decisions, (batch,) bool, whose rows are (row,) bool; their places are of all."""
        return Decisions(self.rows[rows], self.counts[some], self.places[rows], self.size, self.context[some])


class CandidateScorer(nn.Module):
    """Maps an observation to one logit for each candidate row; rows that hold no candidate get 0."""

    def __init__(self, hidden: int, linear: np.ndarray) -> None:
        """Makes the layers, initialised so that scores start almost at those of ``linear``, (context, feature)."""
        super().__init__()
        self.linear = nn.Parameter(torch.tensor(linear, dtype=torch.float32))
        # Two linear maps that are added are one map of the concatenation, without repeating the context for every row.
        self.embed_row = nn.Linear(len(FEATURES), hidden)
        self.embed_context = nn.Linear(len(CONTEXT), hidden, bias=False)
        self.embed = nn.Linear(hidden, hidden)
        self.score_row = nn.Linear(hidden, hidden)
        self.score_pool = nn.Linear(2 * hidden, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)
        for layer in (self.embed_row, self.embed_context, self.embed, self.score_row, self.score_pool):
            nn.init.orthogonal_(layer.weight, np.sqrt(2))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        nn.init.orthogonal_(self.score.weight, 0.01)

    def forward(self, decisions: Decisions) -> Tensor:
        """Returns (batch, candidate) logits."""
        return decisions.table(self.score_rows(decisions))

    def score_rows(self, decisions: Decisions) -> Tensor:
        """Returns (row,) logits."""
        rows, counts, context = decisions.rows, decisions.counts, decisions.context
        hidden = rectified_sum(self.embed_row(rows), self.embed_context(context), counts)
        embedded = torch.relu(self.embed(hidden))
        of_pool = self.score_pool(pool(embedded, counts))
        seen = rectified_sum(self.score_row(embedded), of_pool, counts)
        return self.score(seen).squeeze(1) + weigh(context @ self.linear, rows, counts)

    def take(self, network: Network) -> None:
        """Takes over the weights of a network of the engine."""
        for name, path in _PARAMETERS.items():
            parameter, array = self.get_parameter(path), getattr(network, name)
            numbers = array if name == "linear" else array.T
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(numbers)).reshape(parameter.shape))

    def network(self) -> Network:
        """Returns the weights as the engine plays them."""
        arrays = {}
        for name, path in _PARAMETERS.items():
            numbers = self.get_parameter(path).detach().numpy()
            # A copy, (input, output) and in order: training goes on with the tensor itself.
            arrays[name] = np.array(numbers if name == "linear" else numbers.T, np.float32, order="C")
        return Network(**{**arrays, "score": arrays["score"][:, 0]})


class ValueNetwork(nn.Module):
    """Maps an observation to the expected return from there on."""

    def __init__(self, hidden: int) -> None:
        """Makes the layers."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * len(FEATURES) + len(CONTEXT), hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh()
        )
        self.value = nn.Linear(hidden, 1)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight, np.sqrt(2))
        nn.init.orthogonal_(self.value.weight, 1.0)

    def forward(self, decisions: Decisions) -> Tensor:
        """Returns (batch, 1) values."""
        pooled = [decisions.context, pool(decisions.rows, decisions.counts)]
        return self.value(self.layers(torch.cat(pooled, dim=1)))


class CandidatePolicy(MaskableMultiInputActorCriticPolicy):
    """The actor and critic above, as MaskablePPO drives them."""

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Discrete,
        lr_schedule: Any,
        spec: PolicySpec = PolicySpec(),  # noqa: B008 (frozen)
        **kwargs: Any,
    ) -> None:
        """Makes a policy for the spaces of ``TokenScheduleEnv``; the rate at progress 1 starts the optimiser."""
        self.spec = spec
        self.mapping: Map = map
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    @classmethod
    def of_network(cls, network: Network, env: EnvSpec, opening: Network | None = None) -> CandidatePolicy:
        """Returns a policy whose scorers are networks of the engine and of openings; its critic knows nothing."""
        spec = PolicySpec(hidden=network.width, value_hidden=1, opening_hidden=opening.width if opening else 0)
        policy = cls(env.observation_space(), env.action_space(), lambda _: 0.0, spec)
        with torch.no_grad():
            policy.scorer.take(network)
            if opening and policy.opening:
                policy.opening.take(opening)
            for parameter in policy.critic.parameters():
                parameter.zero_()
        policy.set_training_mode(False)
        return policy

    def _build(self, lr_schedule: Any) -> None:
        self.scorer = CandidateScorer(self.spec.hidden, self.spec.linear())
        width = self.spec.opening_hidden
        self.opening = CandidateScorer(width, self.spec.linear()) if width else None
        self.critic = ValueNetwork(self.spec.value_hidden)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), fused=True, **self.optimizer_kwargs)  # type: ignore[call-arg]

    def forward(  # type: ignore[override]
        self, obs: Observation, deterministic: bool = False, action_masks: np.ndarray | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns actions, their values (batch, 1) and their log probabilities."""
        decisions = Decisions.of(obs)
        distribution = self._distribution(decisions, action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self.critic(decisions), distribution.log_prob(actions)

    def evaluate_actions(  # type: ignore[override]
        self, obs: Observation, actions: Tensor, action_masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns values (batch, 1), log probabilities of ``actions``, and entropies."""
        masks = torch.ones(len(actions), 1) if action_masks is None else action_masks
        parts = (obs["candidates"], obs["context"], actions, masks.bool())
        pieces = [*zip(*(part.split(_PIECE) for part in parts), strict=True)]
        return in_pieces(self._evaluate_piece, pieces, self.parameters(), self.mapping)  # type: ignore[return-value]

    def _evaluate_piece(self, piece: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        candidates, context, actions, masks = piece
        decisions = Decisions.of({"candidates": candidates, "context": context})
        scores = self._score_rows(decisions)
        return self.critic(decisions), *choice(scores, decisions.counts, masks, actions)

    def get_distribution(  # type: ignore[override]
        self, obs: Observation, action_masks: np.ndarray | Tensor | None = None
    ) -> MaskableDistribution:
        """Returns the distribution over candidates; masked ones have probability 0."""
        return self._distribution(Decisions.of(obs), action_masks)

    def _distribution(self, decisions: Decisions, action_masks: np.ndarray | Tensor | None) -> MaskableDistribution:
        distribution = MaskableCategoricalDistribution(decisions.size).proba_distribution(self._logits(decisions))
        if action_masks is not None:
            distribution.apply_masking(action_masks)
        return distribution

    def predict_values(self, obs: Observation) -> Tensor:  # type: ignore[override]
        """Returns the (batch, 1) expected returns."""
        return self.critic(Decisions.of(obs))

    def choose(self, observations: dict[str, np.ndarray], masks: np.ndarray) -> np.ndarray:
        """Returns the most likely legal candidate of each decision in a batch, (batch,) int64."""
        with torch.no_grad():
            logits = self._logits(Decisions.of({name: torch.from_numpy(array) for name, array in observations.items()}))
            return logits.masked_fill(~torch.from_numpy(masks), -torch.inf).argmax(dim=1).numpy()

    def scoring_network(self) -> Network:
        """Returns the scorer's weights as the engine plays them; it chooses what ``choose`` does, up to rounding."""
        return self.scorer.network()

    def opening_network(self) -> Network | None:
        """Returns what decides before a layer starts, if that is a network of its own."""
        return self.opening.network() if self.opening else None

    def _logits(self, decisions: Decisions) -> Tensor:
        """Returns (batch, candidate) logits."""
        return decisions.table(self._score_rows(decisions))

    def _score_rows(self, decisions: Decisions) -> Tensor:
        """Returns (row,) logits."""
        scores = self.scorer.score_rows(decisions)
        if self.opening is not None:
            early = decisions.context[:, _OPENING].amax(dim=1) > 0
            if bool(early.any()):
                rows = early.repeat_interleave(decisions.counts)
                scores = scores.index_put((rows,), self.opening.score_rows(decisions.having(early, rows)))
        return scores
