"""Policies on disk: columns go by name, whatever their order, and files of earlier versions are read."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from agents.policies.candidate_policy import CandidatePolicy, PolicySpec
from agents.policies.card import PolicyCard, read_card
from agents.policies.files import load_optimizer, load_policy, optimizer_tensors
from agents.training.run_folder import RunFolder
from dysharp_env.config import ConfigError
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.simulator.state.observation import CONTEXT, FEATURES

ENV = EnvSpec(exposed=("gemm",), max_candidates=16)
F, C = len(FEATURES), len(CONTEXT)


@pytest.fixture
def policy() -> CandidatePolicy:
    torch.manual_seed(0)
    made = CandidatePolicy(ENV.observation_space(), ENV.action_space(), lambda _: 1e-3, PolicySpec(hidden=8))
    with torch.no_grad():
        made.scorer.linear.normal_()
    return made


@pytest.fixture
def folder(policy: CandidatePolicy, tmp_path: Path) -> Path:
    best = tmp_path / "best"
    best.mkdir()
    RunFolder(best.parent).save_best(policy, PolicyCard(name="mine", seed=3, env=ENV, policy=policy.spec, decisions=7))
    return best


def rewrite(best: Path, features: list[int], context: list[int]) -> None:
    """Writes a policy, without its checksum, as if features and context values were these of today's, in that order."""
    tensors = load_file(best / "policy.safetensors")
    pooled = [*context, *(C + place for place in features), *(C + F + place for place in features)]
    tensors["scorer.embed_row.weight"] = tensors["scorer.embed_row.weight"][:, features].contiguous()
    tensors["scorer.embed_context.weight"] = tensors["scorer.embed_context.weight"][:, context].contiguous()
    tensors["scorer.linear"] = tensors["scorer.linear"][context][:, features].contiguous()
    tensors["critic.layers.0.weight"] = tensors["critic.layers.0.weight"][:, pooled].contiguous()
    save_file(tensors, best / "policy.safetensors")
    named = {"features": [FEATURES[place] for place in features], "context": [CONTEXT[place] for place in context]}
    change(best, sha256=None, **named)


def change(best: Path, **values: object) -> None:
    card = json.loads((best / "policy.json").read_text())
    (best / "policy.json").write_text(json.dumps({**card, **values}))


def assert_same_weights(first: CandidatePolicy, second: CandidatePolicy) -> None:
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_a_card_says_whose_the_weights_are(folder: Path, policy: CandidatePolicy) -> None:
    card = read_card(folder)
    assert (card.name, card.seed, card.env, card.decisions) == ("mine", 3, ENV, 7)
    assert (card.features, card.context) == (FEATURES, CONTEXT)
    assert_same_weights(load_policy(folder), policy)


def test_columns_in_another_order_are_the_same_policy(
    folder: Path, policy: CandidatePolicy, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    rewrite(folder, rng.permutation(F).tolist(), rng.permutation(C).tolist())
    assert load_file(folder / "policy.safetensors")["scorer.linear"].ne(policy.scorer.linear).any()
    assert_same_weights(load_policy(folder), policy)
    assert capsys.readouterr().err == ""


def test_what_is_new_since_counts_nothing_and_is_told(
    folder: Path, policy: CandidatePolicy, capsys: pytest.CaptureFixture[str]
) -> None:
    features = [place for place in range(F) if FEATURES[place] != "cost"]
    context = [place for place in range(C) if CONTEXT[place] not in ("l2_room", "ready")]
    rewrite(folder, features, context)
    network, before = load_policy(folder).scoring_network(), policy.scoring_network()
    assert capsys.readouterr().err.splitlines() == [
        f"'{folder}/policy.json' does not know cost (features): weights of 0",
        f"'{folder}/policy.json' does not know l2_room, ready (context): weights of 0",
    ]
    new, rows = FEATURES.index("cost"), [CONTEXT.index("l2_room"), CONTEXT.index("ready")]
    assert not network.row[new].any() and not network.context[rows].any()
    assert not network.linear[:, new].any() and not network.linear[rows].any()
    assert np.array_equal(network.row[features], before.row[features])
    assert np.array_equal(network.linear[np.ix_(context, features)], before.linear[np.ix_(context, features)])


def test_what_is_gone_is_refused(folder: Path) -> None:
    change(folder, features=["temperature", *FEATURES[1:]])
    with pytest.raises(ConfigError, match="does not fit this version: features has no temperature$"):
        load_policy(folder)


def test_moments_go_where_their_weights_go(folder: Path, policy: CandidatePolicy) -> None:
    for parameter in policy.parameters():
        parameter.grad = torch.rand_like(parameter)
    policy.optimizer.step()
    moments = optimizer_tensors(policy.optimizer)
    places = {name: number for number, (name, _) in enumerate(policy.named_parameters())}
    order = [*range(F)][::-1]
    rewrite(folder, order, [*range(C)])
    pooled = [*range(C), *(C + place for place in order), *(C + F + place for place in order)]
    moved = {"scorer.embed_row.weight": order, "scorer.linear": order, "critic.layers.0.weight": pooled}
    filed = dict(moments)
    for name, columns in moved.items():
        for of in ("exp_avg", "exp_avg_sq"):
            filed[f"{places[name]}.{of}"] = filed[f"{places[name]}.{of}"][:, columns].contiguous()
    save_file(filed, folder / "optimizer.safetensors")
    again = load_policy(folder)
    load_optimizer(folder, again, read_card(folder))
    for key, tensor in optimizer_tensors(again.optimizer).items():
        assert torch.equal(tensor, moments[key]), key


def write_format_2(best: Path, **config: object) -> None:
    """Writes a card as format 2 did, and what it left to the run."""
    size = {"hidden": 8, "value_hidden": 64, "hold_reluctance": 4.0, "rule": "", "rule_scale": 20.0, "attention": False}
    card = {"format": "dysharp/policy/2", "features": 17, "context": 24, "policy": size, "decisions": 7}
    (best / "policy.json").write_text(json.dumps(card))
    run = {"name": "mine", "seed": 3, "env": ENV.model_dump(mode="json"), **config}
    (best.parent / "config.yaml").write_text(yaml.safe_dump(run))


def test_format_2_counted_what_it_knew(folder: Path, policy: CandidatePolicy) -> None:
    filed = read_card(folder)
    write_format_2(folder)
    card = read_card(folder)
    assert (card.name, card.seed, card.env) == (filed.name, filed.seed, filed.env)
    assert (len(card.features), len(card.context)) == (17, 24)
    features = [FEATURES.index(name) for name in card.features]
    context = [CONTEXT.index(name) for name in card.context]
    rewrite(folder, features, context)
    write_format_2(folder)
    network, before = load_policy(folder).scoring_network(), policy.scoring_network()
    assert np.array_equal(network.row[features], before.row[features])
    assert np.array_equal(network.linear[np.ix_(context, features)], before.linear[np.ix_(context, features)])


def test_format_2_needs_its_run(folder: Path) -> None:
    write_format_2(folder)
    (folder.parent / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="which needs the config.yaml of its run"):
        read_card(folder)


def test_what_format_2_could_and_this_cannot_is_refused(folder: Path) -> None:
    write_format_2(folder)
    change(folder, policy={"hidden": 8, "attention": True})
    with pytest.raises(ConfigError, match="policy.attention=True is of an earlier version; this one has none"):
        read_card(folder)
