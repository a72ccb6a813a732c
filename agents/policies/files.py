"""Weights on disk: safetensors with a JSON card beside them, so that loading a policy executes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load, save

from dysharp_env.config import ConfigError
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.files import foreign, read_bytes, shown
from dysharp_env.simulator.state.observation import CONTEXT, FEATURES
from dysharp_env.simulator.warmup import notice

from .candidate_policy import CandidatePolicy
from .card import PolicyCard, read_card

_WEIGHTS = "policy.safetensors"
_NAMED = 3  # names in a line
_HERE = "this environment"  # what weights of a policy should fit
_MOST_BYTES = 1 << 30  # of a file of weights
# By tensor, what each of its columns, and then each of its rows, belongs to: blocks of names one after the other.
_COLUMNS: dict[str, tuple[str, ...]] = {"critic.layers.0.weight": ("context", "features", "features")}
_ROWS: dict[str, tuple[str, ...]] = {}
for _part in ("scorer", "opening"):
    _COLUMNS |= {f"{_part}.embed_row.weight": ("features",), f"{_part}.embed_context.weight": ("context",)}
    _COLUMNS |= {f"{_part}.linear": ("features",)}
    _ROWS |= {f"{_part}.linear": ("context",)}


class _File(NamedTuple):
    """A safetensors file, and what is in it by name."""

    content: bytes
    tensors: dict[str, torch.Tensor]


def policy_files(policy: CandidatePolicy, card: PolicyCard) -> dict[str, bytes]:
    """Returns ``policy.safetensors`` and ``policy.json``."""
    # Weights hold what they started at.
    spec = policy.spec.model_copy(update={"rule": ""})
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in policy.state_dict().items()}
    content = save(weights)
    now = {"policy": spec, "sha256": hashlib.sha256(content).hexdigest()}
    text = card.model_copy(update=now).model_dump_json(indent=2) + "\n"
    return {_WEIGHTS: content, "policy.json": text.encode()}


def load_policy(folder: Path, env: EnvSpec | None = None) -> CandidatePolicy:
    """Returns the policy in ``folder``.

    Args:
        folder: A run's ``best``, or a checkpoint.
        env: What it is to act in, which may show more or fewer candidates than in training; None is what it was
            trained in.

    Raises:
        ConfigError: A file is missing or damaged, or the policy looks at what there is no more.
    """
    card, path = read_card(folder), folder / _WEIGHTS
    file = _read(path)
    _check_widths(path, file.tensors, card)
    env = env or card.env
    policy = CandidatePolicy(env.observation_space(), env.action_space(), lambda _: 0.0, card.policy)
    _check_names(folder, card)
    _put(path, file, policy, card)
    policy.set_training_mode(False)
    return policy


def load_weights(folder: Path, policy: CandidatePolicy, card: PolicyCard) -> None:
    """Loads ``policy.safetensors`` into a policy of the same width; ``card`` is what lies beside it.

    Columns are put where their names are now. Names that are new get weights of 0, and a line says so.

    Raises:
        ConfigError: The file is missing or damaged, the shapes differ, or the policy looks at what there is no more.
    """
    _check_names(folder, card)
    path = folder / _WEIGHTS
    _put(path, _read(path), policy, card)


def _check_names(folder: Path, card: PolicyCard) -> None:
    """Checks that what a policy looks at is still shown, and says what is shown that it does not know."""
    for kind, known in (("features", FEATURES), ("context", CONTEXT)):
        named = getattr(card, kind)
        if missing := [name for name in named if name not in known]:
            raise ConfigError(f"'{folder}/policy.json' does not fit this version: {kind} has no {', '.join(missing)}")
        if new := [name for name in known if name not in named]:
            more = f" and {len(new) - _NAMED} more" if len(new) > _NAMED else ""
            notice(f"'{folder}/policy.json' does not know {', '.join(new[:_NAMED])}{more} ({kind}): weights of 0")


def _put(path: Path, file: _File, policy: CandidatePolicy, card: PolicyCard) -> None:
    """Gives a policy the weights that a file holds, if they are those of its card."""
    shapes = {name: _shape_in_file(name, tensor, card) for name, tensor in policy.state_dict().items()}
    tensors = _checked(path, file.tensors, shapes, _HERE, torch.float32)
    if card.sha256 is not None and hashlib.sha256(file.content).hexdigest() != card.sha256:
        raise ConfigError(f"'{path}' is damaged: its checksum is not that of policy.json")
    policy.load_state_dict({name: _placed(name, tensor, card) for name, tensor in tensors.items()})


def _check_widths(path: Path, tensors: Mapping[str, torch.Tensor], card: PolicyCard) -> None:
    """Checks that networks as wide as a card says are in the file, before memory and time are spent on making them."""
    spec = card.policy
    widths = {"critic.layers.2": spec.value_hidden, "opening.embed": spec.opening_hidden, "scorer.embed": spec.hidden}
    for part, width in widths.items():
        for name, shape in ((f"{part}.bias", (width,)), (f"{part}.weight", (width, width))):
            if width:  # there is no network for openings where it has none
                _require_shape(path, name, tensors, shape, _HERE)


def _require_shape(
    path: Path, name: str, tensors: Mapping[str, torch.Tensor], wanted: tuple[int, ...] | None, fits: str
) -> None:
    found = tuple(tensors[name].shape) if name in tensors else None
    if found != wanted:
        raise ConfigError(f"'{path}' does not fit {fits}: '{shown(name)}' has shape {found}, not {wanted}")


def _blocks(table: Mapping[str, Sequence[str]], name: str, card: PolicyCard) -> tuple[list[str], list[str]]:
    """Returns what the columns (or rows) of a tensor belong to, as in the file and as now; each is KIND.BLOCK.NAME."""
    now = {"features": FEATURES, "context": CONTEXT}
    blocks = [*enumerate(table.get(name, ()))]
    filed = [f"{kind}.{number}.{each}" for number, kind in blocks for each in getattr(card, kind)]
    return filed, [f"{kind}.{number}.{each}" for number, kind in blocks for each in now[kind]]


def _shape_in_file(name: str, tensor: torch.Tensor, card: PolicyCard) -> tuple[int, ...]:
    """Returns the shape that one of a policy's tensors has in the file of a card."""
    shape = [*tensor.shape]
    for axis, table in ((0, _ROWS), (1, _COLUMNS)):
        if name in table:
            shape[axis] = len(_blocks(table, name, card)[0])
    return tuple(shape)


def _placed(name: str, tensor: torch.Tensor, card: PolicyCard) -> torch.Tensor:
    """Returns a tensor of a file with its rows and columns where their names are now, and 0 in those that are new."""
    for axis, table in ((0, _ROWS), (1, _COLUMNS)):
        filed, now = _blocks(table, name, card)
        if filed != now:
            shape = [*tensor.shape]
            shape[axis] = len(now)
            there = torch.tensor([now.index(each) for each in filed])
            tensor = tensor.new_zeros(shape).index_copy(axis, there, tensor)
    return tensor


def read_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], fits: str, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Returns the tensors of a safetensors file, by name: exactly those of these shapes, all of them finite.

    Raises:
        ConfigError: It is missing or damaged, or holds something else, which does not fit what is named.
    """
    return _checked(path, load_tensors(path), shapes, fits, dtype)


def _checked(
    path: Path,
    tensors: dict[str, torch.Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    fits: str,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    for name in sorted(shapes.keys() | tensors.keys()):
        _require_shape(path, name, tensors, shapes.get(name), fits)
        if tensors[name].dtype != dtype:
            raise ConfigError(f"'{path}' is damaged: '{name}' is {tensors[name].dtype}, not {dtype}")
        if not bool(tensors[name].isfinite().all()):
            raise ConfigError(f"'{path}' is damaged: '{name}' holds numbers that are not finite")
    return tensors


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a safetensors file, by name.

    Raises:
        ConfigError: It is missing or damaged.
    """
    return _read(path).tensors


def _read(path: Path) -> _File:
    content = read_bytes(path, _MOST_BYTES, "weights")
    with foreign(f"'{path}' is damaged", "safetensors file"):
        return _File(content, load(content))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Returns Adam's moments and step counts as ``INDEX.NAME`` tensors; the learning rate follows from the schedule."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value).clone().contiguous()
        for index, values in state.items()
        for name, value in values.items()
    }


def load_optimizer(folder: Path, policy: CandidatePolicy, card: PolicyCard) -> None:
    """Loads what ``optimizer_tensors`` returned from ``optimizer.safetensors`` into the policy's optimiser.

    Raises:
        ConfigError: The file is missing or damaged, or is of other networks.
    """
    path = folder / "optimizer.safetensors"
    names, shapes = [], dict[str, tuple[int, ...]]()
    # Before its first step Adam has nothing to remember.
    for index, (name, parameter) in enumerate(policy.named_parameters() if card.decisions else ()):
        names.append(name)
        shape = _shape_in_file(name, parameter, card)
        shapes |= {f"{index}.step": (), f"{index}.exp_avg": shape, f"{index}.exp_avg_sq": shape}
    tensors = read_tensors(path, shapes, fits="the policy")
    state: dict[int, dict[str, torch.Tensor]] = {index: {} for index, _ in enumerate(names)}
    for key, tensor in tensors.items():
        place, of = key.split(".", 1)
        if of != "exp_avg" and bool((tensor < 0).any()):  # counts and squares
            raise ConfigError(f"'{path}' is damaged: '{key}' holds negative numbers")
        state[int(place)][of] = tensor if of == "step" else _placed(names[int(place)], tensor, card)
    optimizer = policy.optimizer
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
