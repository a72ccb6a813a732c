"""Weights on disk: safetensors with a JSON card beside them, so that loading a policy executes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from safetensors import SafetensorError
from safetensors.torch import load, save

from agents.policy import CandidatePolicy, PolicySpec
from dysharp_env.config import ConfigError, Spec, parse_spec
from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.report.files import write_bytes, write_text

_POLICY_SCHEMA = "dysharp/policy/1"


class PolicyCard(Spec):
    """What ``policy.json`` says of the weights beside it."""

    format: str = _POLICY_SCHEMA
    """Version of this file."""
    features: int
    """Features of a candidate."""
    context: int
    """Values of the context."""
    policy: PolicySpec
    """Size of the networks."""
    decisions: int
    """Training decisions behind the weights."""
    validation_ratio: float | None = None
    """Mean makespan over lower bound on the validation suite, where it was measured."""


def read_json(path: Path) -> dict[str, Any]:
    """Returns the mapping a JSON file holds.

    Raises:
        ConfigError: It is missing, damaged, or not a mapping.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"'{path}' is damaged: it is not JSON") from None
    if not isinstance(data, dict):
        raise ConfigError(f"'{path}' must hold a mapping of keys to values, not {type(data).__name__}")
    return data


def save_policy(folder: Path, policy: CandidatePolicy, decisions: int, validation_ratio: float | None) -> None:
    """Writes ``policy.safetensors`` and ``policy.json`` into ``folder``."""
    card = PolicyCard(
        features=policy.num_features,
        context=policy.num_context,
        policy=policy.spec,
        decisions=decisions,
        validation_ratio=validation_ratio,
    )
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in policy.state_dict().items()}
    write_bytes(folder / "policy.safetensors", save(weights))
    write_text(folder / "policy.json", card.model_dump_json(indent=2) + "\n")


def load_policy(folder: Path, env: TokenScheduleEnv) -> CandidatePolicy:
    """Returns the policy in ``folder`` for an environment, which may show more or fewer candidates than in training.

    Raises:
        ConfigError: A file is missing or damaged, or the features differ.
    """
    card = read_card(folder)
    assert isinstance(env.observation_space, spaces.Dict) and isinstance(env.action_space, spaces.Discrete)
    policy = CandidatePolicy(env.observation_space, env.action_space, lambda _: 0.0, card.policy)
    load_weights(folder, policy)
    policy.set_training_mode(False)
    return policy


def read_card(folder: Path) -> PolicyCard:
    """Returns what ``policy.json`` says.

    Raises:
        ConfigError: It is missing or damaged, or of another version.
    """
    card = parse_spec(PolicyCard, read_json(folder / "policy.json"), source=str(folder / "policy.json"))
    if card.format != _POLICY_SCHEMA:
        raise ConfigError(f"'{folder}/policy.json' has format '{card.format}'; this version reads '{_POLICY_SCHEMA}'")
    return card


def load_weights(folder: Path, policy: CandidatePolicy) -> None:
    """Loads ``policy.safetensors`` into a policy of the same shape.

    Raises:
        ConfigError: The file is missing or damaged, or the shapes differ.
    """
    path = folder / "policy.safetensors"
    tensors = read_tensors(path)
    expected = policy.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        found, wanted = (tuple(table[name].shape) if name in table else None for table in (tensors, expected))
        if found != wanted:
            raise ConfigError(f"'{path}' does not fit this environment: '{name}' has shape {found}, not {wanted}")
    policy.load_state_dict(tensors)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a safetensors file by name.

    Raises:
        ConfigError: It is missing or damaged.
    """
    try:
        return load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror}") from None
    except SafetensorError as error:
        raise ConfigError(f"'{path}' is damaged: {error}") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Returns Adam's moments and step counts as ``INDEX.NAME`` tensors; the learning rate follows from the schedule."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value).clone().contiguous()
        for index, values in state.items()
        for name, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Loads what ``optimizer_tensors`` returned into an optimiser of the same parameters."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
