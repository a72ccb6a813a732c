"""``python -m agents.latency``: what one decision of a policy costs through Stable-Baselines3, and inside the engine.

The policy has the default size and random weights. ``python -m dysharp_env bench`` measures everything that needs no
agent.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from agents.policy import CandidatePolicy
from dysharp_env.bench.layers import network_rows
from dysharp_env.bench.timing import Row, least, timed
from dysharp_env.commands import CommandParser, run_main
from dysharp_env.commands.bench import bench_table
from dysharp_env.commands.options import add_json_option
from dysharp_env.commands.output import STANDARD_OUTPUT, check_targets, json_document, results_console, write_json
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.simulator.warmup import ensure_compiled

_REPEATS = 3
_SHOWN = 500  # decisions that are answered


def build_parser() -> argparse.ArgumentParser:
    """Returns the options of the command."""
    parser = CommandParser(prog="python -m agents.latency", description=__doc__)
    add_json_option(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit status."""
    check_targets(("json", args.json, None))
    ensure_compiled()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = EnvSpec()
    policy = CandidatePolicy(spec.observation_space(), spec.action_space(), lambda _: 0.0)  # type: ignore[arg-type]
    rows = [*latency_rows(policy, spec, _SHOWN)]
    if args.json:
        records = [row.record() for row in rows]
        write_json(args.json, json_document("latency", 0, {"torch_threads": 1}, rows=records))
    if args.json != STANDARD_OUTPUT:
        results_console().print(bench_table(rows))
    return 0


def latency_rows(policy: CandidatePolicy, spec: EnvSpec, decisions: int) -> Iterator[Row]:
    """Yields microseconds of one answer at batch size 1, to decisions of one episode, or of several.

    Args:
        policy: What answers.
        spec: The environment that asks.
        decisions: How many are answered.
    """
    shown = _decisions(policy, spec, decisions)

    def through_predict() -> None:
        for observation, mask in shown:
            policy.predict(observation, deterministic=True, action_masks=mask)

    def through_torch() -> None:
        for observation, mask in shown:
            policy.choose({name: array[None] for name, array in observation.items()}, mask[None])

    for name, answer in (("predict of Stable-Baselines3", through_predict), ("the scorer in torch", through_torch)):
        _, took = least(lambda answer=answer: timed(answer), _REPEATS)  # type: ignore[misc]
        yield Row(f"one answer, {name}", took.wall_s / len(shown) * 1e6, "us", took)
    yield from network_rows(policy.scoring_network(), _REPEATS)


def _decisions(
    policy: CandidatePolicy, spec: EnvSpec, decisions: int
) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Returns observations and masks of the first decisions that the policy is asked."""
    env = TokenScheduleEnv(**spec.model_dump())
    shown: list[tuple[dict[str, np.ndarray], np.ndarray]] = []
    done = True
    while len(shown) < decisions:
        if done:
            observation, _ = env.reset(seed=len(shown))
        mask = env.action_masks()
        shown.append((observation, mask))
        batch = {name: array[None] for name, array in observation.items()}
        observation, _, terminated, truncated, _ = env.step(int(policy.choose(batch, mask[None])[0]))
        done = terminated or truncated
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_main(build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
