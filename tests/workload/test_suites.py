"""The shipped suites: what is tuned on, chosen by and reported on have nothing in common, and cover what they say."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest

from dysharp_env.config import preset_names
from dysharp_env.workload.skew import skew_of
from dysharp_env.workload.suite import SuiteSpec, SuiteWorkload, load_suite

NAMES = ("training", "wide", "validation", "held-out", "confirmation", "no-harm", "skew")
SUITES: dict[str, SuiteSpec] = {name: load_suite(name) for name in NAMES}
SEEDS = {"training": (0, 10_000), "wide": (0, 10_000), "validation": (10_000, 20_000), "held-out": (20_000, 25_000)}
SEEDS |= {"confirmation": (25_000, 30_000), "no-harm": (30_000, 40_000), "skew": (40_000, 50_000)}


@cache
def drawn_of(name: str) -> list[SuiteWorkload]:
    return load_suite(name).draw()


def values(name: str, field: str) -> set:
    return {getattr(entry, field) for entry in SUITES[name].workloads}


def machines(name: str) -> set[tuple[str, int]]:
    return {(entry.system, entry.build().system.num_gpus) for entry in SUITES[name].workloads}


@pytest.mark.parametrize("name", SUITES)
def test_seeds_of_a_suite_are_its_own_and_no_two_entries_share_one(name: str) -> None:
    low, high = SEEDS[name]
    ranges = [range(entry.seeds[0], sum(entry.seeds)) for entry in SUITES[name].workloads]
    assert all(low <= seeds.start and seeds.stop <= high for seeds in ranges)
    for mine, other in itertools.combinations(ranges, 2):
        assert not set(mine) & set(other)


@pytest.mark.parametrize(
    ("name", "split"), [("training", "train"), ("wide", "train"), ("validation", "validation"), ("held-out", "test")]
)
def test_recorded_text_is_of_one_split(name: str, split: str) -> None:
    recorded = {entry.split for entry in SUITES[name].workloads if entry.routing == "recorded"}
    assert recorded == {split}


def test_machines_and_models_are_kept_out_of_training_and_validation() -> None:
    seen_machines = machines("wide") | machines("validation")
    assert {num_gpus for _, num_gpus in seen_machines} == {8, 32}
    assert {16, 72} <= {num_gpus for _, num_gpus in machines("held-out") - seen_machines}
    seen_models = values("wide", "model") | values("validation", "model")
    assert not seen_models & {entry.model for entry in SUITES["no-harm"].workloads[3:]} - {"llama-4-maverick"}
    assert {"kimi-k2", "qwen3-235b", "qwen3-next-80b"} <= values("held-out", "model") - seen_models


@pytest.mark.parametrize("name", ["training", "held-out"])
def test_suites_span_sizes_models_passes_and_payloads(name: str) -> None:
    suite = SUITES[name].workloads
    assert {32, 2048} <= {entry.tokens for entry in suite}
    assert {"small", "deepseek-v3"} <= values(name, "model")
    assert values(name, "direction") == {"forward", "backward"}
    assert {entry.build().layer.dispatch_dtype for entry in suite} == {"bf16", "fp8"}
    routing = values(name, "routing")
    assert {"uniform", "deepseek-v3-skewed", "recorded"} <= routing and any(r.startswith("power-law") for r in routing)


def test_confirmation_is_held_out_with_other_seeds() -> None:
    entries = [[entry.model_copy(update={"seeds": None}) for entry in SUITES[name].workloads] for name in SUITES]
    held_out, confirmation = (entries[list(SUITES).index(name)] for name in ("held-out", "confirmation"))
    assert held_out == confirmation


def test_machines_are_healthy_or_have_one_slow_gpu() -> None:
    for name in ("validation", "held-out"):
        assert 1.0 in values(name, "slow_gpu") and max(values(name, "slow_gpu")) > 1.0


def test_skew_has_what_it_says() -> None:
    drawn = drawn_of("skew")
    assert 20 <= len(drawn) <= 28
    counts = [item.workload.tokens_of_gpu for item in drawn]
    assert any(each.min() == 0 for each in counts) and {256, 8192} <= {int(each.max()) for each in counts}
    assert any(len(item.workload.placement) > item.workload.layer.experts for item in drawn)
    assert any(item.workload.layer.experts % item.workload.num_gpus for item in drawn)
    for num_gpus, median, worst in ((8, 1.5, 2.5), (32, 1.8, 3.0)):
        plain = [item.workload for item in drawn if item.workload.placement.is_plain]
        worth = [skew_of(each.demand.expert_tokens, each.placement) for each in plain if each.num_gpus == num_gpus]
        assert np.median(worth) > median and max(worth) > worst, (num_gpus, worth)


def test_every_suite_draws_and_the_held_out_one_has_thirty_to_forty_workloads() -> None:
    drawn = {name: {item.name for item in drawn_of(name)} for name in preset_names("suites")}
    assert 30 <= len(drawn["held-out"]) <= 40
    for mine, other in itertools.combinations(SUITES, 2):
        assert (mine, other) == ("training", "wide") or not drawn[mine] & drawn[other]
    assert drawn["training"] < drawn["wide"]
