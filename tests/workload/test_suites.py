"""The shipped suites: what is tuned on, chosen by and reported on have nothing in common, and cover what they say."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import cache

import numpy as np
import pytest

from dysharp_env.config import preset_names
from dysharp_env.workload.skew import skew_of
from dysharp_env.workload.suite import SuiteEntry, SuiteSpec, SuiteWorkload, load_suite

NAMES = ("training", "validation", "held-out", "no-harm", "skew")
SUITES: dict[str, SuiteSpec] = {name: load_suite(name) for name in NAMES}
SEEDS = {"training": (0, 10_000), "validation": (10_000, 20_000), "held-out": (50_000, 70_000)}
SEEDS |= {"no-harm": (30_000, 40_000), "skew": (40_000, 50_000)}
BY_BINDING = ("training", "validation", "held-out")
OWN_MODELS = {"kimi-k2", "qwen3-235b", "qwen3-next-80b", "qwen3.5-122b-a10b", "glm-4.5", "mixtral-8x22b"}
R1 = "deepseek-r1"


@cache
def drawn_of(name: str) -> list[SuiteWorkload]:
    return load_suite(name).draw()


def values(name: str, field: str) -> set:
    return {getattr(entry, field) for entry in SUITES[name].workloads}


def entries(name: str, **fields: object) -> list[SuiteEntry]:
    found = SUITES[name].workloads
    return [entry for entry in found if all(getattr(entry, field) == value for field, value in fields.items())]


def gpu_counts(name: str) -> Counter[int]:
    return Counter(entry.build().system.num_gpus for entry in SUITES[name].workloads)


def most_tokens(entry: SuiteEntry) -> int:
    return max(entry.tokens) if isinstance(entry.tokens, tuple) else int(entry.tokens)


@pytest.mark.parametrize("name", SUITES)
def test_seeds_of_a_suite_are_its_own_and_no_two_entries_share_one(name: str) -> None:
    low, high = SEEDS[name]
    ranges = [range(entry.seeds[0], sum(entry.seeds)) for entry in SUITES[name].workloads]
    assert all(low <= seeds.start and seeds.stop <= high for seeds in ranges)
    for mine, other in itertools.combinations(ranges, 2):
        assert not set(mine) & set(other)


@pytest.mark.parametrize(("name", "split"), [("training", "train"), ("validation", "validation"), ("held-out", "test")])
def test_recorded_text_is_of_one_split(name: str, split: str) -> None:
    recorded = {entry.split for entry in SUITES[name].workloads if entry.routing == "recorded"}
    assert recorded == {split}


@pytest.mark.parametrize(
    ("name", "least", "today"), [("training", 90, 12), ("validation", 28, 5), ("held-out", 72, 12)]
)
def test_a_third_each_is_bound_by_links_memory_and_arithmetic_or_software(name: str, least: int, today: int) -> None:
    suite = SUITES[name].workloads
    bound = Counter("arithmetic" if entry.binds in ("compute", "software") else entry.binds for entry in suite)
    assert len(suite) >= least
    assert set(bound) == {"links", "memory", "arithmetic"} and min(bound.values()) >= 0.29 * len(suite)
    assert len(entries(name, hardware="today")) >= today
    assert {entry.group for entry in entries(name, hardware="today")} == {"today"}


def test_sizes_machines_and_models_are_kept_out_of_training_and_validation() -> None:
    seen = gpu_counts("training") + gpu_counts("validation")
    assert min(seen) == 4 and max(seen) == 64 and len(gpu_counts("training")) >= 6
    held_out = gpu_counts("held-out")
    assert {16, 48, 72} <= {*held_out} - {*seen} and held_out[72] >= 8
    others = ("training", "validation")
    assert not any(values(name, "system") & {"dgx-b300", "gb300-nvl72"} for name in others)
    seen_models = set.union(*(values(name, "model") for name in others))
    assert OWN_MODELS <= values("held-out", "model") - seen_models
    assert not seen_models & {entry.model for entry in SUITES["no-harm"].workloads[3:]} - {"llama-4-maverick"}


@pytest.mark.parametrize("name", BY_BINDING)
def test_suites_span_sizes_models_passes_formats_and_faults(name: str) -> None:
    suite = SUITES[name].workloads
    tokens = [most_tokens(entry) for entry in suite]
    assert min(tokens) == 32 and max(tokens) == 8192
    assert (
        sum(each <= 256 for each in tokens) >= len(suite) / 3 and sum(each >= 512 for each in tokens) >= len(suite) / 5
    )
    assert {"small", "deepseek-v3"} <= values(name, "model")
    assert values(name, "direction") == {"forward", "backward"}
    layers = [entry.build().layer for entry in suite]
    assert {"bf16", "fp8", "nvfp4"} <= {layer.dispatch_dtype for layer in layers}
    assert {"bf16", "fp8", "fp4"} == {layer.compute_dtype for layer in layers}
    assert "mxfp4" in {layer.weight_dtype for layer in layers}
    assert any(isinstance(entry.tokens, tuple) for entry in suite)
    assert any(entry.placement.startswith("eplb") for entry in suite)
    assert 1.0 in values(name, "slow_gpu") and max(values(name, "slow_gpu")) > 1.0


@pytest.mark.parametrize(("name", "share"), [("training", 0.15), ("validation", 0.15), ("held-out", 0.2)])
def test_skew_is_that_of_real_loads(name: str, share: float) -> None:
    skewed = [item for item in drawn_of(name) if item.entry.group == "skewed"]
    assert len(skewed) >= share * len(drawn_of(name))
    assert {R1, "power-law"} <= {item.entry.routing.partition(":")[0] for item in skewed}
    worth = [skew_of(item.workload.demand.expert_tokens, item.workload.placement) for item in skewed]
    assert min(worth) > 1.3 and np.median(worth) > 1.7
    # The worst layers of DeepSeek-R1 on 8 GPUs have up to 4.3 times the mean.
    served = [each for each, item in zip(worth, skewed, strict=True) if item.entry.routing.startswith(R1)]
    assert max(served) > 3


def test_skewed_workloads_of_held_out_are_on_8_to_32_gpus_at_several_quantiles() -> None:
    skewed = [item for item in drawn_of("held-out") if item.entry.routing.startswith(f"{R1}:")]
    assert len({item.entry.routing for item in skewed}) >= 4
    assert {8, 32} <= {item.scenario.system.num_gpus for item in skewed}


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


def test_every_suite_draws_and_no_two_share_a_workload() -> None:
    drawn = {name: {item.name for item in drawn_of(name)} for name in preset_names("suites")}
    for mine, other in itertools.combinations(SUITES, 2):
        assert not drawn[mine] & drawn[other]
