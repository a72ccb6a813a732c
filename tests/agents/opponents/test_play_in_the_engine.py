"""Policies played inside the engine choose what the same weights choose through torch."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.opponents.play import Played, environments, play, play_policy, played
from agents.policies.candidate_policy import CandidatePolicy, PolicySpec
from agents.policies.files import load_policy, save_policy
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import load_schedule, simulate
from dysharp_env.simulator.layout import CONTEXT, DECISION_KINDS, FEATURES
from dysharp_env.simulator.network import Network
from dysharp_env.workload.suite import load_suite

WORKLOADS = load_suite("smoke").draw()
ALL_KINDS = EnvSpec(exposed=("split", "dispatch", "gemm", "combine"), split_moments=2, max_candidates=16)


def random_policy(spec: EnvSpec, seed: int, hidden: int = 32, attention: bool = False) -> CandidatePolicy:
    """Returns a policy whose preferences are pronounced: at its start a policy finds all candidates about equal."""
    torch.manual_seed(seed)
    sizes = PolicySpec(hidden=hidden, hold_reluctance=0.3, attention=attention)
    policy = CandidatePolicy(spec.observation_space(), spec.action_space(), lambda _: 0.0, sizes)
    with torch.no_grad():
        policy.scorer.score.weight.normal_()
        for layer in (policy.scorer.embed_row, policy.scorer.embed, policy.scorer.score_row):
            layer.bias.normal_(std=0.3)
    return policy


def play_through_torch(policy: CandidatePolicy, spec: EnvSpec) -> list[Played]:
    return play(environments(spec, WORKLOADS), WORKLOADS, lambda shown, masks, _: policy.choose(shown, masks))


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("spec", [ALL_KINDS, EnvSpec(exposed=("gemm",), hold=False, partial_tiles=False)])
def test_the_engine_chooses_what_torch_chooses(spec: EnvSpec, attention: bool) -> None:
    for seed in range(3):
        policy = random_policy(spec, seed, attention=attention)
        through_torch = play_through_torch(policy, spec)
        runs = play_policy(policy, spec, WORKLOADS)
        assert played(runs, WORKLOADS) == through_torch


@pytest.mark.parametrize("attention", [False, True])
def test_scores_are_torch_s_up_to_rounding(attention: bool) -> None:
    policy = random_policy(ALL_KINDS, 7, hidden=64, attention=attention)
    network = policy.scoring_network()
    rng = np.random.default_rng(0)
    for count in (1, 2, 9, 16):
        candidates = np.zeros((1, 16, policy.num_features), np.float32)
        candidates[0, :count] = rng.random((count, policy.num_features))
        context = rng.random((1, policy.num_context), np.float32)
        kind = count % len(DECISION_KINDS)
        context[0, : len(DECISION_KINDS)] = np.arange(len(DECISION_KINDS)) == kind
        with torch.no_grad():
            expected = policy.scorer(torch.from_numpy(candidates), torch.from_numpy(context)).numpy()[0, :count]
        scores = network.scores(candidates[0, :count], context[0])
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


def test_a_policy_that_starts_at_a_rule_plays_it() -> None:
    spec = EnvSpec(schedule="dysharp-l2", exposed=("dispatch", "gemm", "combine"), hold=False, partial_tiles=False)
    sizes = PolicySpec(hidden=8, rule="dysharp-l2")
    policy = CandidatePolicy(spec.observation_space(), spec.action_space(), lambda _: 0.0, sizes)
    with torch.no_grad():
        policy.scorer.score.weight.zero_()  # a fresh network's small scores settle ties
    for workload, run in zip(WORKLOADS, play_policy(policy, spec, WORKLOADS), strict=True):
        ruled = simulate(workload.scenario.system, workload.workload, load_schedule("dysharp-l2"))
        assert run.result().makespan_us == ruled.result().makespan_us


def test_equal_scores_take_the_first_candidate_as_torch_does() -> None:
    policy = random_policy(ALL_KINDS, 0)
    with torch.no_grad():
        policy.scorer.score.weight.zero_()
        policy.scorer.linear.zero_()
    through_torch = play_through_torch(policy, ALL_KINDS)
    assert played(play_policy(policy, ALL_KINDS, WORKLOADS), WORKLOADS) == through_torch


def test_training_on_does_not_change_a_network_already_taken() -> None:
    policy = random_policy(ALL_KINDS, 0)
    network = policy.scoring_network()
    before = network.numbers.copy()
    with torch.no_grad():
        for parameter in policy.scorer.parameters():
            parameter.add_(1.0)
    assert all(np.array_equal(a, b) for a, b in zip(network, Network(**vars_of(network)), strict=True))
    np.testing.assert_array_equal(np.concatenate([array.reshape(-1) for array in network]), before)


def test_attention_is_a_mean_of_those_that_match_with_one_more_that_is_nothing() -> None:
    network = random_policy(ALL_KINDS, 0, hidden=2, attention=True).scoring_network()
    weights = {name: array * 0 for name, array in vars_of(network).items()}
    # Embeddings are a candidate's first two features; the first of a candidate is matched with the second of others.
    weights |= {"row": np.eye(len(FEATURES), 2), "embed": np.eye(2), "query": np.array([[0.0, 1.0], [0.0, 0.0]])}
    weights |= {"value": np.eye(2), "score": np.array([1.0, 10.0])}
    attentive = Network(**{name: array.astype(np.float32) for name, array in weights.items()})
    features = np.zeros((3, len(FEATURES)), np.float32)
    features[:, :2] = (1.0, 0.0), (0.5, 1.0), (0.0, 0.5)
    # Matches of the first are 0, 1 and 0.5, those of the second half as much, and the third matches nothing.
    expected = [(0.5 + 10 * 1.25) / 2.5, (0.25 + 10 * 0.625) / 1.75, 0.0]
    scores = attentive.scores(features, np.ones(len(CONTEXT), np.float32))
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_without_attention_a_seed_gives_the_weights_that_it_gave_before_there_was_any() -> None:
    plain, attentive = (random_policy(ALL_KINDS, 0, attention=attention) for attention in (False, True))
    assert not [name for name in plain.state_dict() if name.startswith(("scorer.query", "scorer.value"))]
    network = attentive.scoring_network()
    without = Network(**{**vars_of(network), "query": None, "value": None})
    assert network.attends and not without.attends
    assert without.numbers.shape == plain.scoring_network().numbers.shape


def test_a_policy_with_attention_is_saved_loaded_and_remade_from_its_network(tmp_path: Path) -> None:
    policy = random_policy(ALL_KINDS, 1, attention=True)
    save_policy(tmp_path, policy, 0, None)
    network = policy.scoring_network()
    loaded = load_policy(tmp_path, ALL_KINDS)
    for again in (loaded, CandidatePolicy.of_network(network, ALL_KINDS)):
        assert np.array_equal(again.scoring_network().numbers, network.numbers)
    with pytest.raises(ValueError, match="network: attention takes both 'query' and 'value'"):
        Network(**{**vars_of(network), "value": None})


def vars_of(network: Network) -> dict[str, np.ndarray]:
    return {field.name: getattr(network, field.name) for field in dataclasses.fields(network)}


@pytest.mark.parametrize(
    ("name", "value"), [("row", np.zeros((3, 32), np.float32)), ("score", np.full(32, np.nan, np.float32))]
)
def test_weights_that_do_not_fit_are_refused(name: str, value: np.ndarray) -> None:
    weights = vars_of(random_policy(ALL_KINDS, 0).scoring_network())
    with pytest.raises(ValueError, match=f"network: '{name}' must be finite float32 numbers of shape"):
        Network(**{**weights, name: value})
