"""Only files are read, up to a limit; what is said of them is one line that can be printed."""

from __future__ import annotations

import gzip
import os
import pickle
from pathlib import Path

import pytest

from dysharp_env.files import (
    ConfigError,
    Notice,
    foreign,
    open_file,
    parse_json,
    read_bytes,
    read_gzip,
    read_mapping,
    read_text,
    shown,
)


def test_messages_are_one_line_whatever_they_are_made_of() -> None:
    text = f"a\nb\t\x1b[2J \ud800 \u202e{'x' * 500} '{'y z ' * 200}' end"
    for kind in (ConfigError, Notice):
        line = str(kind(text))
        assert line.isprintable() and line.startswith("a b \\x1b[2J \\ud800 \\u202e") and line.endswith("' end")
        assert "x" * 200 not in line and "y z " * 50 not in line and len(line) < 450
        assert str(kind(line)) == line
    assert len(str(ConfigError("a b " * 100_000))) == 4000
    assert str(pickle.loads(pickle.dumps(ConfigError("a\nb")))) == "a b"


def test_messages_of_ours_stay_as_they_are() -> None:
    said = "the model's 'name' is unknown; choose from ['deepseek-v3', 'olmoe'] (did you mean 'olmoe'?), the layer's"
    assert str(ConfigError(f"{said} " * 6)) == (f"{said} " * 6).strip()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("\x1b[2J\n", "\\x1b[2J\\n"),
        ("\ud800", "\\ud800"),
        ("a\\b é🙂", "a\\b é🙂"),
        (7, "7"),
        (1 << 20_000, "<number of 20001 bits>"),
        ([1 << 20_000], "[<number of 20001 bits>]"),
        (b"\xff", "b'\\xff'"),
    ],
    ids=lambda _: "",  # as Python refuses to write some of them
)
def test_values_are_shown(value: object, text: str) -> None:
    assert shown(value) == text


def test_long_and_deep_values_are_cut() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in ("x" * 10**6, "\x00" * 1000, [*range(10**6)], {i: i for i in range(10**5)}, deep, ["x" * 10**6] * 9):
        assert len(shown(value)) <= 200 and shown(value).isprintable()
    assert shown("a" * 150 + "b" * 150) == "a" * 120 + "..." + "b" * 77


def test_only_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "itself").symlink_to("itself")
    for path, why in (
        (tmp_path / "pipe", "it is a named pipe, and only files are read"),
        (tmp_path, "it is a folder"),
        ("/dev/zero", "it is a device, and only files are read"),
        (tmp_path / "none", "No such file or directory"),
        (tmp_path / "itself", "Too many levels of symbolic links"),
        (tmp_path / ("x" * 300), "File name too long"),
        ("a\0b", "embedded null byte"),
        ("\ud800", "'utf-8' codec can't encode"),
    ):
        with pytest.raises(ConfigError) as raised:
            open_file(path)
        assert why in str(raised.value)


def test_a_limit_is_kept_even_where_a_file_does_not_say_its_size(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(tmp_path / "x", 5) == b"12345"
    with pytest.raises(ConfigError, match="more than 4 bytes of text cannot be read"):
        read_text(tmp_path / "x", 4)
    assert os.stat("/proc/self/maps").st_size == 0
    with pytest.raises(ConfigError, match="more than 10 bytes cannot be read"):
        read_bytes("/proc/self/maps", 10)
    (tmp_path / "bomb").write_bytes(gzip.compress(bytes(10 << 20)))
    with pytest.raises(ConfigError, match="more than 1 MB of list cannot be read"):
        read_gzip(tmp_path / "bomb", 1 << 20, "list")


def test_texts_may_have_a_mark_in_front(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes("\ufeffé\r\n".encode())
    assert read_text(tmp_path / "x", 100) == "é\r\n"
    for content, why in (("é".encode("utf-16"), "but UTF-16"), (b"abc\xff", "byte 4 is 0xff")):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ConfigError, match=why):
            read_text(tmp_path / "x", 100)


def test_what_a_library_raises_is_one_line() -> None:
    for error, said in (
        (KeyError("x"), "'f': not a whole box: 'x'"),
        (RecursionError(), "'f': not a whole box: RecursionError"),
        (MemoryError(), "'f': needs more memory than there is"),
        (OSError(5, "Input/output error"), "cannot read 'f': Input/output error"),
        (OSError("of the library"), "'f': not a whole box: of the library"),
        (ConfigError("ours"), "ours"),
    ):
        with pytest.raises(ConfigError) as raised, foreign("'f'", "box"):
            raise error
        assert str(raised.value) == said
    with pytest.raises(KeyboardInterrupt), foreign("'f'", "box"):
        raise KeyboardInterrupt


def test_json_that_is_read(tmp_path: Path) -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": [1, 2.5, "\\u00e9"]}', "x") == {"a": [1, 2.5, "é"]}
    (tmp_path / "x").write_text('{"emoji": "\\ud83d\\ude42", "lines": "a\\nb"}')
    assert read_mapping(tmp_path / "x") == {"emoji": "🙂", "lines": "a\nb"}
    for text, why in (
        ('{"a": "\\ud83d"}', "a text holds the character '\\ud83d', which cannot be shown"),
        ('{"a": ["\\u001b"]}', "a text holds the character '\\x1b'"),
        ('{"\\u0007": 1}', "a text holds the character '\\x07'"),
        ('{"a": "\x7f"}', "a text holds the character '\\x7f'"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "key 'c' is there twice"),
        ("[1]", "must hold a mapping of keys to values, not list"),
        ("[" * 100_000, "nested too deeply"),
    ):
        (tmp_path / "x").write_text(text)
        with pytest.raises(ConfigError) as raised:
            read_mapping(tmp_path / "x")
        assert why in str(raised.value)
    with pytest.raises(ConfigError, match="x: not valid JSON: NaN is no number"):
        parse_json(b"[NaN]", "x", is_data=True)
    with pytest.raises(ConfigError, match="MB of values as JSON; at most 384 MB are read"):
        parse_json(b"[" + b"[]," * 4_000_000 + b"[]]", "x")
