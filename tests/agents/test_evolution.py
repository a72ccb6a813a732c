"""Evolution of split policies: what the network does is what the wishes say, and a run can stop and go on."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents import steering
from agents.contender import read_contender
from agents.evolution import Evolution, EvolutionSpec
from agents.exact import INSTANCES, is_solution, play_on
from agents.genome import ROW_FEATURES, Genome
from agents.policy import CandidatePolicy
from agents.rollouts import play_networks, prepare
from agents.run_folder import RunFolder
from agents.tiny import VALIDATION_SEED, tiny_layers
from agents.train_spec import TrainSpec, read_spec
from agents.training import train
from agents.weights import load_policy
from dysharp_env.config import ConfigError, parse_spec
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import Exposure, load_schedule
from dysharp_env.simulator.layout import (
    CONTEXT,
    DECISION_KINDS,
    F_SPLIT_COMBINE,
    F_SPLIT_DISPATCH,
    F_SPLIT_EARLY,
    FEATURES,
    GEMM,
)
from dysharp_env.workload.suite import SuiteSpec

SPLITS = ((8, 8), (1, 1), (16, 1), (1, 16), (16, 16), (4, 8, 32))
SUITE = SuiteSpec.model_validate(
    {
        "name": "tiny",
        "description": "Two small layers.",
        "workloads": [
            {"system": "dgx-h100", "model": "deepseek-v2-lite", "tokens": 16, "routing": "uniform", "seeds": [0, 1]},
            {"system": "dgx-h100", "model": "small", "tokens": 32, "routing": "uniform", "seeds": [1, 1]},
        ],
    }
)


def exposure(weights: np.ndarray, moments: int = 2) -> Exposure:
    network = steering.network_of(weights)
    return Exposure(kinds=("split",), splits=SPLITS, split_moments=moments, network=network)


def test_the_network_takes_the_split_nearest_to_the_wishes() -> None:
    rng = np.random.default_rng(0)
    splits = np.array([(*split, 128)[:3] for split in SPLITS])
    features = np.zeros((len(SPLITS), len(FEATURES)), np.float32)
    features[:, F_SPLIT_DISPATCH], features[:, F_SPLIT_COMBINE] = splits[:, 0] / 132, splits[:, 1] / 132
    features[:, F_SPLIT_EARLY] = 1 - splits[:, 2] / 128
    offered = features[:, list(steering.STEERED)]
    for _ in range(200):
        weights = steering.hand_written() + rng.normal(0, 0.3, steering.size(3))
        context = rng.random(len(CONTEXT)).astype(np.float32)
        wanted = steering.wishes_of(weights, context[None].astype(float))[0]
        distance = np.abs(offered - wanted) @ np.array(list(steering.STEERED.values()))
        scores = steering.network_of(weights).scores(features, context)
        np.testing.assert_allclose(scores, -distance, atol=1e-4)


def test_hand_written_wishes_follow_the_phases() -> None:
    context = np.zeros((3, len(CONTEXT)))
    context[1:, CONTEXT.index("any_ready")] = 1
    context[2, CONTEXT.index("all_sent")] = 1
    wanted = steering.wishes_of(steering.hand_written(), context)[:, :2] * 132
    np.testing.assert_allclose(wanted, [[16, 1], [16, 16], [1, 16]])


def test_a_constant_wish_plays_that_split() -> None:
    workload = prepare(SUITE.draw())[0]
    base = load_schedule("dysharp")
    wanted = {F_SPLIT_DISPATCH: 16 / 132, F_SPLIT_COMBINE: 1 / 132, F_SPLIT_EARLY: 0.0}
    steered, _ = play_networks(base, [exposure(steering.constant(wanted))], workload)
    sms = {"dispatch": 16, "combine": 1}
    fixed = workload.engine(base.model_copy(update={"sms": base.sms.model_copy(update=sms)})).run().now_ps
    assert steered[0] == fixed


def evolution(threads: int) -> Evolution:
    spec = EvolutionSpec(population=4, batch=2, threads=threads)
    base = load_schedule("dysharp")
    made = Evolution(spec, base, exposure(steering.hand_written()), prepare(SUITE.draw()), base)
    made.restart(3)
    return made


def test_threads_change_nothing() -> None:
    one, two = evolution(1), evolution(2)
    for _ in range(2):
        assert one.step() == two.step()
    np.testing.assert_array_equal(one.mean, two.mean)


def test_a_policy_of_a_network_plays_as_the_network() -> None:
    env = EnvSpec(exposed=("split",), splits=SPLITS, split_moments=2)
    network = steering.network_of(steering.hand_written() + 0.01)
    again = CandidatePolicy.of_network(network, env).scoring_network()
    for name, first, second in zip(network.__dataclass_fields__, network, again, strict=True):
        np.testing.assert_array_equal(first, second, err_msg=name)


def spec_of(tmp_path: Path, **changes: object) -> TrainSpec:
    suite = tmp_path / "tiny.yaml"
    suite.write_text(SUITE.model_dump_json())
    values = {
        "name": "evolved",
        "env": {"suite": str(suite), "exposed": ["split"], "splits": SPLITS, "split_moments": 2},
        "evolution": {"population": 4, "batch": 2, "threads": 1},
        "validation": str(suite),
        "total_decisions": 400,
        "eval_every_decisions": 100,
        "checkpoint_every_decisions": 100,
        **changes,
    }
    return parse_spec(TrainSpec, values, source="test")


def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    whole = RunFolder.create(tmp_path, "whole", 0)
    train(spec, whole)
    halves = RunFolder.create(tmp_path, "halves", 0)
    train(spec.with_changes({"total_decisions": 150}), halves)
    train(spec, halves, resume=True)
    assert read_spec(halves) == spec
    for name in ("best/genome.safetensors", "best/policy.safetensors"):
        assert (whole.path / name).read_bytes() == (halves.path / name).read_bytes()
    columns = slice(0, 5)  # all but the wall time
    tables = [run.path.joinpath("generations.csv").read_text().splitlines() for run in (whole, halves)]
    assert [line.split(",")[columns] for line in tables[0]] == [line.split(",")[columns] for line in tables[1]]
    assert load_policy(whole.best, spec.env).scoring_network().width == 6


def test_evolution_needs_a_suite(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="evolution plays a suite: env.suite=None must be the name of one"):
        spec_of(tmp_path, env={"exposed": ["split", "combine"]})


TINY = {
    "env": {"exposed": ["dispatch", "gemm", "combine"]},
    "evolution": {"tiny": 2, "population": 4, "batch": 2, "gated": [], "threads": 1},
}


def test_tiny_layers_have_no_splits(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must leave out split: tiny GPUs have one SM"):
        spec_of(tmp_path, **{**TINY, "env": {"exposed": ["split", "gemm"]}})


def test_a_policy_evolves_on_tiny_layers_and_is_held_against_their_optima(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, **TINY)
    folder = RunFolder.create(tmp_path, "tiny", 0)
    train(spec, folder)
    assert read_spec(folder) == spec
    rows = (folder.path / "evaluations.csv").read_text().splitlines()[1:]
    names = {row[1] for row in csv.reader(rows)}
    assert names == {layer.name for layer in tiny_layers(VALIDATION_SEED, 2)}
    assert not names & {instance.name for instance in INSTANCES}
    for instance in (INSTANCES[0], INSTANCES[-1]):
        ((seed, times),) = play_on(instance.build(), read_contender(str(folder.path)))
        assert seed == 0 and is_solution(instance.build(), times)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gated": ["split_early"]}, r"\['split_early'\] cannot be gated; choose from \['order'"),
        ({"gates": ["is_gemm"]}, r"\['is_gemm'\] cannot be gates; choose from \['elapsed'"),
        ({"gates": ["sent", "sent"]}, "names one twice"),
    ],
)
def test_a_weight_that_cannot_be_gated_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_spec(EvolutionSpec, changes, source="test")


def rows(kinds: tuple[str, ...] = ("split", "gemm")) -> Exposure:
    return Exposure(kinds=kinds, hold=True, splits=((8, 11), (1, 1), (16, 16)), split_moments=2)


def test_rows_begin_at_the_schedule_s_own_rule() -> None:
    base, workload = load_schedule("dysharp-tuned"), prepare(SUITE.draw())[1]
    for kinds in (("gemm",), ("split", "gemm")):
        genome = Genome(base, rows(kinds), ("size",), ("sent",), own_split=(132, 128))
        network = genome.network(genome.start)
        evolved, asked = play_networks(base, [replace(rows(kinds), network=network)], workload)
        assert evolved[0] == workload.engine(base).run().now_ps and asked[0] > 0


def test_a_gate_adds_to_a_weight() -> None:
    rng = np.random.default_rng(0)
    gated, gates = ("is_hold", "size"), ("sent", "l2_room", "free_sms")
    genome = Genome(load_schedule("dysharp-tuned"), rows(), gated, gates)
    point = rng.normal(0, 1, len(genome.start))
    rule, added = point[42:-6], point[-6:].reshape(2, 3)
    assert len(genome.start) == 42 + len(ROW_FEATURES) + 6
    features = np.zeros((5, len(FEATURES)), np.float32)
    features[:, [FEATURES.index(name) for name in ROW_FEATURES]] = rng.random((5, len(ROW_FEATURES)))
    context = rng.random(len(CONTEXT)).astype(np.float32)
    context[: len(DECISION_KINDS)] = np.arange(len(DECISION_KINDS)) == GEMM
    weights = dict(zip(ROW_FEATURES, rule, strict=True))
    for name, of_gates in zip(gated, added, strict=True):
        weights[name] += of_gates @ context[[CONTEXT.index(gate) for gate in gates]]
    expected = sum(weight * features[:, FEATURES.index(name)] for name, weight in weights.items())
    scores = genome.network(point).scores(features, context)
    np.testing.assert_allclose(scores - scores[0], expected - expected[0], atol=1e-5)
