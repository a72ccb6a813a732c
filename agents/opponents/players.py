"""Plays workloads to their end under a policy's most likely choices, a hand-designed schedule, or any other chooser.

Everything is played at token resolution, whatever the resolution a policy was trained with. Policies and schedules are
played inside the engine, with no Python for a decision. Choosers are asked about many layers
at once: one batch holds the waiting decision of every layer that is not done. What one layer is answered does not
depend on which others are played beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agents.policies.candidate_policy import CandidatePolicy
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.schedules import LayerRun, ScheduleSpec, Starter, load_schedule, simulate
from dysharp_env.simulator.batch import Batch
from dysharp_env.simulator.network import Network
from dysharp_env.workload import ScenarioSpec
from dysharp_env.workload.suite import SuiteWorkload

RANDOM, FIRST = "random", "first"  # the names under which choices without a policy are shown

# (batch, ...) observations, (batch, action) bool masks, the index of each layer -> (batch,) actions.
Chooser = Callable[[dict[str, np.ndarray], np.ndarray, Sequence[int]], np.ndarray]

# What an environment adds to a scenario, except the workloads it draws and the resolution that makes training cheap:
# what a policy decides about. Results are always those of token resolution.
_EXPOSURE_FIELDS = sorted(
    EnvSpec.model_fields.keys() - ScenarioSpec.model_fields.keys() - {"suite", "seeds", "invalid_action", "resolution"}
)


@dataclass(frozen=True)
class Played:
    """One workload played to its end.

    Attributes:
        workload: Its name in the suite.
        makespan_us: Until its last token was combined.
        lower_bound_us: What no schedule can beat.
        decisions: Decisions with more than one legal answer.
    """

    workload: str
    makespan_us: float
    lower_bound_us: float
    decisions: int

    @property
    def ratio(self) -> float:
        """Makespan over lower bound."""
        return self.makespan_us / self.lower_bound_us


def environments(env_spec: EnvSpec, workloads: Sequence[SuiteWorkload]) -> list[TokenScheduleEnv]:
    """Returns an environment for each workload: its own scenario, and the decisions that ``env_spec`` exposes.

    Raises:
        ConfigError: The base schedule does not fit a scenario.
    """
    exposure = {name: getattr(env_spec, name) for name in _EXPOSURE_FIELDS}
    return [TokenScheduleEnv(**item.entry.scenario_fields(), **exposure, invalid_action="raise") for item in workloads]


def play(envs: Sequence[TokenScheduleEnv], workloads: Sequence[SuiteWorkload], choose: Chooser) -> list[Played]:
    """Returns every workload played to its end, in order; the environments hold the finished layers."""
    observations: list[dict[str, np.ndarray]] = []
    masks: list[np.ndarray] = []
    for env, item in zip(envs, workloads, strict=True):
        observation, info = env.reset(options={"workload": item.workload})
        observations.append(observation)
        masks.append(info["action_mask"].astype(bool))
    final: list[dict[str, Any]] = [{} for _ in envs]
    active = list(range(len(envs)))
    while active:
        batch = {name: np.stack([observations[i][name] for i in active]) for name in observations[0]}
        actions = choose(batch, np.stack([masks[i] for i in active]), active)
        playing = []
        for i, action in zip(active, actions, strict=True):
            observations[i], _, terminated, truncated, info = envs[i].step(int(action))
            masks[i] = info["action_mask"].astype(bool)
            if terminated or truncated:
                final[i] = info
            else:
                playing.append(i)
        active = playing
    return [
        Played(item.name, info["makespan_us"], info["lower_bound_us"], int(info["decisions"]))
        for item, info in zip(workloads, final, strict=True)
    ]


def random_chooser(seed: int, num_layers: int) -> Chooser:
    """Returns uniform choices among legal candidates, from one random stream for each layer."""
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(num_layers)]

    def choose(_: dict[str, np.ndarray], masks: np.ndarray, layers: Sequence[int]) -> np.ndarray:
        picks = [streams[layer].choice(np.flatnonzero(mask)) for layer, mask in zip(layers, masks, strict=True)]
        return np.array(picks, np.int64)

    return choose


def choose_first(_: dict[str, np.ndarray], masks: np.ndarray, layers: Sequence[int]) -> np.ndarray:
    """Chooses the first legal candidate: natural token order, first ready first."""
    return masks.argmax(axis=1)


def play_policy(
    policy: CandidatePolicy, env_spec: EnvSpec, workloads: Sequence[SuiteWorkload], *, logging: bool = False
) -> list[LayerRun]:
    """Returns every workload run to its end with the policy's most likely choices; see ``play_network``."""
    return play_network(policy.scoring_network(), env_spec, workloads, logging=logging)


def play_network(
    network: Network, env_spec: EnvSpec, workloads: Sequence[SuiteWorkload], *, logging: bool = False
) -> list[LayerRun]:
    """Returns every workload run to its end with what a network scores highest.

    Args:
        network: What chooses.
        env_spec: The base schedule and the decisions exposed.
        workloads: What is played, each on its own scenario.
        logging: Whether the engines record every use of a link, as pictures and timelines need.

    Raises:
        ConfigError: The base schedule does not fit a scenario.
    """
    schedule = load_schedule(env_spec.schedule)
    exposure = replace(env_spec.exposure(), network=network)
    batch = Batch(len(workloads), env_spec.max_candidates)
    runs = []
    for index, item in enumerate(workloads):
        scale = item.entry.compute_scale
        system, layer = item.scenario.system, item.scenario.layer
        starter = Starter(system, layer, schedule, exposure=exposure, compute_scale=scale, logging=logging)
        run = starter.start(item.workload)
        batch.place(index, run.engine)
        runs.append(run)
    batch.advance()
    return runs


def played(runs: Sequence[LayerRun], workloads: Sequence[SuiteWorkload]) -> list[Played]:
    """Returns what became of layers that policies have played; their decisions are those that the policy took."""
    results = [run.result() for run in runs]
    return [
        Played(item.name, result.makespan_us, result.lower_bound_us, run.engine.asked)
        for item, run, result in zip(workloads, runs, results, strict=True)
    ]


def play_schedule(schedule: ScheduleSpec, workloads: Sequence[SuiteWorkload]) -> list[Played]:
    """Returns every workload simulated under a hand-designed schedule.

    Raises:
        ConfigError: It does not fit a system.
    """
    rows = []
    for item in workloads:
        result = simulate(
            item.scenario.system, item.workload, schedule, compute_scale=item.entry.compute_scale
        ).result()
        rows.append(Played(item.name, result.makespan_us, result.lower_bound_us, result.decisions))
    return rows
