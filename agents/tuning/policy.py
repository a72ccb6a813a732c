"""What is chosen as schedules, a rule and a policy: files that commands take where they take schedules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dysharp_env.envs.spec import EnvSpec
from dysharp_env.files import write_text
from dysharp_env.schedules import Problem, ScheduleSpec
from dysharp_env.schedules.writing import as_yaml
from dysharp_env.simulator.network import Network
from dysharp_env.workers import Workers

from ..opponents.players import Learned
from ..policies.candidate_policy import CandidatePolicy
from ..policies.card import PolicyCard
from ..training.plan_table import PlanTable, fit_plans, fit_rule, play_plans
from ..training.portfolio import Changes
from ..training.run_folder import RunFolder
from ..training.spec import TrainSpec

NAME = "tuned"
_WIDTH, _STEPS = 8, 800


@dataclass(frozen=True)
class Tuned:
    """What a tuning run has chosen.

    Attributes:
        plans: The plans, each once.
        plan_of_tokens: Which of them each number of tokens per GPU takes.
        schedule: All of them as one schedule, which chooses by a linear rule if there are several.
        rule: That rule, weights by feature; empty if there is one plan.
        learned: A network that chooses, None if there is one plan.
    """

    plans: tuple[ScheduleSpec, ...]
    plan_of_tokens: dict[int, int]
    schedule: ScheduleSpec
    rule: dict[str, float]
    learned: Learned | None

    def of_tokens(self, tokens: int) -> ScheduleSpec:
        """Returns the plan of a number of tokens."""
        return self.plans[self.plan_of_tokens[tokens]]


def make(
    base: ScheduleSpec,
    chosen: dict[int, Changes],
    problems: Sequence[Problem],
    folder: Path,
    seed: int,
    workers: Workers,
) -> Tuned:
    """Returns what becomes of the plans chosen for each number of tokens, and writes its schedules and policy.

    Args:
        base: What plans are changes of.
        chosen: The plan of each number of tokens.
        problems: What the rule and the network are fitted to.
        folder: Where they are written.
        seed: Of the fits.
        workers: Who plays.

    Raises:
        ConfigError: A file cannot be written.
    """
    keys = {tokens: json.dumps(changes, sort_keys=True) for tokens, changes in chosen.items()}
    distinct = [*dict.fromkeys(keys.values())]
    plan_of_tokens = {tokens: distinct.index(key) for tokens, key in keys.items()}
    names = [f"{NAME}-{'-'.join(str(t) for t in keys if plan_of_tokens[t] == place)}" for place in range(len(distinct))]
    changes = [json.loads(key) for key in distinct]
    plans = tuple(
        base.with_changes({**change, "name": name, "aliases": (), "found_by": "search", "description": _said(name)})
        for name, change in zip(names, changes, strict=True)
    )
    for plan in plans:
        write_text(folder / f"{plan.name}.yaml", as_yaml(plan))
    path = folder / "schedule.yaml"
    if len(plans) == 1:
        schedule = plans[0].with_changes({"name": NAME})
        write_text(path, as_yaml(schedule))
        return Tuned(plans, plan_of_tokens, schedule, {}, None)
    listed = [{"name": name, **change} for name, change in zip(names, changes, strict=True)]
    offered = base.with_changes(
        {"name": NAME, "aliases": (), "found_by": "search", "description": _said(NAME), "plans": listed}
    )
    env = EnvSpec(schedule=str(path), exposed=("plan",))
    table = _shared(play_plans(problems, offered, env.exposure(), workers), problems)
    rule, _ = fit_rule(table, seed, restarts=2, generations=100)
    schedule = offered.with_changes({"rule": {**base.rule.model_dump(), "plan": rule}})
    write_text(path, as_yaml(schedule))
    # Networks are shown what the rule takes, so it is of the rule in force.
    table = replace(table, features=np.stack([_features(problem, schedule, env) for problem in problems]))
    opening = fit_plans(table, _WIDTH, seed, steps=_STEPS).network
    _write_policy(folder, env, opening, seed)
    return Tuned(plans, plan_of_tokens, schedule, rule, Learned(seed, env, Network.nothing(1), opening))


def _shared(table: PlanTable, problems: Sequence[Problem]) -> PlanTable:
    """Returns a table in which layers of one size have the same makespans, their geometric means.

    What is decided on is shown before anybody knows the routing, so what differs among them is chance.
    """
    sizes = np.array([problem.size for problem in problems])
    makespans_ps = table.makespans_ps.copy()
    logs = np.log(np.maximum(makespans_ps, 1))
    for size in np.unique(sizes):
        makespans_ps[sizes == size] = np.exp(logs[sizes == size].mean(axis=0)).round()
    return replace(table, makespans_ps=np.where(table.legal, makespans_ps, 0))


def _features(problem: Problem, schedule: ScheduleSpec, env: EnvSpec) -> np.ndarray:
    """Returns the (plan, feature) of a layer's plans."""
    waiting = problem.start(schedule, env.exposure()).waiting
    assert waiting is not None
    return waiting.features


def _said(name: str) -> str:
    return f"Found by agents.tune for one model on one machine ({name})."


def _write_policy(path: Path, env: EnvSpec, opening: Network, seed: int) -> None:
    policy = CandidatePolicy.of_network(Network.nothing(1), env, opening)
    folder, name = RunFolder(path), path.name if path.name[:1].isalnum() else NAME
    folder.write_config(TrainSpec(name=name, env=env, policy=policy.spec, seed=seed))
    folder.save_best(policy, PolicyCard(name=name, seed=seed, env=env, policy=policy.spec, decisions=0))
