"""Hyper-parameters as RL Zoo writes them: a block of one of its files can stand under ``ppo``.

RL Zoo (github.com/DLR-RM/rl-baselines3-zoo, hyperparams/ppo.yml) names what Stable-Baselines3's constructors take, and
besides them how many copies there are, how long to train, a policy by name, and networks as the text of a ``dict``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

_NUMBER = re.compile(r"\d+(\.\d*)?[eE][+-]?\d+")  # which YAML 1.1 takes for text, as in 3e-4
_MOVED = {"n_envs": "num_envs", "n_timesteps": "total_decisions"}
_POLICIES = ("MlpPolicy", "MultiInputPolicy")
# What RL Zoo and Stable-Baselines3 know and this does not have, with the reason.
_REFUSED = {
    "normalize": "observations lie in [0, 1] and rewards are in lower bounds already",
    "env_wrapper": "what an environment shows and asks is said under env",
    "vec_env_wrapper": "copies are played inside the engine",
    "frame_stack": "an observation says all there is to know",
    "env_kwargs": "settings of the environment stand under env",
    "callback": "validations and checkpoints are settings of the run: eval_every_decisions, checkpoint_every_decisions",
    "monitor_kwargs": "episodes are recorded in episodes.csv",
    "use_sde": "state-dependent exploration is for continuous actions",
    "sde_sample_freq": "state-dependent exploration is for continuous actions",
    "seed": "the seed is the run's, one level up",
    "device": "training is on the processor",
    "verbose": "--quiet is an option of the command",
    "tensorboard_log": "curves go to the run folder",
    "stats_window_size": "curves of rollouts are means over 32 episodes",
    "rollout_buffer_class": "the buffer is the engine's",
    "rollout_buffer_kwargs": "the buffer is the engine's",
    "noise_type": "choices are drawn by their probabilities",
}
_REFUSED_OF_POLICY = {
    "activation_fn": "candidates go through ReLU and values through Tanh",
    "log_std_init": "it is for continuous actions",
    "use_sde": "it is for continuous actions",
    "features_extractor_class": "the networks score candidates one by one",
    "features_extractor_kwargs": "the networks score candidates one by one",
    "optimizer_class": "the optimiser is Adam",
    "optimizer_kwargs": "the optimiser is Adam",
    "share_features_extractor": "policy and value have networks of their own",
    "squash_output": "it is for continuous actions",
}


def translate_run(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a run's settings with what RL Zoo puts among hyper-parameters where it belongs here.

    Raises:
        ValueError: Something there has no place here.
    """
    ppo = data.get("ppo")
    if not isinstance(ppo, Mapping):
        return dict(data)
    ppo, run = dict(ppo), dict(data)
    for theirs, ours in _MOVED.items():
        if theirs in ppo:
            run[ours] = _whole(_number(ppo.pop(theirs)))
    named = ppo.pop("policy", _POLICIES[0])
    if named not in _POLICIES:
        raise ValueError(
            f"ppo.policy={named!r} must be one of {[*_POLICIES]}: the networks score candidates one by one"
        )
    if "policy_kwargs" in ppo:
        sizes = _sizes(ppo.pop("policy_kwargs"))
        run["policy"] = {**dict(run.get("policy") or {}), **sizes}
    run["ppo"] = ppo
    return run


def translate_ppo(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns hyper-parameters with RL Zoo's ways to write numbers read.

    Raises:
        ValueError: A key is known there and has no place here.
    """
    read: dict[str, Any] = {}
    for key, value in data.items():
        if key in _REFUSED:
            if value in (False, None) or (key == "sde_sample_freq" and value == -1):
                continue
            raise ValueError(f"{key}={value!r} has no place here: {_REFUSED[key]}; leave it out")
        name, _, rest = str(value).partition("_") if isinstance(value, str) else ("", "", "")
        if key in ("learning_rate", "clip_range") and name == "lin":
            read |= {key: _number(rest), f"{key}_schedule": "linear_to_zero"}
        elif key not in read:  # a schedule that stands in the number wins over one beside it
            read[key] = _number(value)
    return read


def _number(value: Any) -> Any:
    """Returns a number that YAML has taken for text as one, and anything else as it is."""
    if isinstance(value, str) and (_NUMBER.fullmatch(value) or re.fullmatch(r"\d*\.?\d+", value)):
        return float(value)
    return value


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _sizes(given: Any) -> dict[str, int]:
    """Returns the widths that ``policy_kwargs`` asks for, under their names here.

    Raises:
        ValueError: It asks for something that the networks do not have.
    """
    kwargs = _mapping(given)
    for key, value in kwargs.items():
        if key in _REFUSED_OF_POLICY:
            raise ValueError(f"ppo.policy_kwargs: {key} has no place here: {_REFUSED_OF_POLICY[key]}; leave it out")
        if key == "ortho_init" and value is not True:
            raise ValueError("ppo.policy_kwargs: ortho_init must be True: weights begin orthogonal")
        if key not in ("net_arch", "ortho_init"):
            raise ValueError(f"ppo.policy_kwargs: {key} is unknown; net_arch says how wide the networks are")
    arch = kwargs.get("net_arch", {})
    layers = arch if isinstance(arch, dict) else {"pi": arch, "vf": arch}
    sizes = {}
    for part, ours in (("pi", "hidden"), ("vf", "value_hidden")):
        if part not in layers:
            continue
        widths = layers[part]
        if not isinstance(widths, list) or len(widths) != 2 or widths[0] != widths[1]:
            raise ValueError(
                f"ppo.policy_kwargs: net_arch {part}={widths} must be two layers of one width, as [64, 64]"
            )
        sizes[ours] = widths[0]
    return sizes


def _mapping(given: Any) -> dict[str, Any]:
    """Returns keyword arguments that are a mapping, or the text of a ``dict``; nothing in it is executed.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(given, Mapping):
        return dict(given)
    try:
        read = _literal(ast.parse(str(given).strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise ValueError(
            f"ppo.policy_kwargs={given!r} must be a mapping, or the text of one such as dict(net_arch=[64, 64])"
        )
    return read


def _literal(node: ast.expr) -> Any:
    """Returns the value of a literal in which ``dict(...)`` may stand; a name stands for itself, as text."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {str(each.arg): _literal(each.value) for each in node.keywords}
    if isinstance(node, ast.Dict):
        return {_literal(key): _literal(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(each) for each in node.elts]
    if isinstance(node, ast.Name | ast.Attribute):
        return ast.unparse(node)
    return ast.literal_eval(node)
