"""RL Zoo's vocabulary: what it writes is read, and what has no place here is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from agents.training.spec import TrainSpec
from dysharp_env.config import ConfigError, parse_spec

# Keys and ways to write them as hyperparams/ppo.yml of RL Zoo has them.
BLOCK = """
n_envs: 8
n_timesteps: !!float 1e5
policy: 'MultiInputPolicy'
n_steps: 128
batch_size: 256
gae_lambda: 0.98
gamma: 0.999
n_epochs: 4
ent_coef: 0.01
learning_rate: lin_2.5e-4
clip_range: lin_0.1
vf_coef: 0.5
normalize: false
use_sde: False
sde_sample_freq: -1
policy_kwargs: "dict(ortho_init=True, net_arch=dict(pi=[256, 256], vf=[32, 32]))"
"""


def spec_of(ppo: dict[str, Any], **settings: Any) -> TrainSpec:
    return parse_spec(TrainSpec, {"ppo": ppo, **settings}, source="test")


def test_a_block_can_be_pasted() -> None:
    spec = spec_of(yaml.safe_load(BLOCK), policy={"hold_reluctance": 1.0})
    assert (spec.num_envs, spec.total_decisions, spec.ppo.n_steps, spec.ppo.batch_size) == (8, 100_000, 128, 256)
    assert (spec.ppo.gae_lambda, spec.ppo.gamma, spec.ppo.ent_coef) == (0.98, 0.999, 0.01)
    assert (spec.policy.hidden, spec.policy.value_hidden, spec.policy.hold_reluctance) == (256, 32, 1.0)
    assert [spec.ppo.rate(left) for left in (1.0, 0.5, 0.0)] == [2.5e-4, 1.25e-4, 0.0]
    assert [spec.ppo.clip(left) for left in (1.0, 0.5, 0.0)] == [0.1, 0.05, 0.0]
    assert parse_spec(TrainSpec, spec.model_dump(), source="again") == spec


def test_numbers_that_yaml_takes_for_text_are_read() -> None:
    assert spec_of(yaml.safe_load("learning_rate: 3e-4")).ppo.learning_rate == 3e-4
    assert spec_of({}).with_changes({"ppo.learning_rate": "lin_1e-3"}).ppo.rate(0.5) == 5e-4


@pytest.mark.parametrize(
    ("ppo", "said"),
    [
        ({"normalize": True}, "normalize=True has no place here: observations lie in [0, 1]"),
        ({"frame_stack": 4}, "frame_stack=4 has no place here: an observation says all there is to know; leave it out"),
        ({"use_sde": True}, "use_sde=True has no place here: state-dependent exploration is for continuous actions"),
        ({"policy": "CnnPolicy"}, "ppo.policy='CnnPolicy' must be one of ['MlpPolicy', 'MultiInputPolicy']"),
        (
            {"policy_kwargs": "dict(activation_fn=nn.ReLU)"},
            "activation_fn has no place here: candidates go through ReLU",
        ),
        ({"policy_kwargs": {"net_arch": [64]}}, "net_arch pi=[64] must be two layers of one width, as [64, 64]"),
        (
            {"policy_kwargs": "__import__('os')"},
            "must be a mapping, or the text of one such as dict(net_arch=[64, 64])",
        ),
        ({"learning_rate": "lin_x"}, "learning_rate='x' must be a number"),
        ({"n_timesteps": 0.5}, "total_decisions=0.5"),
        ({"n_step": 4}, "unknown key 'ppo.n_step' (did you mean 'ppo.n_steps'?)"),
    ],
)
def test_what_has_no_place_here_is_refused_with_the_reason(ppo: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        spec_of(ppo)
    assert said in str(caught.value) and "\n" not in str(caught.value)
