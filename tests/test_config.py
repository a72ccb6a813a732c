"""A YAML file, whatever is in it, is read or refused in one line, at once."""

from pathlib import Path

import pytest

from dysharp_env.config import ConfigError, parse_yaml, read_yaml

# Nine lists of ten aliases each: a thousand million values in 300 bytes.
BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))


def test_aliases_stand_for_what_they_name() -> None:
    assert parse_yaml("a: &a {b: 1}\nc: [*a, *a]\nd: {<<: *a, e: 2}") == {
        "a": {"b": 1},
        "c": [{"b": 1}, {"b": 1}],
        "d": {"b": 1, "e": 2},
    }
    assert parse_yaml("") is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (BOMB, "it holds more than 100000 values, its aliases written out"),
        ("a: &a [*a]", "it holds more than 100000 values, its aliases written out"),
        ("a: &a {b: *a}", "it holds more than 100000 values, its aliases written out"),
        ("a: " + "[" * 5000, "is not valid YAML"),
        ("x" * (2**20 + 1), "it is larger than 1048576 bytes"),
        ("a: !!python/object/apply:os.system [ls]", "is not valid YAML"),
        ("a: !!binary x", "is not valid YAML"),
        ("a: 2026-13-45", "is not valid YAML"),
        ("a: 1\na: 2", "key 'a' on line 2 is already on line 1"),
        ("- 1", "must hold a mapping"),
        ("a: [", "is not valid YAML"),
        ("a: \x07", "is not valid YAML"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(content: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        read_yaml(path)
    text = str(raised.value)
    assert expected in text and "\n" not in text and str(path) in text
