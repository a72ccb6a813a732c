"""A warm start: the policy first learns to choose what look-ahead chooses; reinforcement learning goes on from there.

Look-ahead knows the routing in advance and the policy does not, so what the policy makes of a choice is what was good
on average where things looked alike. The value network learns nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dysharp_env.config import ConfigError
from dysharp_env.envs.episodes import Episodes
from dysharp_env.simulator.engine import Decision

from ..opponents.lookahead import play_ahead
from ..policies.candidate_policy import CandidatePolicy
from .spec import ImitationSpec


@dataclass(frozen=True)
class Lessons:
    """Decisions and what look-ahead chose.

    Attributes:
        observations: (decision, ...) float32 by the names of the observation space.
        masks: (decision, candidate) bool, what was legal.
        choices: (decision,) int64, the candidates taken.
    """

    observations: dict[str, Tensor]
    masks: Tensor
    choices: Tensor


@dataclass(frozen=True)
class Fit:
    """How well a policy chose as look-ahead did during one pass, before each step on the same decisions.

    Attributes:
        loss: Mean cross-entropy over legal candidates, in nats.
        accuracy: Fraction of decisions in which the most likely candidate was look-ahead's.
    """

    loss: float
    accuracy: float


def draw_lessons(episodes: Episodes, spec: ImitationSpec, seed: int) -> Lessons:
    """Returns all decisions of layers that look-ahead has played, drawn as episodes draw theirs.

    Raises:
        ConfigError: See ``ImitationSpec.teacher``.
    """
    ahead = spec.teacher(episodes.settings)
    stream = np.random.default_rng(seed)
    candidates, contexts, masks, choices = [], [], [], []

    def note(decision: Decision, choice: int) -> None:
        # The engine overwrites what a decision shows.
        candidates.append(decision.features.reshape(-1).copy())
        contexts.append(decision.context.copy())
        masks.append(decision.mask.copy())
        choices.append(choice)

    for _ in range(spec.layers):
        source, workload = episodes.draw(stream, {})
        play_ahead(source.starter.start(workload).engine, ahead, note)
    if not choices:
        raise ConfigError(f"imitation: {spec.layers} layers left look-ahead nothing to decide")
    shown = {"candidates": torch.from_numpy(np.stack(candidates)), "context": torch.from_numpy(np.stack(contexts))}
    return Lessons(shown, torch.from_numpy(np.stack(masks)), torch.tensor(choices))


def imitate(policy: CandidatePolicy, lessons: Lessons, spec: ImitationSpec, seed: int) -> Iterator[Fit]:
    """Moves the policy's scorer towards the lessons, pass by pass; ``seed`` orders the decisions of each."""
    optimizer = torch.optim.Adam(policy.scorer.parameters(), lr=spec.learning_rate)
    order = torch.Generator().manual_seed(seed)
    count = len(lessons.choices)
    for _ in range(spec.epochs):
        loss_sum, right = 0.0, 0
        for batch in torch.randperm(count, generator=order).split(spec.batch_size):
            shown = {name: tensor[batch] for name, tensor in lessons.observations.items()}
            distribution = policy.get_distribution(shown, lessons.masks[batch])
            loss = -distribution.log_prob(lessons.choices[batch]).mean()
            right += int((distribution.mode() == lessons.choices[batch]).sum())
            loss_sum += float(loss.detach()) * len(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield Fit(loss_sum / count, right / count)
