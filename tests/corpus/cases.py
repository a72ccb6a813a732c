"""The corpus: files that somebody could give, by malice or by accident, and that no parser may fall over.

Nothing binary lies in the repository: every file is written by a function with a name.
"""

from __future__ import annotations

import gzip
import io
import os
import socket
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.corpus import claims
from tests.corpus.parsers import PARSERS, Parser

Write = Callable[[Parser, Path], object]


@dataclass(frozen=True)
class Case:
    """A file for a parser.

    Attributes:
        name: Whose parser, and what is wrong with the file.
        parser: What reads it.
        put: Writes it to a path.
    """

    name: str
    parser: Parser
    put: Write
    file: str = ""

    def write(self, folder: Path) -> Path:
        """Writes it and what must lie beside it into a folder, and returns its path."""
        self.parser.beside(folder)
        path = folder / (self.file or self.parser.file)
        path.parent.mkdir(exist_ok=True)
        if not self.is_unwritable:
            self.put(self.parser, path)
        return path

    @property
    def is_unwritable(self) -> bool:
        """Whether no system has a file of that name."""
        return len(os.fsencode(Path(self.file).name)) > 255


def content(held: bytes | str) -> Write:
    """Returns a function that writes this."""
    return lambda _, path: path.write_bytes(held.encode("utf-8", "surrogatepass") if isinstance(held, str) else held)


def changed(change: Callable[[bytes], bytes]) -> Write:
    """Returns a function that writes what a change makes of a whole file."""
    return lambda parser, path: path.write_bytes(change(parser.whole()))


def link(target: str) -> Write:
    return lambda _, path: path.symlink_to(target)


def _sparse(_: Parser, path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _socket(_: Parser, path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's name is short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


NOISE = np.random.default_rng(0).integers(0, 256, 3000, np.uint8).tobytes()
# What may be given to any parser.
ANYWHERE: dict[str, Write] = {
    "empty": content(b""),
    "folder": lambda _, path: path.mkdir(),
    "pipe without a writer": lambda _, path: os.mkfifo(path),
    "endless device": link("/dev/zero"),
    "half of it": changed(lambda whole: whole[: len(whole) // 2]),
    "noise": content(NOISE),
    "zeros": content(bytes(5000)),
    "terabyte of nothing": _sparse,
}
# What is tried on some: with what they share they read it alike.
SOMEWHERE: dict[str, Write] = {
    "full device": link("/dev/full"),
    "link to nothing": link("nowhere"),
    "link to itself": lambda _, path: path.symlink_to(path.name),
    "socket": _socket,
    "UTF-16": changed(lambda whole: whole.decode("latin-1").encode("utf-16")),
    "gzip where none is expected": changed(gzip.compress),
}
_LONG_NAME = "x" * 300
_NO_TEXT = os.fsdecode(b"\xff\xfe\x80")

_ALIASES = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
_MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
YAML = {
    "aliases of aliases": _ALIASES,
    "merges of aliases": _MERGES + "b: {<<: *a8}\n",
    "an alias of what holds it": "a: &a {b: *a}",
    "tag that runs a program": "name: !!python/object/apply:os.system [ls]",
    "tag of a plain type": "name: !!str 7",
    "tag of bytes": "name: !!binary x",
    "number of a million digits": "hidden: " + "9" * 1_000_000,
    "hexadecimal of a hundred thousand digits": "hidden: 0x" + "f" * 100_000,
    "number in base 60": "hidden: " + "1:" * 200_000 + "1",
    "key of a megabyte": "x" * 1_000_000 + ": 1",
    "sixty thousand unknown keys": "".join(f"k{i}: 1\n" for i in range(60_000)),
    "text of a megabyte": "name: " + "x y " * 250_000,
    "a list": "- 1\n- 2",
    "a key twice": "name: a\nname: b",
    "a list as a key": "? [a, b]\n: 1",
    "a date that is none": "name: 2026-13-45",
    "brackets": "a: " + "[" * 100_000,
    "dashes": "- " * 100_000,
    "a hundred levels": "a: " + "[" * 100 + "]" * 100,
    "escapes": 'name: "\\e[2J\\e[31m"',
    "half of a letter": 'name: "\\ud800"',
    "half of a letter as bytes": "name: \ud800",
    "two documents": "name: a\n---\nname: b",
    "tabs": "name:\n\t- x",
    "a merge of a number": "<<: 7",
    "an unknown alias": "name: *nobody",
    "keys that are no texts": "1: 2\nnull: 3\n2.5: 4\ntrue: 5",
    "NUL": "name: a\0b",
}
JSON = {
    "brackets": "[" * 200_000,
    "braces": '{"a":' * 100_000,
    "number of five thousand digits": '{"name": ' + "9" * 5000 + "}",
    "not a number": '{"name": NaN}',
    "endless": '{"name": 1e999, "x": -Infinity}',
    "a key twice": '{"name": "a", "name": "b"}',
    "a number": "7",
    "a text": '"name"',
    "half of a letter": '{"name": "\\ud800"}',
    "escapes": '{"name": "\\u001b[2J"}',
    "more behind it": '{"name": 1} {"name": 2}',
    "quotes of Python": "{'name': 1}",
    "deep but whole": "[" * 500 + "]" * 500,
    "key of a megabyte": '{"' + "x" * 1_000_000 + '": 1}',
    "a mark in front of nothing": "\ufeff",
    "half a million empty lists": "[" + "[]," * 500_000 + "[]]",
}
_YAML_PARSERS = (
    "system",
    "model",
    "schedule",
    "suite",
    "training settings",
    "tuning settings",
    "placement.yaml",
    "faults",
)
_JSON_PARSERS = (
    "placement.json",
    "slot map",
    "import vllm",
    "import loads",
    "table of results",
    "rule",
    "card of a policy",
    "model of a hub",
)


_SLOW = ("sixty thousand unknown keys", "half a million empty lists")


def _of_text() -> Iterator[tuple[str, str, Write]]:
    """Yields parser, name and writer: all texts for the first parser of a kind, a third of them for each other one."""
    for parsers, texts in ((_YAML_PARSERS, YAML), (_JSON_PARSERS, JSON)):
        for place, parser in enumerate(parsers):
            for number, (name, text) in enumerate(texts.items()):
                # What takes long to read is tried once.
                if place == 0 or (number % 3 == place % 3 and name not in _SLOW):
                    yield parser, name, content(text)


def _zip(*members: tuple[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, held in members:
            archive.writestr(name, held)
    return stream.getvalue()


def _npz_cases() -> Iterator[tuple[str, str, Write]]:
    for parser, array in (("trace", "topk_ids"), ("loads", "loads"), ("placement.npz", "gpu_of_expert")):
        held = {name: _zip((f"{array}.npy", npy)) for name, npy in claims.NPY.items()}
        held["packed in another way"] = _zip((f"{array}.npy", claims.WHOLE), compression=zipfile.ZIP_LZMA)
        held["wrong sum"] = claims.with_wrong_sum(_zip((f"{array}.npy", claims.WHOLE), compression=zipfile.ZIP_STORED))
        held["bomb"] = _zip((f"{array}.npy", claims.npy_header((1 << 29,)) + bytes(300 << 20)))
        held["other arrays"] = _zip(("x\x1b[2J.npy", claims.WHOLE), ("../../etc.npy", claims.WHOLE))
        for name, each in held.items():
            yield parser, name, content(each)


def _numbers_cases() -> Iterator[tuple[str, str, Write]]:
    """Yields sizes that cannot be, one after the other in a file that is whole otherwise."""
    for parser, name, old, new in (
        ("system", "GPUs without end", b"num_gpus: 8", b"num_gpus: 1e30"),
        ("system", "a million GPUs", b"num_gpus: 8", b"num_gpus: 1000000"),
        ("system", "a truth for a number", b"num_gpus: 8", b"num_gpus: yes"),
        ("system", "no number", b"num_gpus: 8", b"num_gpus: .nan"),
        ("model", "values without end", b"hidden: 2048", b"hidden: 1e30"),
        ("model", "experts without end", b"experts: 64", b"experts: " + b"9" * 200),
        ("model", "a million experts", b"experts: 64\ntop_k: 8", b"experts: 1000000\ntop_k: 1000000"),
        ("model", "less than nothing", b"top_k: 8", b"top_k: -8"),
        ("suite", "seeds without end", b"seeds: [0, 2]", b"seeds: [0, 1000000000000]"),
        ("suite", "tokens without end", b"tokens: 16", b"tokens: 1e30"),
        ("suite", "tokens of no machine", b"tokens: 16", b"tokens: 1000000"),
        ("training settings", "steps without end", b"num_envs: 4", b"num_envs: 1e30"),
        ("tuning settings", "minutes without end", b"minutes: 1.0", b"minutes: .inf"),
        ("card of a policy", "as wide as no memory", b'"value_hidden": 1', b'"value_hidden": 4096'),
        ("card of a policy", "as wide as a number can be", b'"value_hidden": 1', b'"value_hidden": 1e30'),
    ):
        yield parser, name, changed(lambda whole, old=old, new=new: claims.replaced(whole, old, new))  # type: ignore[misc]


def _other_cases() -> Iterator[tuple[str, str, Write]]:
    for parser, held in claims.OF_PARSER.items():
        for name, each in held.items():
            yield parser, name, content(each) if isinstance(each, bytes | str) else changed(each)


def _cases() -> Iterator[Case]:
    for name, parser in PARSERS.items():
        for what, put in ANYWHERE.items():
            yield Case(f"{name}: {what}", parser, put)
        yield Case(f"{name}: no such file", parser, content(b""), file=_renamed(parser, _LONG_NAME))
        if "policy" not in name and name != "tuning settings":
            yield Case(f"{name}: a name of no letters", parser, content(NOISE), file=_renamed(parser, _NO_TEXT))
    for place, name in enumerate(PARSERS):
        what = [*SOMEWHERE][place % len(SOMEWHERE)]
        yield Case(f"{name}: {what}", PARSERS[name], SOMEWHERE[what])
    for parts in (_of_text(), _npz_cases(), _numbers_cases(), _other_cases()):
        for parser, what, put in parts:
            yield Case(f"{parser}: {what}", PARSERS[parser], put)


def _renamed(parser: Parser, name: str) -> str:
    folder, _, file = parser.file.rpartition("/")
    stem, dot, ending = file.partition(".")
    # Of some formats the name says what it is.
    return f"{folder}/{name}" if folder else f"{name}{dot}{ending}"


CASES: list[Case] = [*_cases()]
