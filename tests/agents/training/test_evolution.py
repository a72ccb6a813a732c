"""Evolution of split policies: what the network does is what the wishes say, and a run can stop and go on."""

from __future__ import annotations

import csv
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.exact.results import INSTANCES, play_on
from agents.exact.tiny import VALIDATION_SEED, tiny_layers
from agents.opponents.read import read_contender
from agents.opponents.rollouts import play_networks
from agents.policies import steering
from agents.policies.candidate_policy import CandidatePolicy
from agents.policies.files import load_policy
from agents.policies.linear import FEATURES_OF_KIND
from agents.policies.steering import SPLIT_COMBINE, SPLIT_DISPATCH, SPLIT_EARLY
from agents.training.evolution import Evolution
from agents.training.genome import PROGRESS, Genome, Scale
from agents.training.run_folder import RunFolder
from agents.training.spec import EvolutionSpec, TrainSpec, read_spec
from agents.training.start import start_run, train
from dysharp_env.config import ConfigError, parse_spec
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import Exposure, Problem, load_schedule
from dysharp_env.schedules.sections import RuleSpec
from dysharp_env.simulator.state.observation import CONTEXT, DECISION_KINDS, FEATURES, GEMM
from dysharp_env.workers import Threads, Workers
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


def wishes_of(wishes: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """Returns the (decision, wish) values of the features of ``STEERED`` that are wanted in (decision, context)."""
    inputs = np.column_stack([contexts[:, len(DECISION_KINDS) :], np.ones(len(contexts))])
    return inputs @ wishes.T / np.array(list(steering.STEERED.values())[: len(wishes)])


def exposure(weights: np.ndarray, moments: int = 2) -> Exposure:
    network = steering.network_of(weights)
    return Exposure(kinds=("split",), splits=SPLITS, split_moments=moments, network=network)


def test_the_network_takes_the_split_nearest_to_the_wishes() -> None:
    rng = np.random.default_rng(0)
    splits = np.array([(*split, 128)[:3] for split in SPLITS])
    features = np.zeros((len(SPLITS), len(FEATURES)), np.float32)
    features[:, SPLIT_DISPATCH], features[:, SPLIT_COMBINE] = splits[:, 0] / 132, splits[:, 1] / 132
    features[:, SPLIT_EARLY] = 1 - splits[:, 2] / 128
    offered = features[:, list(steering.STEERED)]
    for _ in range(200):
        weights = steering.hand_written() + rng.normal(0, 0.3, (3, len(steering.INPUTS)))
        context = rng.random(len(CONTEXT)).astype(np.float32)
        wanted = wishes_of(weights, context[None].astype(float))[0]
        distance = np.abs(offered - wanted) @ np.array(list(steering.STEERED.values()))
        scores = steering.network_of(weights).scores(features, context)
        np.testing.assert_allclose(scores, -distance, atol=1e-4)


def test_hand_written_wishes_follow_the_phases() -> None:
    context = np.zeros((3, len(CONTEXT)))
    context[1:, CONTEXT.index("any_ready")] = 1
    context[2, CONTEXT.index("all_sent")] = 1
    wanted = wishes_of(steering.hand_written(), context)[:, :2] * 132
    np.testing.assert_allclose(wanted, [[16, 1], [16, 16], [1, 16]])


def test_a_constant_wish_plays_that_split() -> None:
    workload = Problem.of_suite(SUITE.draw())[0]
    base = load_schedule("dysharp")
    wanted = {SPLIT_DISPATCH: 16 / 132, SPLIT_COMBINE: 1 / 132, SPLIT_EARLY: 0.0}
    steered, _ = play_networks(base, [exposure(steering.constant(wanted))], workload)
    sms = {"dispatch": 16, "combine": 1}
    fixed = workload.engine(base.model_copy(update={"sms": base.sms.model_copy(update=sms)})).run().now_ps
    assert steered[0] == fixed


def evolution(workers: Workers) -> Evolution:
    spec = EvolutionSpec(pairs=2, batch=2)
    base = load_schedule("dysharp")
    made = Evolution(spec, base, exposure(steering.hand_written()), Problem.of_suite(SUITE.draw()), base, workers)
    made.restart(3)
    return made


def test_threads_change_nothing() -> None:
    one, two = evolution(Workers()), evolution(Threads(2))
    for _ in range(2):
        assert one.step(0.0) == two.step(0.0)
    np.testing.assert_array_equal(one.average, two.average)
    assert (one.average != one.weights).any()


def test_a_policy_of_a_network_plays_as_the_network() -> None:
    env = EnvSpec(exposed=("split",), splits=SPLITS, split_moments=2)
    network = steering.network_of(steering.hand_written() + 0.01)
    again = CandidatePolicy.of_network(network, env).scoring_network()
    for name in network.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(network, name), getattr(again, name), err_msg=name)


def spec_of(tmp_path: Path, **changes: object) -> TrainSpec:
    suite = tmp_path / "tiny.yaml"
    suite.write_text(SUITE.model_dump_json())
    values = {
        "name": "evolved",
        "env": {"suite": str(suite), "exposed": ["split"], "splits": SPLITS, "split_moments": 2},
        "evolution": {"pairs": 2, "batch": 2, "threads": 1},
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
    best = [(run.best / "policy.safetensors").read_bytes() for run in (whole, halves)]
    assert best[0] == best[1]
    columns = slice(0, 4)  # all but the wall time
    tables = [run.path.joinpath("generations.csv").read_text().splitlines() for run in (whole, halves)]
    assert [line.split(",")[columns] for line in tables[0]] == [line.split(",")[columns] for line in tables[1]]
    assert load_policy(whole.best, spec.env).scoring_network().width == 6


def test_decisions_asked_for_are_not_left_far_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = RunFolder.create(tmp_path, "one", 0)
    train(spec_of(tmp_path, total_decisions=1), one)
    (first,) = csv.DictReader((one.path / "generations.csv").open())
    generation = int(first["decisions"])
    said = f"one generation is {generation:,} decisions, more than total_decisions=1; it is smaller with fewer"
    assert said in capsys.readouterr().err
    some = RunFolder.create(tmp_path, "some", 0)
    train(spec_of(tmp_path, total_decisions=round(2.4 * generation)), some)
    ends = [int(row["decisions"]) for row in csv.DictReader((some.path / "generations.csv").open())]
    assert len(ends) == 2 and ends[-1] <= 1.05 * 2.4 * generation
    assert some.read_meta()["decisions"] == ends[-1]


def test_evolution_needs_a_suite(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="evolution plays a suite: env.suite=None must be the name of one"):
        spec_of(tmp_path, env={"exposed": ["split", "combine"]})


TINY = {
    "env": {"exposed": ["dispatch", "prefetch", "gemm", "combine"]},
    "evolution": {"tiny": 2, "shapes": [], "gated": [], "pairs": 2, "batch": 2, "threads": 1},
}


def test_tiny_layers_have_no_splits(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must leave out split: tiny GPUs have one SM"):
        spec_of(tmp_path, **{**TINY, "env": {"exposed": ["split", "gemm"]}})


def test_a_policy_evolves_on_tiny_layers_and_is_held_against_their_optima(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, **TINY)
    assert load_schedule(spec.env.schedule).prefetch == "none"  # which tiny layers allow all the same
    folder = start_run(spec, tmp_path)
    train(spec, folder)
    assert read_spec(folder) == spec
    rows = (folder.path / "evaluations.csv").read_text().splitlines()[1:]
    names = {row[1] for row in csv.reader(rows)}
    assert names == {layer.name for layer in tiny_layers(VALIDATION_SEED, 2)}
    assert not names & {instance.name for instance in INSTANCES}
    for instance in (INSTANCES[0], INSTANCES[-1]):
        ((seed, times),) = play_on(instance.build(), read_contender(str(folder.path)))
        assert seed == 0 and times.makespan_ps >= instance.build().bound.total_ps


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gated": ["ruled"]}, r"\['ruled'\] cannot be gated; choose from \['order'"),
        ({"gates": ["is_gemm"]}, r"\['is_gemm'\] cannot be gates; choose from \['elapsed'"),
        ({"gates": ["sent", "sent"]}, "names one twice"),
    ],
)
def test_a_weight_that_cannot_be_gated_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_spec(EvolutionSpec, changes, source="test")


def rows(kinds: tuple[str, ...] = ("split", "gemm")) -> Exposure:
    return Exposure(kinds=kinds, hold=True, splits=((8, 11), (1, 1), (16, 16)), split_moments=2)


def level(*names: str) -> Scale:
    """Returns a scale whose columns are in the shapes' own measure."""
    return Scale(names, np.zeros(len(names)), np.ones(len(names)))


def test_rows_begin_at_the_schedule_s_own_rule() -> None:
    base, workload = load_schedule("dysharp-order"), Problem.of_suite(SUITE.draw())[1]
    for kinds in (("gemm",), ("split", "dispatch", "gemm", "combine")):
        genome = Genome(base, rows(kinds), level("l2_room"), ("size",), ("sent",), own_split=(132, 128))
        network = genome.network(genome.start)
        evolved, asked = play_networks(base, [replace(rows(kinds), network=network)], workload)
        assert evolved[0] == workload.engine(base).run().now_ps and asked[0] > 0


def test_over_plans_rows_begin_at_each_plan_s_own_rule() -> None:
    base, workload = load_schedule("dysharp-tuned"), Problem.of_suite(SUITE.draw())[1]
    kinds = ("plan", "dispatch", "prefetch", "gemm", "combine")
    genome = Genome(base, rows(kinds), level("l2_room"), ("size",), ("sent",))
    assert not genome.start.any()
    by_rule = workload.under_each_plan(base, Exposure())
    network = genome.network(genome.start)
    for run in by_rule:
        run.engine.run()
    evolved = workload.under_each_plan(base, replace(rows(kinds[1:]), network=network))
    for run in evolved:
        run.engine.run()
    ends = [[run.engine.now_ps for run in runs] for runs in (by_rule, evolved)]
    assert ends[0] == ends[1] and len(set(ends[0])) > 10
    assert all(run.engine.asked > 0 for run in evolved)


def test_weights_are_what_the_columns_say() -> None:
    """A row's score by hand: constant, share of a shape's deviations, what a gate adds, and a nudge."""
    rng = np.random.default_rng(0)
    scale = Scale(("link_share", "l2_room"), np.array([0.4, 0.6]), np.array([0.1, 0.2]))
    gated, gates = ("is_hold", "size"), ("sent", "free_sms")
    genome = Genome(load_schedule("dysharp-order"), rows(("gemm",)), scale, gated, gates)
    row_features = FEATURES_OF_KIND["gemm"]
    number = len(row_features)
    weights, nudge = rng.normal(0, 1, (number + 4, 3)), rng.normal(0, 1, number + 4)
    weights[number:, 1:] = 0.0
    assert genome.start.shape == weights.shape and genome.depends.tolist() == [True] * number + [False] * 4
    features = np.zeros((5, len(FEATURES)), np.float32)
    features[:, [FEATURES.index(name) for name in row_features]] = rng.random((5, number))
    context = rng.random(len(CONTEXT)).astype(np.float32)
    context[: len(DECISION_KINDS)] = np.arange(len(DECISION_KINDS)) == GEMM
    told = {name: float(context[CONTEXT.index(name)]) for name in CONTEXT}
    shares = (1.0, (told["link_share"] - 0.4) / 0.1, (told["l2_room"] - 0.6) / 0.2)
    weigh = dict(zip(row_features, weights[:number] @ shares + nudge[:number], strict=True))
    for place, (name, gate) in enumerate(itertools.product(gated, gates), start=number):
        weigh[name] += (weights[place, 0] + nudge[place]) * told[gate]
    expected = sum(weight * features[:, FEATURES.index(name)] for name, weight in weigh.items())
    scores = genome.network(weights, nudge).scores(features, context)
    np.testing.assert_allclose(scores - scores[0], expected - expected[0], atol=1e-4)


def test_wishes_are_what_the_columns_say() -> None:
    rng = np.random.default_rng(1)
    scale = Scale(("gemm_share",), np.array([0.5]), np.array([0.25]))
    genome = Genome(load_schedule("dysharp-order"), rows(("split",)), scale)
    constants = [0, 1 + len(PROGRESS)]
    assert np.flatnonzero(genome.depends).tolist() == constants
    weights = genome.start + rng.normal(0, 0.3, genome.start.shape) * np.column_stack([np.ones(12), genome.depends])
    contexts = rng.random((1, len(CONTEXT)))
    told = {name: float(contexts[0, CONTEXT.index(name)]) for name in CONTEXT}
    moved = np.array([1.0, *(told[name] for name in PROGRESS)])
    wanted = weights[:, 0].reshape(2, -1) @ moved + weights[constants, 1] * (told["gemm_share"] - 0.5) / 0.25
    splits = np.zeros((4, len(FEATURES)), np.float32)
    splits[:, [SPLIT_DISPATCH, SPLIT_COMBINE]] = rng.random((4, 2))
    distance = np.abs(np.array([16, 11]) * splits[:, [SPLIT_DISPATCH, SPLIT_COMBINE]] - wanted).sum(axis=1)
    scores = genome.network(weights).scores(splits, contexts[0].astype(np.float32))
    np.testing.assert_allclose(scores, -distance, atol=1e-4)


def test_a_scale_has_mean_0_and_deviation_1() -> None:
    contexts = np.random.default_rng(0).random((20, len(CONTEXT)))
    contexts[:, CONTEXT.index("l2_room")] = 0.3
    counted = Scale.of(("hbm_share", "l2_room"), contexts).rows(contexts)
    np.testing.assert_allclose(counted.mean(axis=0), [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(counted.std(axis=0), [0, 1, 0], atol=1e-12)


def test_makespans_fall_where_a_weight_matters() -> None:
    """Rows taken the wrong way round are put right again in a few generations."""
    base = load_schedule("dysharp-l2")
    wrong = base.model_copy(update={"rule": RuleSpec({**base.rule.root, "gemm": {"weights_in_l2": -0.2}})})
    # With so many tokens weights are read again and again unless rows that find them in L2 go first.
    many = {"system": "dgx-h100", "model": "deepseek-v2-lite", "tokens": 256, "routing": "uniform", "seeds": [0, 1]}
    suite = Problem.of_suite(SUITE.with_changes({"workloads": [many]}).draw())
    spec = EvolutionSpec(shapes=(), gated=(), pairs=4, batch=1, learning_rate=0.1, average=0.0)
    mine = Evolution(spec, wrong, Exposure(kinds=("gemm",)), suite, base, Workers())
    mine.restart(0)
    first = mine.step(0.0).ratio
    for _ in range(12):
        last = mine.step(0.0).ratio
    assert last < first - 0.02
