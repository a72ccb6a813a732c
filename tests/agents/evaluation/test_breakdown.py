"""Breakdowns: which group a workload is in, and what a group's ratio is."""

from __future__ import annotations

import numpy as np
import pytest

from agents.evaluation.breakdown import GROUPINGS, break_down, breakdown_table, read_groupings
from dysharp_env.config import ConfigError
from dysharp_env.schedules.opponent import Played
from dysharp_env.workload.suite import SuiteWorkload, load_suite


def row(policy: str, item: SuiteWorkload, makespan_us: float, seed: None | int = None) -> Played:
    return Played(policy, seed, item.name, makespan_us, 10.0, 1, 1)


def test_groups_of_the_held_out_suite() -> None:
    suite = load_suite("held-out")
    by_label = {}
    for entry in suite.workloads:
        item = suite.model_copy(update={"workloads": (entry,)}).draw()[0] if entry.tokens <= 96 else None
        if item is not None:
            by_label[item.entry.label(item.scenario)] = {by: group(item) for by, group in GROUPINGS.items()}
    assert by_label["gh200-nvl32 x16 kimi-k2 top-8 96 tokens"] == {
        "gpus": "16 GPUs",
        "model": "kimi-k2",
        "tokens": "65..256 tokens per GPU",
        "skew": "deepseek-v3-skewed",
        "direction": "forward",
        "dtype": "fp8 dispatch",
        "machine": "gh200-nvl32",
        "seen": "new machine and model",
    }
    slow = by_label["gh200-nvl32 x32 deepseek-v3 top-8 64 tokens GPU 0 x1.5"]
    assert slow["machine"] == "gh200-nvl32, one slow GPU" and slow["seen"] == "both seen"
    assert slow["tokens"] == "<=64 tokens per GPU"


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
