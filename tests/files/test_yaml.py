"""A YAML file, whatever is in it, is read or refused in one line, at once."""

from pathlib import Path

import pytest

from agents.training.spec import TrainSpec
from dysharp_env.config import ConfigError, config_root, load_spec, parse_yaml, read_yaml
from dysharp_env.system import load_system

# Nine lists of ten aliases each: a thousand million values in 300 bytes.
BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))


def test_aliases_stand_for_what_they_name() -> None:
    assert parse_yaml("a: &a {b: 1}\nc: [*a, *a]\nd: {<<: *a, e: 2}") == {
        "a": {"b": 1},
        "c": [{"b": 1}, {"b": 1}],
        "d": {"b": 1, "e": 2},
    }
    assert parse_yaml("") is None


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "1.e-3", ".1e-2", "+1e-3", "0.001", "1.0e-3"])
def test_numbers_are_read_as_people_write_them(number: str) -> None:
    assert parse_yaml(f"[{number}, -{number.lstrip('+')}, {{a: {number}}}]") == [0.001, -0.001, {"a": 0.001}]
    assert parse_yaml("[1e3, 2e+6, 1e, e3, 1e3x, '1e3', 1-e3]") == [1000.0, 2e6, "1e", "e3", "1e3x", "1e3", "1-e3"]


def test_every_file_of_settings_takes_them(tmp_path: Path) -> None:
    system, training = tmp_path / "s.yaml", tmp_path / "t.yaml"
    text = (config_root() / "systems" / "dgx-h100.yaml").read_text(encoding="utf-8")
    system.write_text(text.replace("hbm_gbps: 3350", "hbm_gbps: 335e1"), encoding="utf-8")
    assert load_system(str(system)).gpu.hbm_gbps == 3350
    text = (config_root() / "train" / "tiny.yaml").read_text(encoding="utf-8")
    training.write_text(text + "\nppo: {learning_rate: 1e-3}\n", encoding="utf-8")
    assert load_spec(TrainSpec, "train", str(training)).ppo.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (BOMB, "it holds more than 50000 values, its aliases written out"),
        ("- 1\n" * 50_000, "it holds more than 50000 values, its aliases written out"),
        ("a: &a [*a]", "it holds more than 50000 values, its aliases written out"),
        ("a: &a {b: *a}", "it holds more than 50000 values, its aliases written out"),
        ("a: " + "[" * 100 + "]" * 100, "it is nested more than 64 levels deep"),
        ("a: [", "is not valid YAML"),
        ("x" * (2**20 + 1), "more than 1 MB of YAML cannot be read"),
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
