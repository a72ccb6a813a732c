"""The keys of YAML files, from the specs that read them: what each means, as tables of the guide and as templates."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

import yaml
from pydantic import RootModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dysharp_env.config import Spec

# What a name ends in, and the unit that says.
_UNITS = {
    **{"_ns": "ns", "_ps": "ps", "_us": "us", "gbps": "GB/s", "_tflops": "TFLOP/s", "_mb": "MiB", "_kb": "KiB"},
    **{"_bytes": "bytes", "_flits": "flits", "_tokens": "tokens", "_sms": "SMs", "_ns_per_token": "ns"},
    "per_doubling_us": "us",
}
_WIDTH = 120


class Key(NamedTuple):
    """One key of a file.

    Attributes:
        path: Dotted; ``NAME`` and ``N`` stand for names and places that the file gives.
        unit: Of its value; empty: none.
        default: As YAML; None: it must be given.
        values: What it may be, where that is a list of words.
        description: From the spec.
    """

    path: str
    unit: str
    default: str | None
    values: tuple[str, ...]
    description: str


def keys_of(spec: type[Spec], prefix: str = "") -> Iterator[Key]:
    """Yields every key of a spec, in order, with those of the specs within it."""
    for name, field in spec.model_fields.items():
        inner, mark = _inner(field.annotation)
        path = f"{prefix}{name}"
        if inner is None:
            yield Key(path, _unit(name), _default(field), _words(field.annotation), description_of(field))
            continue
        if mark:
            yield Key(path, "", _default(field), (), description_of(field) or _first_sentence(inner))
        yield from keys_of(inner, f"{path}.{mark}")


def markdown_keys(spec: type[Spec]) -> str:
    """Returns the keys of a spec as a Markdown table."""
    rows = ["| key | unit | default | meaning |", "|---|---|---|---|"]
    for key in keys_of(spec):
        default = "required" if key.default is None else f"`{key.default}`"
        text = f"{_sentence(key.description)} {_one_of([f'`{word}`' for word in key.values])}".strip()
        text = text.replace("``", "`").replace("|", "\\|")
        rows.append(f"| `{key.path}` | {key.unit} | {default} | {text} |")
    return "\n".join(rows)


def description_of(field: FieldInfo) -> str:
    """Returns the description of a field, or what its spec says of itself."""
    if field.description:
        return " ".join(field.description.split())
    inner, _ = _inner(field.annotation)
    return _first_sentence(inner) if inner is not None else ""


def template(spec: type[Spec], values: Mapping[str, Any], indent: int = 0) -> str:
    """Returns a file of a spec: all keys with their descriptions, those without a value of their own commented out.

    Args:
        spec: What reads the file.
        values: What keys have, as YAML holds it; all that are required must be there.
        indent: Of its lines, in spaces.
    """
    lines: list[str] = []
    for name, field in spec.model_fields.items():
        words = _words(field.annotation)
        text = f"{_sentence(description_of(field))} {_one_of(words)}".strip()
        if _default(field) is None:
            text = f"{text} Required.".strip()
        elif name in values and _default(field) not in ("''", "{}"):
            text = f"{text} (default: {_default(field)})"
        lines += _comment(text.replace("``", ""), indent)
        inner, mark = _inner(field.annotation)
        if name not in values:
            lines.append(f"{' ' * indent}# {name}: {_default(field)}")
        elif inner is not None and not mark:
            lines += [f"{' ' * indent}{name}:", template(inner, values[name], indent + 2)]
        elif inner is not None and values[name]:
            lines += [f"{' ' * indent}{name}:", *_many(inner, values[name], indent + 2)]
        else:
            lines.append(f"{' ' * indent}{name}: {flow(values[name])}")
        if indent == 0:
            lines.append("")
    return "\n".join(lines).rstrip("\n")


def _many(inner: type[Spec], values: Any, indent: int) -> list[str]:
    """Returns the entries of a list or mapping of specs, one a line, behind what their keys mean."""
    space = " " * indent
    lines = [line for key in keys_of(inner) for line in _comment(_described(key), indent)]
    if isinstance(values, Mapping):
        return [*lines, *(f"{space}{name}: {flow(value)}" for name, value in values.items())]
    return [*lines, *(f"{space}- {flow(value)}" for value in values)]


def _described(key: Key) -> str:
    unit = f" [{key.unit}]" if key.unit else ""
    default = "required" if key.default is None else f"default: {key.default}"
    return f"{key.path}{unit}: {_sentence(key.description)} ({default})".replace("``", "")


def flow(value: Any) -> str:
    """Returns a value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _comment(text: str, indent: int) -> list[str]:
    head = " " * indent + "# "
    return textwrap.wrap(text, _WIDTH, initial_indent=head, subsequent_indent=head, break_on_hyphens=False)


def _one_of(words: Sequence[str]) -> str:
    return f"One of {', '.join(words)}." if words else ""


def _sentence(text: str) -> str:
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."


def _first_sentence(spec: type[Spec]) -> str:
    return " ".join((spec.__doc__ or "").split("\n\n")[0].split())


def _default(field: FieldInfo) -> str | None:
    """Returns what a key is if it is not given, as YAML; None if it must be given."""
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return None
    if isinstance(value, RootModel):
        value = value.root
    if isinstance(value, Spec):
        return flow(value.model_dump(mode="json", exclude_unset=True))
    return flow([*value] if isinstance(value, tuple) else value)


def _inner(annotation: Any) -> tuple[type[Spec] | None, str]:
    """Returns the spec within a type, and what stands for one of many in a path."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return annotation, ""
    origin, members = get_origin(annotation), get_args(annotation)
    mark = {dict: "NAME.", tuple: "N."}.get(origin, "")
    for member in members:
        if isinstance(member, type) and issubclass(member, Spec):
            return member, mark
    return None, ""


def _unit(name: str) -> str:
    return next((unit for end, unit in _UNITS.items() if name.endswith(end)), "")


def _words(annotation: Any) -> tuple[str, ...]:
    """Returns the words that a value may be, or that its items may be."""
    if get_origin(annotation) is Literal:
        return tuple(str(each) for each in get_args(annotation))
    members = [each for each in get_args(annotation) if each not in (type(None), Ellipsis)]
    return _words(members[0]) if len(members) == 1 else ()
