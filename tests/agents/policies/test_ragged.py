"""What a policy learns from, against the same written with plain torch on padded tables."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from agents.policies import candidate_policy
from agents.policies.candidate_policy import CandidatePolicy, PolicySpec
from dysharp_env.simulator.state.observation import CONTEXT, FEATURES

SIZE, BATCH = 7, 23


def make_policy() -> CandidatePolicy:
    torch.manual_seed(0)
    boxes = {"candidates": spaces.Box(0, 1, (SIZE * len(FEATURES),)), "context": spaces.Box(0, 1, (len(CONTEXT),))}
    policy = CandidatePolicy(spaces.Dict(boxes), spaces.Discrete(SIZE), lambda _: 1e-3, PolicySpec(hidden=24))
    torch.nn.init.normal_(policy.scorer.score.weight)
    torch.nn.init.normal_(policy.scorer.linear)
    return policy


def observe() -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Returns observations of 0 to all candidates, some of them twice the same, legal actions, and masks."""
    rng = np.random.default_rng(1)
    table = np.zeros((BATCH, SIZE, len(FEATURES)), np.float32)
    masks = np.zeros((BATCH, SIZE), bool)
    for decision, count in enumerate([1, SIZE, *rng.integers(2, SIZE + 1, BATCH - 2)]):
        table[decision, :count] = rng.random((count, len(FEATURES)))
        masks[decision, :count] = rng.random(count) < 0.7
        masks[decision, rng.integers(count)] = True
    table[3, 1] = table[3, 0]
    actions = [rng.choice(np.flatnonzero(mask)) for mask in masks]
    context = rng.random((BATCH, len(CONTEXT)), np.float32)
    observation = {"candidates": torch.from_numpy(table.reshape(BATCH, -1)), "context": torch.from_numpy(context)}
    return observation, torch.tensor(np.array(actions)), torch.from_numpy(masks)


def plainly(
    policy: CandidatePolicy, observation: dict[str, Tensor], actions: Tensor, masks: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what ``evaluate_actions`` does."""
    table, context = observation["candidates"].reshape(BATCH, SIZE, -1), observation["context"]
    filled = (table.amax(dim=2) > 0).unsqueeze(2)
    count = filled.sum(dim=1)
    scorer, critic = policy.scorer, policy.critic
    embedded = torch.relu(scorer.embed_row(table) + scorer.embed_context(context).unsqueeze(1))
    embedded = torch.relu(scorer.embed(embedded)) * filled
    pool = torch.cat([embedded.sum(dim=1) / count, embedded.amax(dim=1)], dim=1)
    seen = torch.relu(scorer.score_row(embedded) + scorer.score_pool(pool).unsqueeze(1))
    scores = scorer.score(seen).squeeze(2) + (table * (context @ scorer.linear).unsqueeze(1)).sum(dim=2)
    log_probs = torch.log_softmax(scores.masked_fill(~masks, -1e8), dim=1)
    entropy = -(log_probs.exp() * log_probs.masked_fill(~masks, 0.0)).sum(dim=1)
    features = torch.cat([context, table.sum(dim=1) / count, table.amax(dim=1)], dim=1)
    return critic.value(critic.layers(features)), log_probs.gather(1, actions.unsqueeze(1)).squeeze(1), entropy


@pytest.mark.parametrize("piece", [1, 5, 100])
def test_results_and_gradients_are_those_of_plain_torch(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidate_policy, "_PIECE", piece)
    policy = make_policy()
    observation, actions, masks = observe()
    weights = [torch.rand(BATCH, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    found = []
    for results in (
        policy.evaluate_actions(observation, actions, masks),
        plainly(policy, observation, actions, masks),
    ):
        loss = sum((result.flatten() * weight).sum() for result, weight in zip(results, weights, strict=True))
        policy.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        found.append((results, [parameter.grad.clone() for parameter in policy.parameters()]))  # type: ignore[union-attr]
    for mine, expected in zip(*(results for results, _ in found), strict=True):
        torch.testing.assert_close(mine, expected)
    for (name, _), mine, expected in zip(
        policy.named_parameters(), *(gradients for _, gradients in found), strict=True
    ):
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
        assert expected.abs().max() > 0, name
