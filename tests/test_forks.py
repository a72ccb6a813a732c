"""A process that has used the engine, threads and torch is forked: what it forks works on, and nothing hangs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import multiprocessing
import torch
from dysharp_env.envs.vector import TokenScheduleVectorEnv
from dysharp_env.workers import Threads

envs = TokenScheduleVectorEnv(
    4, threads=2, model="olmoe", top_k=2, gpus=2, tokens=6, routing="uniform", max_candidates=16
)
workers = Threads(2)

def play(_):
    envs.reset(seed=3)
    total = 0.0
    for _ in range(30):
        total += float(envs.step(envs.action_masks().argmax(axis=1))[1].sum())
    return total, workers.map(abs, [-1, 2])

torch.set_num_threads(2)
torch.ones(300, 300) @ torch.ones(300, 300)
before = play(0)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map_async(play, range(4)).get(60) == [before] * 4
assert play(0) == before
envs.close()
workers.close()
print("the same")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_what_is_forked_after_threads_works_on() -> None:
    child = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert (child.returncode, child.stdout) == (0, "the same\n"), child.stderr
