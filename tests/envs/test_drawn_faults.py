"""Environments whose episodes draw what is wrong with the machine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agents.training.spec import TrainSpec
from dysharp_env.config import ConfigError, load_spec
from dysharp_env.envs.sources import read_sources
from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.envs.vector import TokenScheduleVectorEnv
from dysharp_env.schedules import load_schedule

SMALL: dict[str, Any] = {"model": "small", "gpus": 4, "tokens": 4, "routing": "uniform", "exposed": ["combine"]}
DRAWN = ("none", "slow-link", "late_us=10,taken_slots=0.5")


def faults_of(env: TokenScheduleEnv) -> tuple[float, float]:
    faults = env.unwrapped.run.system.faults
    return faults.slow_link, faults.late_us


def test_episodes_draw_each_of_them_and_seeds_say_which() -> None:
    env = TokenScheduleEnv(**SMALL, drawn_faults=DRAWN)
    found = []
    for seed in range(24):
        env.reset(seed=seed)
        found.append(faults_of(env))
    assert Counter(found).keys() == {(1, 0), (2, 0), (1, 10)}
    for seed in (3, 7):
        env.reset(seed=seed)
        assert faults_of(env) == found[seed]
    env.reset(seed=3, options={"entry": 2})
    assert faults_of(env) == (1, 10)


def test_copies_draw_as_one_alone_does() -> None:
    alone, many = TokenScheduleEnv(**SMALL, drawn_faults=DRAWN), TokenScheduleVectorEnv(4, **SMALL, drawn_faults=DRAWN)
    observations, _ = many.reset(seed=5)
    for copy in range(4):
        observation, _ = alone.reset(seed=5 + copy)
        assert all((array == observations[name][copy]).all() for name, array in observation.items())


def test_every_entry_of_a_suite_has_each_of_them_and_says_so() -> None:
    env = TokenScheduleEnv(suite="smoke", drawn_faults=("none", "slow-link"))
    found = []
    for entry in range(2):
        env.reset(seed=0, options={"entry": entry})
        found.append(faults_of(env))
    assert found == [(1, 0), (2, 0)]
    labels = [source.label for source in read_sources(env.settings, load_schedule("dysharp"), logging=False)]
    assert [" faults slow-link" in label for label in labels[:2]] == [False, True] and len(set(labels)) == len(labels)


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="faults='slow-link' has no effect with drawn_faults"):
        TokenScheduleEnv(**SMALL, faults="slow-link", drawn_faults=DRAWN)
    with pytest.raises(ConfigError, match="faults='slow-lnk' is unknown"):
        TokenScheduleEnv(**SMALL, drawn_faults=("slow-lnk",))
    path = tmp_path / "train.yaml"
    path.write_text("env: {suite: smoke, drawn_faults: [slow-link]}\nevolution: {}\n")
    with pytest.raises(ConfigError, match=r"env.drawn_faults=\['slow-link'\] has no effect with evolution"):
        load_spec(TrainSpec, "train", str(path))
