"""Weights on disk: safetensors with a JSON card beside them, so that loading a policy executes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save

from agents.policies.candidate_policy import CandidatePolicy, PolicySpec
from dysharp_env.config import ConfigError, Spec, parse_spec
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.report.files import write_bytes, write_text

_POLICY_SCHEMA = "dysharp/policy/2"


class PolicyCard(Spec):
    """What ``policy.json`` says of the weights beside it."""

    format: str = _POLICY_SCHEMA
    """Version of this file."""
    features: int = Field(ge=1)
    """Features of a candidate."""
    context: int = Field(ge=1)
    """Values of the context."""
    policy: PolicySpec
    """Size of the networks."""
    decisions: int = Field(ge=0)
    """Training decisions behind the weights."""
    validation_ratio: float | None = Field(default=None, gt=0, allow_inf_nan=False)
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
    except (ValueError, RecursionError):
        raise ConfigError(f"'{path}' is damaged: it is not JSON") from None
    if not isinstance(data, dict):
        raise ConfigError(f"'{path}' must hold a mapping of keys to values, not {type(data).__name__}")
    return data


def save_policy(folder: Path, policy: CandidatePolicy, decisions: int, validation_ratio: float | None) -> None:
    """Writes ``policy.safetensors`` and ``policy.json`` into ``folder``."""
    card = PolicyCard(
        features=policy.num_features,
        context=policy.num_context,
        # Weights hold what they started at.
        policy=policy.spec.model_copy(update={"rule": ""}),
        decisions=decisions,
        validation_ratio=validation_ratio,
    )
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in policy.state_dict().items()}
    write_bytes(folder / "policy.safetensors", save(weights))
    write_text(folder / "policy.json", card.model_dump_json(indent=2) + "\n")


def load_policy(folder: Path, env: EnvSpec) -> CandidatePolicy:
    """Returns the policy in ``folder`` for environments, which may show more or fewer candidates than in training.

    Raises:
        ConfigError: A file is missing or damaged, or the features differ.
    """
    card = read_card(folder)
    policy = CandidatePolicy(env.observation_space(), env.action_space(), lambda _: 0.0, card.policy)
    load_weights(folder, policy, card)
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


def load_weights(folder: Path, policy: CandidatePolicy, card: PolicyCard) -> None:
    """Loads ``policy.safetensors`` into a policy of the same shape; ``card`` is what lies beside it.

    Raises:
        ConfigError: The file is missing or damaged, the shapes differ, or the card is of other observations.
    """
    for key, said, actual in (
        ("features", card.features, policy.num_features),
        ("context", card.context, policy.num_context),
    ):
        if said != actual:
            raise ConfigError(f"'{folder}/policy.json' does not fit this environment: {key} is {said}, not {actual}")
    path = folder / "policy.safetensors"
    tensors = read_tensors(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    _check_tensors(tensors, shapes, path, fits="this environment")
    policy.load_state_dict(tensors)


def _check_tensors(
    tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], path: Path, fits: str
) -> None:
    """Checks that a file holds exactly the tensors of these shapes, as finite float32 numbers.

    Raises:
        ConfigError: It does not.
    """
    for name in sorted(shapes.keys() | tensors.keys()):
        found = tuple(tensors[name].shape) if name in tensors else None
        wanted = shapes.get(name)
        if found != wanted:
            raise ConfigError(f"'{path}' does not fit {fits}: '{name}' has shape {found}, not {wanted}")
        if tensors[name].dtype != torch.float32:
            raise ConfigError(f"'{path}' is damaged: '{name}' is {tensors[name].dtype}, not {torch.float32}")
        if not bool(tensors[name].isfinite().all()):
            raise ConfigError(f"'{path}' is damaged: '{name}' holds numbers that are not finite")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a safetensors file by name.

    Raises:
        ConfigError: It is missing or damaged.
    """
    try:
        return load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror}") from None
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ConfigError(f"'{path}' is damaged: {error}") from None


def read_numbers(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns the float64 arrays of a safetensors file, which must have these shapes.

    Raises:
        ConfigError: It is missing or damaged, or holds something else.
    """
    arrays = {name: tensor.numpy() for name, tensor in read_tensors(path).items()}
    if {name: array.shape for name, array in arrays.items()} != dict(shapes):
        raise ConfigError(f"'{path}' does not fit: it must hold {sorted(shapes)} of shapes {list(shapes.values())}")
    for name, array in arrays.items():
        if array.dtype != np.float64 or not np.isfinite(array).all():
            raise ConfigError(f"'{path}' is damaged: '{name}' must hold finite float64 numbers")
    return arrays


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Returns Adam's moments and step counts as ``INDEX.NAME`` tensors; the learning rate follows from the schedule."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value).clone().contiguous()
        for index, values in state.items()
        for name, value in values.items()
    }


def load_optimizer(folder: Path, policy: CandidatePolicy) -> None:
    """Loads what ``optimizer_tensors`` returned from ``optimizer.safetensors`` into the policy's optimiser.

    Raises:
        ConfigError: The file is missing or damaged, or is of other networks.
    """
    path = folder / "optimizer.safetensors"
    tensors = read_tensors(path)
    sizes = [tuple(parameter.shape) for parameter in policy.parameters()]
    shapes: dict[str, tuple[int, ...]] = {f"{index}.step": () for index, _ in enumerate(sizes)}
    for moment in ("exp_avg", "exp_avg_sq"):
        shapes |= {f"{index}.{moment}": size for index, size in enumerate(sizes)}
    _check_tensors(tensors, shapes, path, fits="the policy")
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        if name != "exp_avg" and bool((tensor < 0).any()):  # counts and squares
            raise ConfigError(f"'{path}' is damaged: '{key}' holds negative numbers")
        state.setdefault(int(index), {})[name] = tensor
    optimizer = policy.optimizer
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
