"""Suites: what they draw, and what is refused."""

import re
from pathlib import Path

import numpy as np
import pytest

from dysharp_env.config import ConfigError, preset_names
from dysharp_env.workload import ScenarioSpec
from dysharp_env.workload.suite import SuiteEntry, SuiteSpec, load_suite

ENTRY = "  - {model: olmoe, gpus: 4, tokens: 16, routing: uniform, seeds: [5, 3]}\n"


def write(folder: Path, workloads: str, name: str = "mine") -> str:
    path = folder / "suite.yaml"
    path.write_text(f"name: {name}\nworkloads:\n{workloads}")
    return str(path)


def test_a_suite_draws_its_seeds_in_order_and_always_the_same(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path, ENTRY))
    first, again = suite.draw(), suite.draw()
    assert [item.name for item in first] == [f"dgx-h100 x4 olmoe top-8 16 tokens, uniform seed={s}" for s in (5, 6, 7)]
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.workload.topk_ids, other.workload.topk_ids)
    assert not np.array_equal(first[0].workload.topk_ids, first[1].workload.topk_ids)
    # A workload depends on its seed, not on the seeds drawn before it.
    alone = load_suite(write(tmp_path, ENTRY.replace("[5, 3]", "[6, 1]"))).draw()
    assert np.array_equal(alone[0].workload.topk_ids, first[1].workload.topk_ids)


def test_entries_that_differ_only_in_how_they_run_keep_names_of_their_own(tmp_path: Path) -> None:
    backward = ENTRY.replace("tokens: 16", "tokens: 16, direction: backward")
    cheap = ENTRY.replace("tokens: 16", "tokens: 16, compute_scale: 0.5")
    names = [item.name for item in load_suite(write(tmp_path, ENTRY + backward + cheap)).draw()]
    assert len(set(names)) == 9


def test_names_say_the_tokens_of_gpus_and_how_replicas_are_chosen(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(str([*range(64), 0, 1, 2, 3]))
    uneven = ENTRY.replace("tokens: 16", f"tokens: [16, 0, 9, 1], placement: {tmp_path / 'p.json'}")
    least = uneven.replace("tokens:", "replicas: least_loaded, tokens:")
    names = [item.name for item in load_suite(write(tmp_path, uneven + least)).draw()]
    assert names[0] == "dgx-h100 x4 olmoe top-8 16,0,9,1 (26) tokens p.json, uniform seed=5"
    assert names[3] == "dgx-h100 x4 olmoe top-8 16,0,9,1 (26) tokens p.json least_loaded, uniform seed=5"
    wide = SuiteEntry(tokens=(1, 2) * 16)
    assert "1,2,1,2,1,2,1,2,... (48) tokens" in wide.label(ScenarioSpec(gpus=8).build())


@pytest.mark.parametrize(
    ("workloads", "message"),
    [
        ("  []\n", "the suite is empty; list at least one entry under 'workloads'"),
        (ENTRY.replace("[5, 3]", "[5, 0]"), "must be [first, count] with first at least 0 and count at least 1"),
        (ENTRY.replace("[5, 3]", "[-1, 3]"), "must be [first, count] with first at least 0 and count at least 1"),
        (ENTRY.replace("[5, 3]", "[true, 3]"), "workloads.0.seeds.0=True"),
        (ENTRY.replace("[5, 3]", "[5, '3']"), "workloads.0.seeds.1='3'"),
        (ENTRY.replace("tokens", "tokns"), "unknown key 'workloads.0.tokns'"),
        (ENTRY.replace("16", "0"), "workloads.0.tokens=0"),
        (ENTRY.replace("16", "[1, -2]"), "workloads.0.tokens=[1, -2]: must be from 0 to 1000000"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_it(tmp_path: Path, workloads: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_suite(write(tmp_path, workloads))
    assert "\n" not in str(caught.value)


def test_a_workload_listed_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="suite 'mine' holds the workload '.*seed=5' twice"):
        load_suite(write(tmp_path, ENTRY + ENTRY)).draw()


def test_a_scenario_that_cannot_be_read_is_reported_with_the_suite(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="suite 'mine': model='olmo' is unknown"):
        load_suite(write(tmp_path, ENTRY.replace("olmoe", "olmo"))).draw()


def test_an_unknown_suite_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"suite='smok' is unknown.*did you mean 'smoke'"):
        load_suite("smok")


def test_a_subset_of_a_suite_has_the_entries_with_a_label(tmp_path: Path) -> None:
    labelled = ENTRY.replace("tokens", "binds: memory, group: few, tokens").replace("[5", "[50")
    today = ENTRY.replace("tokens", "hardware: today, tokens").replace("[5", "[500")
    write(tmp_path, ENTRY + labelled + today)
    suite = load_suite(str(tmp_path / "suite.yaml"))
    assert len(suite.draw()) == 9
    for label, count in {"memory": 1, "few": 1, "today": 1, "dynamic-multimem": 2}.items():
        subset = suite.subset(label)
        assert subset.name == f"mine:{label}" and len(subset.workloads) == count
        assert all(label in entry.labels for entry in subset.workloads)
    message = (
        "suite 'mine' has no subset 'memry'; choose from ['dynamic-multimem', 'memory', 'few', 'today'] (did you mean"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        suite.subset("memry")


def test_a_subset_of_a_preset_is_named_behind_a_colon() -> None:
    assert load_suite("training:today").workloads == load_suite("training").subset("today").workloads
    with pytest.raises(ConfigError, match="suite='trainig' is unknown"):
        load_suite("trainig:today")


def test_names_say_hardware_and_formats_that_are_not_the_usual_ones() -> None:
    settings = {"system": "dgx-b200", "hardware": "today", "model": "deepseek-v3", "compute_dtype": "fp4"}
    entry = SuiteEntry(**settings, tokens=16, routing="uniform")
    assert entry.label(entry.build()) == "dgx-b200 x8 deepseek-v3 top-8 16 tokens fp4 GEMMs on hardware of today"


@pytest.mark.parametrize("name", preset_names("suites"))
def test_every_shipped_suite_can_be_drawn(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    assert len(suite.draw()) == sum(entry.seeds[1] for entry in suite.workloads)


def test_the_demo_is_judged_on_nothing_it_was_trained_or_chosen_on() -> None:
    validation, heldout = load_suite("demo-validation"), load_suite("demo-heldout")
    assert {entry.split for entry in validation.workloads} == {"validation"}
    traced = [entry for entry in heldout.workloads if entry.routing == "recorded"]
    assert {entry.split for entry in traced} == {"test"}
    assert any(entry.routing != "recorded" for entry in heldout.workloads)
    assert len({entry.tokens for entry in heldout.workloads}) > 1


def test_a_slow_gpu_is_the_system_s_and_named() -> None:
    entry = SuiteEntry(model="olmoe", tokens=16, routing="uniform", slow_gpu=1.25, seeds=(0, 1))
    (item,) = SuiteSpec(name="slow", workloads=(entry,)).draw()
    assert item.scenario.system.slow_gpu == 1.25 and " GPU 0 x1.25, uniform" in item.name
