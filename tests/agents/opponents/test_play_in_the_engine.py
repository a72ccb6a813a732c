"""Policies played inside the engine choose what the same weights choose through torch."""

import dataclasses

import numpy as np
import pytest
import torch

from agents.opponents.players import Learned
from agents.policies.candidate_policy import CandidatePolicy, Decisions, PolicySpec
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import Problem, load_schedule
from dysharp_env.schedules.opponent import Answer, Opponent, Played, ScheduleOpponent
from dysharp_env.simulator.engine import Decision
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import CONTEXT, DECISION_KINDS, FEATURES
from dysharp_env.workload.suite import load_suite

PROBLEMS = Problem.of_suite(load_suite("smoke").draw())
ALL_KINDS = EnvSpec(exposed=("split", "dispatch", "gemm", "combine"), split_moments=2, max_candidates=16)


def random_policy(spec: EnvSpec, seed: int, hidden: int = 32) -> CandidatePolicy:
    """Returns a policy whose preferences are pronounced: at its start a policy finds all candidates about equal."""
    torch.manual_seed(seed)
    sizes = PolicySpec(hidden=hidden, hold_reluctance=0.3)
    policy = CandidatePolicy(spec.observation_space(), spec.action_space(), lambda _: 0.0, sizes)
    with torch.no_grad():
        policy.scorer.score.weight.normal_()
        for layer in (policy.scorer.embed_row, policy.scorer.embed, policy.scorer.score_row):
            layer.bias.normal_(std=0.3)
    return policy


class ThroughTorch(Learned):
    """Answers decisions one by one, through the policy that the network is of."""

    run = Opponent.run

    def answers(self, problem: Problem, place: int) -> Answer:
        policy = CandidatePolicy.of_network(self.network, self.env)

        def answer(decision: Decision) -> int:
            shown = {"candidates": decision.features.reshape(1, -1), "context": decision.context[None]}
            return int(policy.choose(shown, decision.mask[None])[0])

        return answer


def play_through_torch(policy: CandidatePolicy, spec: EnvSpec) -> list[Played]:
    return ThroughTorch(None, spec, policy.scoring_network()).play(PROBLEMS)


def play_in_the_engine(policy: CandidatePolicy, spec: EnvSpec) -> list[Played]:
    return Learned(None, spec, policy.scoring_network()).play(PROBLEMS)


@pytest.mark.parametrize("spec", [ALL_KINDS, EnvSpec(exposed=("gemm",), hold=False, partial_tiles=False)])
def test_the_engine_chooses_what_torch_chooses(spec: EnvSpec) -> None:
    for seed in range(3):
        policy = random_policy(spec, seed)
        assert play_in_the_engine(policy, spec) == play_through_torch(policy, spec)


def test_scores_are_torch_s_up_to_rounding() -> None:
    policy = random_policy(ALL_KINDS, 7, hidden=64)
    network = policy.scoring_network()
    rng = np.random.default_rng(0)
    for count in (1, 2, 9, 16):
        candidates = np.zeros((1, 16, len(FEATURES)), np.float32)
        candidates[0, :count] = rng.random((count, len(FEATURES)))
        context = rng.random((1, len(CONTEXT)), np.float32)
        kind = count % len(DECISION_KINDS)
        context[0, : len(DECISION_KINDS)] = np.arange(len(DECISION_KINDS)) == kind
        with torch.no_grad():
            shown = {"candidates": torch.from_numpy(candidates), "context": torch.from_numpy(context)}
            expected = policy.scorer(Decisions.of(shown)).numpy()[0, :count]
        scores = network.scores(candidates[0, :count], context[0])
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


def test_a_policy_that_starts_at_a_rule_plays_it() -> None:
    spec = EnvSpec(schedule="dysharp-l2", exposed=("dispatch", "gemm", "combine"), hold=False, partial_tiles=False)
    sizes = PolicySpec(hidden=8, rule="dysharp-l2")
    policy = CandidatePolicy(spec.observation_space(), spec.action_space(), lambda _: 0.0, sizes)
    with torch.no_grad():
        policy.scorer.score.weight.zero_()  # a fresh network's small scores settle ties
    ruled = ScheduleOpponent(load_schedule("dysharp-l2")).play(PROBLEMS)
    for mine, expected in zip(play_in_the_engine(policy, spec), ruled, strict=True):
        assert mine.makespan_us == expected.makespan_us
        assert mine.decisions == mine.asked > 0
        assert (expected.decisions, expected.asked) == (mine.decisions, 0)


def test_equal_scores_take_the_first_candidate_as_torch_does() -> None:
    policy = random_policy(ALL_KINDS, 0)
    with torch.no_grad():
        policy.scorer.score.weight.zero_()
        policy.scorer.linear.zero_()
    assert play_in_the_engine(policy, ALL_KINDS) == play_through_torch(policy, ALL_KINDS)


def test_training_on_does_not_change_a_network_already_taken() -> None:
    policy = random_policy(ALL_KINDS, 0)
    network = policy.scoring_network()
    before = network.numbers.copy()
    with torch.no_grad():
        for parameter in policy.scorer.parameters():
            parameter.add_(1.0)
    assert all(np.array_equal(a, b) for a, b in zip(network, Network(**vars_of(network)), strict=True))
    np.testing.assert_array_equal(np.concatenate([array.reshape(-1) for array in network]), before)


def vars_of(network: Network) -> dict[str, np.ndarray]:
    return {field.name: getattr(network, field.name) for field in dataclasses.fields(network)}


@pytest.mark.parametrize(
    ("name", "value"), [("row", np.zeros((3, 32), np.float32)), ("score", np.full(32, np.nan, np.float32))]
)
def test_weights_that_do_not_fit_are_refused(name: str, value: np.ndarray) -> None:
    weights = vars_of(random_policy(ALL_KINDS, 0).scoring_network())
    with pytest.raises(ValueError, match=f"network: '{name}' must be finite float32 numbers of shape"):
        Network(**{**weights, name: value})


def test_the_mean_of_networks_scores_as_they_do_on_average() -> None:
    rng = np.random.default_rng(3)
    members = [
        Network(**{name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in Network.shapes(width).items()})
        for width in (3, 5, 4)
    ]
    features, context = rng.random((7, len(FEATURES)), np.float32), rng.random(len(CONTEXT), np.float32)
    each = [member.scores(features, context) for member in members]
    mean = Network.mean_of(members)
    assert mean.width == 12
    np.testing.assert_allclose(mean.scores(features, context), np.mean(each, axis=0), atol=1e-5)
    assert not np.allclose(each[0], each[1], atol=0.1)
    alone = Network.mean_of(members[:1])
    np.testing.assert_array_equal(alone.numbers, members[0].numbers)
