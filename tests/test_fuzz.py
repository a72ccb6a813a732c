"""What ``make fuzz`` tries for hours, tried for a moment; and that it sees what a broken parser does."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dysharp_env.config import ConfigError
from tests import fuzz
from tests.corpus.parsers import PARSERS, Parser


def counts_of(parser: Parser, seconds: float, folder: Path) -> dict[str, Any]:
    with redirect_stdout(io.StringIO()) as out:
        fuzz.fuzz_here(parser, seconds, 0, folder, folder)
    return json.loads(out.getvalue().splitlines()[-1])


@pytest.mark.parametrize("name", ["placement.npz", "import megatron", "slot map"])
def test_nothing_is_found_in_a_moment(name: str, tmp_path: Path) -> None:
    counts = counts_of(PARSERS[name], 0.5, tmp_path)
    assert counts["files"] >= 5 and counts["refused"] > 0 and counts["finds"] == {}
    assert counts["files"] == counts["refused"] + counts.get("read", 0)


def test_what_cannot_be_changed_by_members_is_changed_by_bytes() -> None:
    """A zip archive whose first member is said to be encrypted, which no change may end the fuzzer over."""
    parser = PARSERS["trace"]
    whole = bytearray(parser.whole())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        whole[whole.index(signature) + offset] |= 1
    assert all(fuzz.mutant(parser, [bytes(whole)], seed) for seed in range(50))


def _raises(error: BaseException) -> Callable[[Path], None]:
    def read(_: Path) -> None:
        raise error

    return read


def _spins(_: Path) -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("read", "found"),
    [
        (_raises(KeyError("x")), "KeyError at test_fuzz.py"),
        (_raises(RecursionError()), "RecursionError"),
        (_raises(MemoryError()), "MemoryError"),
        (_raises(SystemExit(2)), "SystemExit"),
        (_raises(ConfigError("")), "a message that is no line"),
        (_spins, "TooLongError"),
    ],
)
def test_what_a_parser_should_not_do_is_found(
    read: Callable[[Path], None], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "MOST_S", 0.2)
    (tmp_path / "x").write_bytes(b"x")
    assert (fuzz.find_of(replace(PARSERS["rule"], read=read), tmp_path / "x") or "").startswith(found.split(" at ")[0])


def test_a_find_is_kept_with_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PARSERS["slot map"]

    def read(path: Path) -> None:
        if path.read_bytes() != whole.whole():
            raise KeyError("changed")

    counts = counts_of(replace(whole, read=read), 0.3, tmp_path)
    ((find, seed),) = counts["finds"].items()
    kept = tmp_path / f"{whole.file}.{seed}"
    assert "KeyError" in find and kept.read_bytes() == fuzz.mutant(whole, [whole.whole()], seed)


@pytest.mark.parametrize("name", PARSERS)
def test_files_are_changed_and_come_again_from_their_seed(name: str) -> None:
    parser = PARSERS[name]
    if parser.library:
        pytest.importorskip(parser.library)
    whole = [parser.whole()]
    made = [fuzz.mutant(parser, whole, seed) for seed in range(8)]
    assert len({*made}) >= 5 and made == [fuzz.mutant(parser, whole, seed) for seed in range(8)]
