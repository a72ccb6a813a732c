"""Configuration as frozen, validated models, loaded from YAML presets or a user's own files.

Every spec of the project derives from ``Spec``. Presets live in ``configs/<kind>/NAME.yaml`` at the top of a checkout;
the wheel carries the same folder inside the package. A wrong key, value or name raises ``ConfigError``, whose text is
one line: what was given, what is allowed, and the nearest match.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from dysharp_env.files import ConfigError as ConfigError
from dysharp_env.files import Notice as Notice
from dysharp_env.files import parse_yaml as parse_yaml
from dysharp_env.files import read_yaml as read_yaml
from dysharp_env.files import shown

_TYPE_TAGS = ("int", "float", "str", "bool")
_MOST_DIGITS = 18  # of a whole number in an option
_MOST_COMPARED, _MOST_NAMED = 200, 12  # letters of a name that known ones are like; wrong keys that a line names
_MOST_KEYS = 1000
_YAML_WIDTH = 120
_PACKAGE = Path(__file__).resolve().parent


class Spec(BaseModel):
    """Base of all specs: immutable, unknown keys refused, fields documented in place."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_lookalikes(cls, data: Any) -> Any:
        """Refuses what YAML would let through: ``true`` and ``"8"`` for a number, one name for a list of names."""
        for name, value in data.items() if isinstance(data, dict) else ():
            field = cls.model_fields.get(str(name))
            if field is not None and isinstance(value, bool | str) and _is_number(field.annotation):
                raise ValueError(f"{name}={_written(value)} must be a number")
            if field is not None and isinstance(value, str) and _is_list(field.annotation):
                raise ValueError(f"{name}={_written(value)} must be a list, such as [{shown(value)}]")
        return data

    def with_changes(self: SpecT, changes: Mapping[str, Any]) -> SpecT:
        """Returns a validated copy with dotted keys replaced, e.g. ``{"link.payload_bytes": 256}``.

        Raises:
            ConfigError: A key names no field, or its value is refused.
        """
        data = self.model_dump()
        for dotted, value in changes.items():
            node: Any = data
            *parents, leaf = dotted.split(".")
            for part in parents:
                node = node.get(part, "") if isinstance(node, dict) else ""
            if node is None:
                whole = f"{'.'.join(parents)}={{{leaf}: {value}}}"
                raise ConfigError(f"'{dotted}' is a setting of what is none; give all of it, such as {whole}")
            if not isinstance(node, dict):
                raise ConfigError(
                    f"'{dotted}' is not a setting of {type(self).__name__}{did_you_mean(dotted, flat_keys(self))}"
                )
            node[leaf] = value
        return parse_spec(type(self), data, source=type(self).__name__)

    def to_yaml(self, defaults: bool = True) -> str:
        """Returns all settings as YAML, or only those that differ from their defaults."""
        settings = self.model_dump(mode="json", exclude_defaults=not defaults)
        text: str = yaml.safe_dump(settings, sort_keys=False, width=_YAML_WIDTH)
        return text


SpecT = TypeVar("SpecT", bound=Spec)


def _is_number(annotation: Any) -> bool:
    """Returns whether a field takes numbers only; None may stand beside them."""
    members = [member for member in get_args(annotation) or (annotation,) if member is not type(None)]
    return all(member in (int, float) for member in members)


def _is_list(annotation: Any) -> bool:
    """Returns whether a field takes lists only; None may stand beside them."""
    members = [member for member in get_args(annotation) if member is not type(None)]
    return get_origin(annotation) is tuple or (len(members) == 1 and get_origin(members[0]) is tuple)


def is_checkout() -> bool:
    """Returns whether the package runs from a checkout, rather than from where a wheel was installed."""
    return not (_PACKAGE / "configs").is_dir()


def how_to_install(library: str, extra: str) -> str:
    """Returns what to type for a library that an extra of the project brings; no index of packages has the project.

    Args:
        library: By its name in package indexes.
        extra: Of pyproject.toml.
    """
    whole = f"'.[{extra}]' in the checkout" if is_checkout() else f"'dysharp-env[{extra}]'"
    return f"pip install {library}, or with all that goes with it pip install {whole}"


def config_root() -> Path:
    """Returns the folder of presets: the copy inside an installed package, or the checkout's ``configs/``."""
    return (_PACKAGE.parent if is_checkout() else _PACKAGE) / "configs"


def preset_names(kind: str) -> list[str]:
    """Returns the preset names of one kind (``systems``, ``models``, ``calibrations``, ...), sorted."""
    return sorted(path.stem for path in (config_root() / kind).glob("*.yaml"))


def whole_number(text: str) -> int | None:
    """Returns the number that a text of digits is; None if it is none, or more than anything is counted in."""
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Returns `` (did you mean 'x'?)`` for the nearest known name, or an empty string."""
    # A text of a megabyte is like nothing known, and would take long to compare.
    close = difflib.get_close_matches(given[:_MOST_COMPARED], list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def require_choice(option: str, given: str, known: Iterable[str]) -> str:
    """Returns ``given`` if it is one of ``known``.

    Raises:
        ConfigError: It is not; the message lists what is.
    """
    names = list(known)
    if given not in names:
        raise ConfigError(f"{option}='{given}' is unknown; choose from {names}{did_you_mean(given, names)}")
    return given


def find_config(kind: str, name: str) -> Path:
    """Returns the file of a preset name or, if ``name`` ends in .yaml or .yml, of a path.

    Raises:
        ConfigError: No such preset or file.
    """
    if name.endswith((".yaml", ".yml")):
        if not os.path.exists(name):  # which, unlike a path's method, is false of what can be no name
            raise ConfigError(f"{kind.removesuffix('s')} file '{name}' does not exist")
        return Path(name)
    require_choice(kind.removesuffix("s"), name, preset_names(kind))
    return config_root() / kind / f"{name}.yaml"


def load_spec(cls: type[SpecT], kind: str, name: str) -> SpecT:
    """Returns the spec of a preset name or YAML path.

    Raises:
        ConfigError: The file is missing, or a key or value in it is wrong.
    """
    path = find_config(kind, name)
    return parse_spec(cls, read_yaml(path), source=str(path) if name.endswith((".yaml", ".yml")) else f"{kind}/{name}")


def parse_spec(cls: type[SpecT], data: Mapping[str, Any], source: str) -> SpecT:
    """Returns ``data`` as a validated spec; ``source`` names it in errors.

    Raises:
        ConfigError: Keys are unknown or missing, all of which the one line names, or else a value is wrong, the first.
    """
    try:
        # No spec has so many keys: among the first there are wrong ones, and looking at all would take long.
        return cls.model_validate({str(key): value for key, value in islice(data.items(), _MOST_KEYS)})
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        raise ConfigError(f"{source}: {_wrong_keys(cls, mistakes) or _wrong_value(cls, mistakes[0])}") from None


def flat_keys(spec: Spec | type[Spec], prefix: str = "") -> list[str]:
    """Returns every dotted key of a spec, nested specs included, and of a mapping of specs those that are in it."""
    keys: list[str] = []
    for name, field in (spec if isinstance(spec, type) else type(spec)).model_fields.items():
        value = None if isinstance(spec, type) else getattr(spec, name)
        if isinstance(value, dict) and any(isinstance(each, Spec) for each in value.values()):
            keys += [key for each in value for key in flat_keys(value[each], f"{prefix}{name}.{each}.")]
            continue
        nested = None if get_origin(field.annotation) is dict else _nested_spec(field.annotation)
        if nested:
            keys += flat_keys(value if isinstance(value, Spec) else nested, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


def _nested_spec(annotation: Any) -> type[Spec] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Spec):
            return candidate
    return None


def _resolve(cls: type[Spec], location: tuple[int | str, ...]) -> tuple[list[str], type[Spec]]:
    """Returns a key's path without pydantic's marks of union members, and the spec it belongs to."""
    path: list[str] = []
    level = cls
    for part in location:
        path.append(str(part))
        field = level.model_fields.get(str(part))
        nested = _nested_spec(field.annotation) if field else None
        if nested is None:
            # Indices of lists and keys of mappings still name the place; tags of types do not.
            rest = [str(p) for p in location[len(path) :] if isinstance(p, int) or p not in _TYPE_TAGS]
            return path + rest, level
        level = nested
    return path, level


def _wrong_keys(cls: type[Spec], mistakes: Sequence[Any]) -> str:
    """Returns which keys are unknown and which are missing; empty if none is."""
    known_of: dict[tuple[str, ...], list[str]] = {}
    unknown: list[str] = []
    missing: list[str] = []
    more = 0
    for mistake in mistakes:
        path, level = _resolve(cls, mistake["loc"])
        key = shown(".".join(path))
        if mistake["type"] == "missing":
            missing.append(f"'{key}'")
        elif mistake["type"] == "extra_forbidden" and len(unknown) >= _MOST_NAMED:
            more += 1
        elif mistake["type"] == "extra_forbidden":
            known = known_of.setdefault(tuple(path[:-1]), [".".join([*path[:-1], name]) for name in level.model_fields])
            unknown.append(f"'{key}'{did_you_mean(key, known)}")
    said = []
    if unknown:
        known = [key for keys in known_of.values() for key in keys]
        unknown += [f"and {more} more"] * bool(more)
        said.append(f"unknown key{'s' * (len(unknown) > 1)} {', '.join(unknown)}; known keys are {known}")
    if missing:
        said.append(f"key{'s' * (len(missing) > 1)} {', '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing")
    return "; ".join(said)


def _wrong_value(cls: type[Spec], mistake: Any) -> str:
    key = ".".join(_resolve(cls, mistake["loc"])[0])
    message = " ".join(mistake["msg"].removeprefix("Value error, ").split())
    given = mistake.get("input")
    value = f"={_written(given)}" if not isinstance(given, dict) else ""
    return f"{shown(key)}{value}: {message}" if key else message


def _written(value: Any) -> str:
    """Returns a value as Python writes it, a text in quotes, cut if it is long."""
    return f"'{shown(value)}'" if isinstance(value, str) else shown(value)
