"""Numbers that are not finite stop training in one line, and what it met them on can be played and met again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from agents.training.evolution import Evolution
from agents.training.finite import first_not_finite, is_finite
from agents.training.ppo import Learner
from agents.training.run_folder import RunFolder
from agents.training.spec import TrainSpec
from agents.training.start import start_run, train
from dysharp_env.config import ConfigError, load_spec, parse_spec
from dysharp_env.simulator.state.observation import FEATURES
from dysharp_env.workload.suite import load_suite
from tests.agents.training.tiny import EVOLUTION

PPO = {"total_decisions": 1536, "eval_every_decisions": 4096, "pictures": False, "opponents": ()}
EVOLVED = {
    **EVOLUTION,
    "name": "evolved",
    "validation": "smoke",
    "total_decisions": 600,
    "pictures": False,
    "opponents": [],
}


def ppo(**changes: object) -> TrainSpec:
    return load_spec(TrainSpec, "train", "smoke").with_changes({**PPO, **changes})


def stopped(spec: TrainSpec, folder: RunFolder, resume: bool = False) -> str:
    with pytest.raises(ConfigError) as told:
        train(spec, folder, resume=resume)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_numbers_that_are_not_finite_are_seen() -> None:
    assert is_finite(np.zeros((2, 0))) and is_finite(np.array([-1e300, 1e300]))
    for number in (np.nan, np.inf, -np.inf):
        assert not is_finite(np.array([0.0, number, 1.0]))
        tensors = [("whole", torch.ones(2)), ("none", None), ("broken", torch.tensor([0.0, number]))]
        assert first_not_finite(tensors) == "broken"
    assert first_not_finite([("whole", torch.ones(2))]) is None


def test_a_gradient_stops_ppo_and_other_settings_go_on(tmp_path: Path) -> None:
    spec = ppo(**{"ppo.vf_coef": 1e300})
    folder = start_run(spec, tmp_path)
    said = stopped(spec, folder)
    kept = folder.path / "not-finite"
    assert said.startswith("training stopped after 0 decisions: a gradient is not finite; ")
    assert f"python -m agents.evaluate --suite {kept}/suite.yaml --policy {folder.path}" in said
    assert said.endswith(f"stopped at 0 decisions; continue with: python -m agents.train --resume {folder.path}")
    assert folder.read_meta()["processes"][-1]["end"] == "failed"
    # The batch is the rollout, and the suite holds what it was played on.
    batch = load_file(kept / "batch.safetensors")
    assert batch["actions"].shape == (4, 128) and np.isfinite(batch["rewards"]).all()
    drawn = [item.workload for item in load_suite(str(kept / "suite.yaml")).draw()]
    assert len(drawn) >= 4 and {workload.layer.name for workload in drawn} == {"olmoe"}
    rows = (folder.path / "episodes.csv").read_text() if (folder.path / "episodes.csv").exists() else ""
    assert rows == ""
    # Resuming meets the same on the same.
    shutil.rmtree(kept)
    assert stopped(spec, folder, resume=True) == said
    again = load_file(kept / "batch.safetensors")
    assert all(np.array_equal(again[name], array) for name, array in batch.items())
    train(ppo(), folder, resume=True)
    assert folder.read_meta()["processes"][-1]["changes"] == {"ppo.vf_coef": [1e300, 0.5]}
    whole = start_run(ppo(), tmp_path)
    train(ppo(), whole)
    ends = [(each.checkpoints()[-1] / "policy.safetensors").read_bytes() for each in (folder, whole)]
    assert ends[0] == ends[1]


def test_a_feature_stops_ppo_after_the_last_good_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play = Learner.play

    def spoil(learner: Learner) -> object:
        ended = play(learner)
        if learner.num_timesteps == 512:
            learner.players.candidates[2, 5, FEATURES.index("backlog")] = np.nan
        return ended

    monkeypatch.setattr(Learner, "play", spoil)
    folder = start_run(ppo(), tmp_path)
    said = stopped(ppo(), folder)
    assert "after 512 decisions: 'backlog' of candidates is not finite" in said
    assert [path.name for path in folder.checkpoints()] == ["0", "512"]


@pytest.mark.parametrize("what", ["reward", "log probability", "loss", "weight"])
def test_whatever_is_not_finite_stops_ppo(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn = Learner.train

    def spoil(learner: Learner) -> None:
        learn(learner)
        if what == "loss":
            learner.logger.record("train/loss", float("inf"))
        elif what == "weight":
            with torch.no_grad():
                next(learner.network.parameters())[0] = torch.nan

    def play(learner: Learner) -> list[object]:
        kept = learner.players
        (kept.rewards if what == "reward" else kept.log_probs)[0, 0] = np.inf
        return []

    monkeypatch.setattr(*((Learner, "train", spoil) if what in ("loss", "weight") else (Learner, "play", play)))
    folder = start_run(ppo(), tmp_path)
    assert f"{what}" in stopped(ppo(), folder).partition(" is not finite")[0]


def test_a_fitness_stops_evolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = parse_spec(TrainSpec, EVOLVED, source="test")
    step = Evolution.step

    def spoil(evolution: Evolution, progress: float) -> object:
        if evolution._steps == 1:
            evolution._reference_ps = np.full_like(evolution._reference_ps, 0)
        return step(evolution, progress)

    monkeypatch.setattr(Evolution, "step", spoil)
    folder = start_run(spec, tmp_path)
    with np.errstate(all="ignore"):
        said = stopped(spec, folder)
    assert ": the fitness is not finite; " in said
    drawn = load_suite(str(folder.path / "not-finite" / "suite.yaml")).draw()
    batch = load_file(folder.path / "not-finite" / "batch.safetensors")
    assert len(drawn) == len(batch["drawn"]) == 2
    everyone = load_suite("smoke").draw()
    assert [item.name for item in drawn] == [everyone[place].name for place in batch["drawn"]]
    # The weights that were nudged are those of the checkpoint.
    last = load_file(folder.checkpoints()[-1] / "evolution.safetensors")
    assert np.array_equal(last["weights"], batch["weights"])
