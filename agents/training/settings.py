"""Every setting of a training run, with its default and what it means: for the guide and for TensorBoard's table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import yaml
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dysharp_env.config import Spec

from .board import Setting as Shown
from .spec import TrainSpec

# What TensorBoard's table of runs shows: what runs are likely to differ in; a trainer's own settings come besides.
_SHOWN = {
    "": ("seed", "total_decisions", "num_envs", "reference", "validation"),
    "env": ("suite", "system", "gpus", "model", "tokens", "routing", "schedule", "exposed", "max_candidates"),
    "policy": ("hidden", "opening_hidden", "value_hidden", "rule"),
}


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        key: Its dotted name.
        default: What it is by default, as YAML writes it.
        meaning: What it means.
    """

    key: str
    default: str
    meaning: str


def settings_of(spec: type[Spec] = TrainSpec, prefix: str = "") -> Iterator[Setting]:
    """Yields all settings, those of a section behind the section itself."""
    for name, field in spec.model_fields.items():
        section = _section(field)
        key = f"{prefix}{name}"
        text = " ".join(str(field.description or "").replace("``", "`").split())
        if section is None or field.default is None:
            yield Setting(key, _written(field), text)
        if section is not None:
            yield from settings_of(section, f"{key}.")


def markdown() -> str:
    """Returns the guide's table of all settings."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    lines += [f"| `{each.key}` | {each.default and f'`{each.default}`'} | {each.meaning} |" for each in settings_of()]
    return "\n".join(lines)


def shown_settings(spec: TrainSpec) -> tuple[dict[str, Shown], dict[str, str]]:
    """Returns the settings that TensorBoard's table of runs shows, and the meanings of all."""
    data = spec.model_dump(mode="json")
    shown: dict[str, Any] = {"trainer": spec.trainer}
    for section, names in _SHOWN.items():
        values = data[section] if section else data
        shown |= {f"{section}.{name}".lstrip("."): values[name] for name in names}
    shown |= {f"{spec.section}.{name}": value for name, value in data[spec.section].items() if name != "threads"}
    kept = {key: value if isinstance(value, Shown) else str(value) for key, value in shown.items() if value is not None}
    return kept, {each.key: each.meaning for each in settings_of()}


def _section(field: FieldInfo) -> type[Spec] | None:
    """Returns the spec that a setting is a section of; None if it is no section."""
    for each in (field.annotation, *get_args(field.annotation)):
        if isinstance(each, type) and issubclass(each, Spec):
            return each
    return None


def _written(field: FieldInfo) -> str:
    """Returns a default as YAML writes it in a line; empty if there is none."""
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return ""
    value = _plain(default)
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).strip()
    return text.removesuffix("\n...").strip()


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
