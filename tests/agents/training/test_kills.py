"""Trainings that are killed end as those that nobody stops; kills.py does it as often as it is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def killed(tmp_path: Path, *options: str) -> dict[str, dict[str, int]]:
    found = tmp_path / "kills.json"
    command = [sys.executable, "-m", "tests.agents.training.kills", "--json", str(found), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    trainers: dict[str, dict[str, int]] = json.loads(found.read_text())["trainers"]
    assert {*trainers} == {"PPO", "evolution"}
    for counts in trainers.values():
        assert counts["wrong"] == [] and counts["runs"] == counts["runs that end as one that was not stopped"]
    return trainers


def test_killed_trainings_end_as_those_that_were_not_and_a_full_disk_costs_no_weights(tmp_path: Path) -> None:
    for counts in killed(tmp_path, "--kills", "4", "--full", "2").values():
        assert counts["SIGKILL"] >= 2 and counts["full disks"] == 1


@pytest.mark.slow
def test_a_hundred_kills_and_twenty_of_each_polite_signal(tmp_path: Path) -> None:
    trainers = killed(tmp_path, "--kills", "100", "--polite", "20", "--at-writes", "60", "--full", "40")
    for name, wanted in (("SIGKILL", 160), ("SIGINT", 20), ("SIGTERM", 20), ("SIGHUP", 20), ("SIGUSR1", 20)):
        assert sum(counts[name] for counts in trainers.values()) >= wanted
