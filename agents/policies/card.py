"""``policy.json``: what the weights beside it are of, by name, so that they are read right when columns have moved.

Format 3 holds the run's name, seed and environment, and the names of the features and context values that columns of
weights belong to. Format 2 held their counts alone; its names are those of its time, and the rest stands in the run's
``config.yaml``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from dysharp_env.config import ConfigError, Spec, parse_spec, read_yaml
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.files import read_mapping
from dysharp_env.schedules import schedule_names
from dysharp_env.simulator.state.observation import CONTEXT, FEATURES

from .candidate_policy import PolicySpec

RANDOM, FIRST = "random", "first"  # the names under which choices without a policy are shown
REFERENCE = "reference"  # the name of the shipped agent
_SCHEMA, _COUNTING = "dysharp/policy/3", "dysharp/policy/2"
# What format 2 calls its columns, for ever.
_FEATURES_2 = (
    *("is_hold", "order", "size", "is_gemm2", "is_partial", "weights_in_l2", "waiting", "expert_left", "finishes"),
    *("tile_fill", "expert_progress", "fan_out", "backlog", "cost", "split_dispatch", "split_combine", "split_early"),
)
_CONTEXT_2 = (
    *("is_split", "is_dispatch", "is_gemm", "is_combine", "elapsed", "sent", "received", "gemm_done", "combined"),
    *("uplink_backlog", "downlink_backlog", "hbm_backlog", "free_sms", "dispatch_in_flight", "combine_in_flight"),
    *("all_combined", "link_share", "gemm_share", "hbm_share", "tokens_per_expert", "l2_room", "ready", "any_ready"),
    "all_sent",
)


def _check_run_name(name: str) -> str:
    taken = [RANDOM, FIRST, *schedule_names()]
    if name in taken:
        raise ValueError(f"a run must have a name of its own in comparisons, none of {taken}")
    return name


RunName = Annotated[str, AfterValidator(_check_run_name)]


class PolicyCard(Spec):
    """What ``policy.json`` says of the weights beside it."""

    format: str = _SCHEMA
    """Version of this file."""
    name: RunName = Field(min_length=1)
    """Name of the run."""
    seed: int = Field(ge=0)
    """Training seed."""
    env: EnvSpec
    """The schedule beneath, and what was asked in training."""
    features: tuple[str, ...] = FEATURES
    """Features of a candidate, in the order of the weights."""
    context: tuple[str, ...] = CONTEXT
    """Values of the context, in the order of the weights."""
    policy: PolicySpec
    """Size of the networks."""
    decisions: int = Field(ge=0)
    """Training decisions behind the weights."""
    validation_ratio: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Mean makespan over lower bound on the validation suite, where it was measured."""
    sha256: str | None = None
    """Checksum of ``policy.safetensors``; files of earlier versions have none."""

    @field_validator("features", "context")
    @classmethod
    def _check_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len({*names}) < len(names):
            raise ValueError("names one twice")
        return names


def run_path(given: str | Path) -> Path:
    """Returns the path of an existing run folder.

    Raises:
        ConfigError: There is none.
    """
    path = Path(given)
    if not str(given) or not os.path.isdir(path):
        raise ConfigError(f"run folder '{given}' does not exist")
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"'{given}' is not a run folder: it has no config.yaml")
    return path


def reference_runs() -> list[Path]:
    """Returns the run folders of the shipped agent, by training seed: the checkout's, or those of the wheel.

    Paths begin at the present folder where they lie in it, so that results say nothing of a machine.

    Raises:
        ConfigError: There are none.
    """
    package = Path(__file__).resolve().parents[1]
    shipped = package / "shipped"  # where pyproject.toml has the wheel put them
    root = shipped if shipped.is_dir() else package.parent / "runs" / "reference"
    if root.is_relative_to(Path.cwd()):
        root = root.relative_to(Path.cwd())
    if found := sorted(root.glob("seed-*"), key=lambda path: (len(path.name), path.name)):
        return found
    raise ConfigError(f"'{REFERENCE}' is not shipped with this copy: '{root}' holds no runs")


def without_gone(data: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Returns settings without what files of earlier versions hold and there is no more.

    That is ``policy.attention``, and in ``env`` what a masked action did in version 0 of the environment.

    Raises:
        ConfigError: ``policy.attention`` says something.
    """
    kept, policy, env = {**data}, data.get("policy"), data.get("env")
    if isinstance(policy, dict) and "attention" in policy:
        if (given := policy["attention"]) is not False:
            raise ConfigError(f"{source}: policy.attention={given!r} is of an earlier version; this one has none")
        kept["policy"] = {name: value for name, value in policy.items() if name != "attention"}
    if isinstance(env, dict) and "max_invalid_actions" in env:
        # Policies choose among legal actions, so nothing that they do depends on it.
        gone = {"max_invalid_actions"}
        if env.get("invalid_action") in ("noop", "penalise"):
            gone |= {"invalid_action", "invalid_penalty"}
        kept["env"] = {name: value for name, value in env.items() if name not in gone}
    return kept


def read_card(folder: Path) -> PolicyCard:
    """Returns what ``policy.json`` says, and what format 2 left to the ``config.yaml`` of the run.

    Raises:
        ConfigError: It is missing or damaged, or of a version that this one does not know.
    """
    path = folder / "policy.json"
    data = without_gone(read_mapping(path), str(path))
    if data.get("format") == _COUNTING:
        data = _named(data, path)
    card = parse_spec(PolicyCard, data, source=str(path))
    if card.format != _SCHEMA:
        raise ConfigError(f"'{path}' has format '{card.format}'; this version reads '{_SCHEMA}' and '{_COUNTING}'")
    return card


def _named(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Returns a card of format 2 as one of format 3.

    Raises:
        ConfigError: Its counts are not those of its format, or there is no ``config.yaml``.
    """
    for key, names in (("features", _FEATURES_2), ("context", _CONTEXT_2)):
        if data.get(key) != len(names):
            raise ConfigError(f"'{path}' is damaged: {key} is {data.get(key)}, not {len(names)}")
    # best/ lies in the run, checkpoints one below.
    config = next((up / "config.yaml" for up in path.parents[1:3] if os.path.isfile(up / "config.yaml")), None)
    if config is None:
        raise ConfigError(f"'{path}' has format '{_COUNTING}', which needs the config.yaml of its run")
    run = without_gone(read_yaml(config), str(config))
    named = {**data, "format": _SCHEMA, "features": _FEATURES_2, "context": _CONTEXT_2}
    return named | {key: value for key, value in run.items() if key in ("name", "seed", "env")}
