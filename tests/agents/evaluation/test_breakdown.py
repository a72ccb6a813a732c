"""Breakdowns: which group a workload is in, and what a group's ratio is."""

from __future__ import annotations

import numpy as np
import pytest

from agents.evaluation.breakdown import GROUPINGS, break_down, breakdown_table, read_groupings
from dysharp_env.config import ConfigError
from dysharp_env.schedules.opponent import Played
from dysharp_env.workload.suite import SuiteEntry, SuiteSpec, SuiteWorkload, load_suite


def row(policy: str, item: SuiteWorkload, makespan_us: float, seed: None | int = None) -> Played:
    return Played(policy, seed, item.name, makespan_us, 10.0, 1, 1)


def groups_of(**settings: object) -> dict[str, str]:
    (item,) = SuiteSpec(name="one", workloads=(SuiteEntry(**settings, seeds=(0, 1)),)).draw()
    return {by: group(item) for by, group in GROUPINGS.items()}


def test_groups_of_a_workload() -> None:
    assert groups_of(
        system="gh200-nvl32", gpus=16, model="kimi-k2", tokens=96, routing="deepseek-v3-skewed", group="far"
    ) == {
        "gpus": "16 GPUs",
        "model": "kimi-k2",
        "tokens": "65..256 tokens per GPU",
        "skew": "deepseek-v3-skewed",
        "direction": "forward",
        "dtype": "fp8 dispatch",
        "machine": "gh200-nvl32",
        "hardware": "dynamic-multimem",
        "seen": "new machine and model",
        "binds": "memory",
        "group": "far",
    }
    slow = groups_of(model="olmoe", tokens=64, routing="uniform", slow_gpu=1.5, hardware="today", binds="software")
    assert slow["machine"] == "dgx-h100, one slow GPU" and slow["seen"] == "both seen"
    assert slow["tokens"] == "<=64 tokens per GPU" and slow["hardware"] == "today" and slow["group"] == "no group"
    assert slow["binds"] == "software"  # as the entry says


def test_ratios_of_groups_are_their_own() -> None:
    items = load_suite("smoke").draw()
    rows = [row("a", item, 10.0) for item in items]
    rows += [row("b", item, 5.0 * 2**place, seed) for seed in (0, 1) for place, item in enumerate(items)]
    results = break_down(rows, "a", "skew", items)
    assert [result.policy for result in results] == ["b"] * len({item.entry.routing for item in items})
    for result in results:
        places = [place for place, item in enumerate(items) if item.entry.routing == result.group]
        assert result.workloads == len(places)
        assert result.geomean_ratio == pytest.approx(np.exp(np.mean([np.log(0.5 * 2**place) for place in places])))
    assert breakdown_table(results).row_count == len(results)


def test_names_are_read_once_and_checked() -> None:
    assert read_groupings(["gpus,model", "gpus"]) == ["gpus", "model"]
    with pytest.raises(ConfigError, match=r"by='tokns' is unknown; .*did you mean 'tokens'"):
        read_groupings(["tokns"])
