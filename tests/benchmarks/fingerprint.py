"""What the model computes, as a file that two versions can be compared by: ``python tests/benchmarks/fingerprint.py``.

    PYTHONPATH=OLD python tests/benchmarks/fingerprint.py --out old.json
    PYTHONPATH=. python tests/benchmarks/fingerprint.py --against old.json

It holds the picoseconds, flits, decisions and tables of every shipped schedule on a suite, and a digest of the bytes of
the observations, masks and rewards of environments that play random legal actions. It uses only what any version has.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

import dysharp_env  # noqa: F401 (registers the environment)
from dysharp_env.config import ConfigError, preset_names
from dysharp_env.schedules import load_schedule, simulate
from dysharp_env.simulator.result import schedule_table
from dysharp_env.workload.suite import load_suite

SPLITS = [[8, 11], [1, 1], [1, 16], [4, 4], [4, 22], [8, 8], [14, 4], [20, 1], [20, 22]]
# Between them every kind of decision, every shape of waiting, both resolutions, and both ways to combine.
ENVIRONMENTS: list[dict[str, Any]] = [
    {"model": "deepseek-v2-lite", "tokens": 256, "routing": "recorded", "exposed": ["gemm"]},
    {
        "model": "small",
        "routing": "uniform",
        "exposed": ["dispatch", "gemm", "combine"],
        "hold": True,
        "partial_tiles": True,
    },
    {"suite": "smoke", "exposed": ["split", "gemm"], "splits": SPLITS, "split_moments": 4, "schedule": "dysharp-order"},
    {
        "model": "small",
        "routing": "uniform",
        "exposed": ["split", "dispatch", "combine"],
        "splits": SPLITS,
        "split_moments": 4,
        "hold": True,
    },
    {
        "model": "olmoe",
        "routing": "uniform",
        "tokens": 64,
        "schedule": "comet",
        "exposed": ["dispatch", "gemm", "combine"],
    },
    {
        "model": "small",
        "routing": "uniform",
        "tokens": 16,
        "resolution": "packet",
        "exposed": ["dispatch", "gemm", "combine"],
    },
]


def of_schedules(suite: str, limit: int | None) -> dict[str, Any]:
    """Returns what every shipped schedule does on every workload of a suite."""
    rows: dict[str, Any] = {}
    for item in load_suite(suite).draw()[:limit]:
        for name in preset_names("schedules"):
            try:
                run = simulate(
                    item.scenario.system, item.workload, load_schedule(name), compute_scale=item.entry.compute_scale
                )
            except ConfigError:
                continue  # a schedule that does not fit the machine
            result = run.result()
            rows[f"{item.name} | {name}"] = [
                round(result.makespan_us * 1e6),
                run.lower_bound_ps,
                result.decisions,
                result.evictions,
                result.wire_bytes,
                result.payload_bytes,
                result.phases_us,
                hashlib.sha256(repr(schedule_table(run.engine)).encode()).hexdigest(),
            ]
    return rows


def of_environments(steps: int) -> dict[str, str]:
    """Returns a digest of what each environment shows in so many steps, and what it rewards."""
    digests = {}
    for options in ENVIRONMENTS:
        env = gymnasium.make("DySHARP/TokenSchedule-v2", **options)
        choices = np.random.default_rng(0)
        digest = hashlib.sha256()
        observation, info = env.reset(seed=0)
        for _ in range(steps):
            for name in ("candidates", "context"):
                digest.update(np.ascontiguousarray(observation[name]).tobytes())
            digest.update(np.asarray(info["action_mask"], np.int8).tobytes())
            action = int(choices.choice(np.flatnonzero(info["action_mask"])))
            observation, reward, terminated, truncated, info = env.step(action)
            digest.update(np.float64(reward).tobytes())
            if terminated or truncated:
                observation, info = env.reset()
        digests[json.dumps(options)] = digest.hexdigest()
    return digests


def main() -> int:
    """Writes the fingerprint, or compares it with another version's; returns 1 if they differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", default="held-out:dynamic-multimem")
    parser.add_argument("--workloads", type=int, help="only so many of the suite")
    parser.add_argument("--steps", type=int, default=4000, help="of each environment")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path)
    args = parser.parse_args()
    mine = {"environments": of_environments(args.steps), "schedules": of_schedules(args.suite, args.workloads)}
    if args.out:
        args.out.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")
    if not args.against:
        return 0
    theirs = json.loads(args.against.read_text(encoding="utf-8"))
    mine = json.loads(json.dumps(mine))  # tuples are lists there
    different = [
        name for part in mine for name in mine[part] if name in theirs[part] and mine[part][name] != theirs[part][name]
    ]
    shared = sum(len(mine[part].keys() & theirs[part].keys()) for part in mine)
    print(f"{shared} compared, {len(different)} differ", *different[:20], sep="\n  ")
    return 1 if different or not shared else 0


if __name__ == "__main__":
    sys.exit(main())
