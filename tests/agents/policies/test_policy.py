"""The policy: what it must not depend on."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.policies.candidate_policy import CandidatePolicy, Decisions, PolicySpec
from dysharp_env.simulator.state import observation

HOLD = observation.FEATURES.index("is_hold")
FEATURES, CONTEXT, KINDS = len(observation.FEATURES), len(observation.CONTEXT), len(observation.DECISION_KINDS)


SIZES = PolicySpec(hidden=24)


def make_policy(size: int) -> CandidatePolicy:
    torch.manual_seed(0)
    boxes = {"candidates": spaces.Box(0, 1, (size * FEATURES,)), "context": spaces.Box(0, 1, (CONTEXT,))}
    policy = CandidatePolicy(spaces.Dict(boxes), spaces.Discrete(size), lambda _: 1e-3, SIZES)
    # Fresh policies score all candidates nearly alike; larger weights make differences visible.
    torch.nn.init.normal_(policy.scorer.score.weight)
    return policy


def observe(size: int, filled: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    candidates = np.zeros((len(filled), size, FEATURES), np.float32)
    for row, count in enumerate(filled):
        candidates[row, :count] = rng.random((count, FEATURES), np.float32)
    contexts = rng.random((len(filled), CONTEXT), np.float32)
    contexts[:, :KINDS] = np.eye(KINDS, dtype=np.float32)[rng.integers(KINDS, size=len(filled))]
    return {"candidates": torch.from_numpy(candidates.reshape(len(filled), -1)), "context": torch.from_numpy(contexts)}


def logits(policy: CandidatePolicy, observation: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return policy.scorer(Decisions.of(observation))


def test_swapping_candidates_swaps_their_scores_and_leaves_the_value() -> None:
    policy, observation = make_policy(8), observe(8, [6, 8])
    order = torch.tensor([3, 0, 5, 1, 2, 4, 6, 7])
    table = observation["candidates"].reshape(2, 8, FEATURES)[:, order]
    swapped = {**observation, "candidates": table.reshape(2, -1)}
    torch.testing.assert_close(logits(policy, swapped), logits(policy, observation)[:, order])
    torch.testing.assert_close(policy.predict_values(swapped), policy.predict_values(observation))


def test_weights_trained_at_one_size_act_the_same_at_another() -> None:
    small, large = make_policy(8), make_policy(32)
    large.load_state_dict(small.state_dict())
    narrow = observe(8, [5, 1])
    wide = torch.zeros(2, 32, FEATURES)
    wide[:, :8] = narrow["candidates"].reshape(2, 8, FEATURES)
    padded = {**narrow, "candidates": wide.reshape(2, -1)}
    torch.testing.assert_close(logits(large, padded)[:, :8], logits(small, narrow))
    torch.testing.assert_close(large.predict_values(padded), small.predict_values(narrow))


def test_a_candidate_is_scored_in_the_light_of_the_others_and_of_the_context() -> None:
    policy, observation = make_policy(8), observe(8, [4])
    alone = {**observation, "candidates": observation["candidates"].clone()}
    alone["candidates"][:, FEATURES:] = 0
    assert not torch.isclose(logits(policy, observation)[0, 0], logits(policy, alone)[0, 0])
    elsewhere = {**observation, "context": observation["context"] * 0.5}
    difference = logits(policy, observation)[0, :4] - logits(policy, elsewhere)[0, :4]
    assert difference.std() > 1e-4  # not one shift of all, which would change no choice


def test_a_decision_is_scored_the_same_alone_and_in_a_batch() -> None:
    policy, batch = make_policy(8), observe(8, [3, 8, 1])
    for row in range(3):
        one = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        torch.testing.assert_close(logits(policy, one)[0], logits(policy, batch)[row])


def test_masked_candidates_are_never_chosen() -> None:
    policy, observation = make_policy(8), observe(8, [8])
    best = int(logits(policy, observation).argmax())
    mask = np.ones((1, 8), bool)
    mask[0, best] = False
    arrays = {name: tensor.numpy() for name, tensor in observation.items()}
    assert policy.choose(arrays, np.ones((1, 8), bool))[0] == best
    assert policy.choose(arrays, mask)[0] != best
    with torch.no_grad():
        probabilities = policy.get_distribution(observation, mask).distribution.probs  # type: ignore[union-attr]
    assert probabilities[0, best] == 0
    assert float(probabilities.sum()) == pytest.approx(1.0)


def test_actions_log_probabilities_and_values_agree_between_acting_and_learning() -> None:
    policy, observation = make_policy(8), observe(8, [8, 3, 2])
    mask = np.array([[True] * 8, [True] * 3 + [False] * 5, [True] * 2 + [False] * 6])
    actions, values, log_prob = policy(observation, action_masks=mask)
    again, same_log_prob, entropy = policy.evaluate_actions(observation, actions, torch.from_numpy(mask))
    assert mask[np.arange(3), actions].all()
    torch.testing.assert_close(values, again)
    torch.testing.assert_close(log_prob, same_log_prob)
    assert entropy is not None and (entropy > 0).all() and entropy[2] <= np.log(2) + 1e-6


def test_a_fresh_policy_chooses_nearly_at_random_but_seldom_holds() -> None:
    torch.manual_seed(1)
    boxes = {"candidates": spaces.Box(0, 1, (8 * FEATURES,)), "context": spaces.Box(0, 1, (CONTEXT,))}
    policy = CandidatePolicy(spaces.Dict(boxes), spaces.Discrete(8), lambda _: 1e-3)
    observation = observe(8, [8])
    rows = observation["candidates"].reshape(8, FEATURES)
    rows[:, HOLD] = 0.0
    with torch.no_grad():
        entropy = policy.get_distribution(observation).entropy()
        rows[7] = 0.0
        rows[7, HOLD] = 1.0
        hold = policy.get_distribution(observation).distribution.probs[0, 7]
    assert entropy is not None and float(entropy) > 0.999 * np.log(8)
    assert float(hold) == pytest.approx(np.exp(-4) / (7 + np.exp(-4)), rel=0.05)
