"""The warm start: what is imitated, that it is learned and gone on from, once, and what is refused."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.opponents.lookahead import look_ahead
from agents.policies.candidate_policy import CandidatePolicy, PolicySpec
from agents.train import main
from agents.training.imitation import Fit, Lessons, draw_lessons, imitate
from agents.training.run_folder import RunFolder
from agents.training.run_loop import TrainingRun
from agents.training.spec import ImitationSpec, TrainSpec, read_spec
from agents.training.start import train
from dysharp_env.config import ConfigError, load_spec
from dysharp_env.envs.episodes import Episodes
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import Problem
from dysharp_env.workload.suite import load_suite

SPEC = ImitationSpec(layers=2, rollouts=30, epochs=24, batch_size=64, learning_rate=5e-3)
ROWS = EnvSpec(
    suite="smoke", schedule="dysharp-l2", exposed=("gemm",), hold=False, partial_tiles=False, max_candidates=16
)


def lessons_of(env: EnvSpec, seed: int = 0) -> Lessons:
    return draw_lessons(Episodes(env, 1), SPEC, seed)


def fresh_policy(env: EnvSpec) -> CandidatePolicy:
    torch.manual_seed(0)
    return CandidatePolicy(env.observation_space(), env.action_space(), lambda _: 1e-3, PolicySpec(hidden=16))


def test_lessons_are_what_look_ahead_chose_in_the_environment_s_own_decisions() -> None:
    items = [item for item in load_suite("smoke").draw() if item.entry.tokens == 16][:1]
    env = EnvSpec(**items[0].entry.scenario_fields(), **{**ROWS.model_dump(include=SHOWN), "seeds": (0, 1)})
    lessons = lessons_of(env)
    (problem,) = Problem.of_suite(items)
    choices = look_ahead(problem, SPEC.teacher(env)).choices
    # Both layers are the only one of its seeds.
    assert lessons.choices.tolist() == choices + choices
    assert bool(lessons.masks[torch.arange(len(lessons.choices)), lessons.choices].all())
    episodes = Episodes(env, 1)
    episodes.restart(0, 0)
    episodes.advance()
    for number, choice in enumerate(choices):
        for name, shown in episodes.observations.items():
            np.testing.assert_array_equal(shown[0], lessons.observations[name][number].numpy())
        np.testing.assert_array_equal(episodes.batch.mask[0], lessons.masks[number].numpy())
        episodes.step(np.array([choice]))
    assert episodes.is_over[0]


SHOWN = {"schedule", "exposed", "hold", "partial_tiles", "max_candidates"}


def test_a_policy_learns_what_it_is_shown() -> None:
    lessons = lessons_of(ROWS)
    policy = fresh_policy(ROWS)
    value = [parameter.detach().clone() for parameter in policy.critic.parameters()]
    first, *_, last = imitate(policy, lessons, SPEC, 0)
    assert last.loss < 0.7 * first.loss and last.accuracy > first.accuracy
    observations = {name: tensor.numpy() for name, tensor in lessons.observations.items()}
    agreed = (policy.choose(observations, lessons.masks.numpy()) == lessons.choices.numpy()).mean()
    by_chance = float((1 / lessons.masks.sum(dim=1)).mean())
    assert agreed > 0.5 > 1.5 * by_chance
    assert all(torch.equal(a, b) for a, b in zip(policy.critic.parameters(), value, strict=True))


def test_one_seed_gives_one_policy() -> None:
    fits: list[list[Fit]] = []
    weights = []
    for seed in (3, 3, 4):
        policy = fresh_policy(ROWS)
        fits.append(list(imitate(policy, lessons_of(ROWS, seed), SPEC, seed)))
        weights.append(policy.scoring_network().numbers)
    assert fits[0] == fits[1] != fits[2]
    assert np.array_equal(weights[0], weights[1]) and not np.array_equal(weights[0], weights[2])


def run_spec(**changes: Any) -> TrainSpec:
    settings = {"env": ROWS.model_dump(), "imitation": SPEC.model_dump(), "total_decisions": 1536}
    settings |= {"checkpoint_every_decisions": 512, "eval_every_decisions": 1024, **changes}
    return load_spec(TrainSpec, "train", "smoke").with_changes(settings)


def test_a_run_imitates_before_its_first_decision_and_a_resumed_one_not_again(tmp_path: Path) -> None:
    def stop_after_two_updates(run: TrainingRun) -> None:
        if run.decisions >= 1024 and stop:
            raise KeyboardInterrupt

    weights = []
    for stop in (False, True):
        folder = RunFolder.create(tmp_path, "warm", int(stop))
        if stop:
            with pytest.raises(KeyboardInterrupt):
                train(run_spec(), folder, watch=stop_after_two_updates)
            train(run_spec(), folder, resume=True)
        else:
            train(run_spec(), folder)
        weights.append((folder.path / "checkpoints" / "1536" / "policy.safetensors").read_bytes())
        assert read_spec(folder) == run_spec()
        evaluations = list(csv.DictReader((folder.path / "evaluations.csv").open()))
        assert [int(row["decisions"]) for row in evaluations] == [0] * 4 + [1024] * 4 + [1536] * 4
        events = EventAccumulator(str(folder.path))
        events.Reload()
        for name in ("imitation/loss", "imitation/accuracy"):
            assert [event.step for event in events.Scalars(name)] == list(range(1, SPEC.epochs + 1))
        # A resumed run writes a file of its own; which is read first is open if both began in the same second.
        assert sorted(event.step for event in events.Scalars("eval/ratio_to_bound")) == [0, 1024, 1536]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exposed": ("gemm", "combine")}, "must leave out ['combine']: look-ahead is of ['dispatch', 'gemm']"),
        ({"hold": True}, "imitation: env.hold=True must be False, which look-ahead's rule 'dysharp-l2' has"),
        ({"partial_tiles": True}, "imitation: env.partial_tiles=True must be False, which look-ahead's rule"),
    ],
)
def test_what_look_ahead_would_not_see_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"env.{name}={list(value) if isinstance(value, tuple) else value}" for name, value in changes.items()]
    options = [*(f"env.{name}={value}" for name, value in PLAIN.items()), *options, "imitation={}"]
    argv = ["--config", "smoke", "--run-dir", str(tmp_path / "runs"), "--quiet"]
    for option in options:
        argv += ["--set", option]
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err
    assert not (tmp_path / "runs").exists()


PLAIN = {"schedule": "dysharp-l2", "exposed": "[gemm]", "hold": "false", "partial_tiles": "false"}


def test_hold_and_open_tiles_do_not_matter_where_no_rows_are_asked() -> None:
    env = EnvSpec(schedule="dysharp-l2", exposed=("dispatch",))
    assert SPEC.teacher(env).kinds == ("dispatch",)


def test_evolution_does_not_imitate() -> None:
    with pytest.raises(ConfigError, match="imitation is a start for MaskablePPO, and evolution has its own"):
        run_spec(evolution={})
