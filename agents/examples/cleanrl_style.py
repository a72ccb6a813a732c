"""``python -m agents.examples.cleanrl_style``: PPO with masks in one file of plain torch, over the vector environment.

Structure and names of settings and metrics are those that users of CleanRL know (Huang et al., JMLR 2022). Two things
differ from its PPO: logits of masked actions are minus infinity, and the steps in which Gymnasium's vector environments
start anew (``NEXT_STEP``), which have no action, are left out of what is learned from.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import nn
from torch.distributions import Categorical
from torch.utils.tensorboard import SummaryWriter

from ..kit import Command, entry
from .task import ENV_ID, SETTINGS, Choose, Env, Observation, command


@dataclass
class Args:
    """What may be set."""

    seed: int = 0
    num_envs: int = 16
    """Copies of the environment."""
    num_steps: int = 128
    """Steps of each copy between two updates."""
    learning_rate: float = 1e-3
    gamma: float = 1.0
    """The return is minus makespan over lower bound, undiscounted."""
    gae_lambda: float = 1.0
    num_minibatches: int = 8
    update_epochs: int = 6
    clip_coef: float = 0.2
    ent_coef: float = 0.005
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    logs: str | None = None
    """Folder for TensorBoard; None writes nothing."""


class Agent(nn.Module):
    """An actor and a critic of two layers each."""

    def __init__(self, num_inputs: int, num_actions: int) -> None:
        """Draws the weights from torch's random numbers."""
        super().__init__()
        self.critic = _network(num_inputs, 1, std=1.0)
        self.actor = _network(num_inputs, num_actions, std=0.01)

    def policy(self, obs: torch.Tensor, mask: torch.Tensor) -> Categorical:
        """Returns what each of (n, inputs) observations makes of its legal actions, (n, actions) bool."""
        return Categorical(logits=self.actor(obs).masked_fill(~mask, -torch.inf), validate_args=False)

    def value(self, obs: torch.Tensor) -> torch.Tensor:
        """Returns the (n,) expected returns of (n, inputs) observations."""
        return self.critic(obs).squeeze(-1)


def _network(num_inputs: int, num_outputs: int, std: float) -> nn.Sequential:
    layers = [nn.Linear(num_inputs, 64), nn.Linear(64, 64), nn.Linear(64, num_outputs)]
    for layer, gain in zip(layers, (np.sqrt(2), np.sqrt(2), std), strict=True):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


def flat(observation: Observation) -> torch.Tensor:
    """Returns the parts of an observation behind each other, with copies in front if there are any."""
    return torch.from_numpy(np.concatenate([observation["candidates"], observation["context"]], axis=-1))


class Rollout:
    """(num_steps, num_envs, ...) tensors of what happened since the last update."""

    def __init__(self, args: Args, num_inputs: int, num_actions: int) -> None:
        """Makes room."""
        shape = (args.num_steps, args.num_envs)
        self.obs, self.masks = torch.zeros(*shape, num_inputs), torch.zeros(*shape, num_actions, dtype=torch.bool)
        self.actions = torch.zeros(shape, dtype=torch.int64)
        self.logprobs, self.rewards, self.dones, self.values = (torch.zeros(shape) for _ in range(4))
        self.acted = torch.zeros(shape, dtype=torch.bool)

    def returns(self, args: Args, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns generalised advantages and the returns that they lead to; ``last`` are the values behind the end."""
        advantages, ahead, following = torch.zeros_like(self.rewards), torch.zeros_like(last), last
        for step in reversed(range(args.num_steps)):
            goes_on = 1.0 - self.dones[step]
            delta = self.rewards[step] + args.gamma * following * goes_on - self.values[step]
            ahead = delta + args.gamma * args.gae_lambda * goes_on * ahead
            advantages[step], following = ahead, self.values[step]
        return advantages, advantages + self.values


class Ppo:
    """Copies of the environment, an agent, and what takes turns between them."""

    def __init__(self, args: Args) -> None:
        """Seeds everything and starts the first layers."""
        torch.manual_seed(args.seed)
        self.args = args
        self.envs: VectorEnv = gymnasium.make_vec(ENV_ID, num_envs=args.num_envs, **SETTINGS)
        observation, infos = self.envs.reset(seed=args.seed)
        self.obs, self.mask = flat(observation), torch.from_numpy(infos["action_mask"] > 0)
        self.done = torch.zeros(args.num_envs)
        self.agent = Agent(self.obs.shape[1], self.mask.shape[1])
        self.optimizer = torch.optim.Adam(self.agent.parameters(), lr=args.learning_rate, eps=1e-5)
        self.rollout = Rollout(args, self.obs.shape[1], self.mask.shape[1])
        self.writer = SummaryWriter(args.logs) if args.logs else None
        if self.writer:
            rows = "\n".join(f"|{name}|{value}|" for name, value in asdict(args).items())
            self.writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
        self.global_step = 0

    def collect(self) -> dict[str, float]:
        """Fills the rollout and returns metrics of the episodes that ended."""
        held, ratios = self.rollout, []
        for step in range(self.args.num_steps):
            over = self.done > 0  # the next step ignores the action and starts a new layer; nothing is legal
            held.obs[step], held.acted[step] = self.obs, ~over
            held.masks[step] = self.mask | over[:, None]
            with torch.no_grad():
                policy = self.agent.policy(held.obs[step], held.masks[step])
                action = policy.sample() * ~over
                held.logprobs[step], held.values[step] = policy.log_prob(action), self.agent.value(self.obs)
            observation, rewards, terminated, _, infos = self.envs.step(action.numpy())
            held.actions[step], held.rewards[step] = action, torch.from_numpy(rewards)
            self.obs, self.mask = flat(observation), torch.from_numpy(infos["action_mask"] > 0)
            self.done = held.dones[step] = torch.from_numpy(terminated).float()
            ratios += infos["ratio"][terminated].tolist()
        self.global_step += int(held.acted.sum())
        return {"charts/episodic_return": -float(np.mean(ratios)), "charts/ratio": float(np.mean(ratios))}

    def update(self) -> dict[str, float]:
        """Learns from the rollout and returns what the last minibatch said."""
        args, held = self.args, self.rollout
        with torch.no_grad():
            advantages, returns = held.returns(args, self.agent.value(self.obs))
        of = held.acted
        batch = [each[of] for each in (held.obs, held.masks, held.actions, held.logprobs, advantages, returns)]
        said: dict[str, float] = {}
        for _ in range(args.update_epochs):
            for rows in torch.randperm(len(batch[0])).chunk(args.num_minibatches):
                loss, said = self.loss(*(each[rows] for each in batch))
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.agent.parameters(), args.max_grad_norm)
                self.optimizer.step()
        return said

    def loss(
        self,
        obs: torch.Tensor,
        mask: torch.Tensor,
        action: torch.Tensor,
        old_logprob: torch.Tensor,
        advantage: torch.Tensor,
        target: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Returns the loss of a minibatch, and its parts by name."""
        args, policy = self.args, self.agent.policy(obs, mask)
        logratio = policy.log_prob(action) - old_logprob
        ratio = logratio.exp()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
        policy_loss = -torch.min(advantage * ratio, advantage * clipped).mean()
        value_loss = 0.5 * (self.agent.value(obs) - target).square().mean()
        # Categorical.entropy() multiplies 0 by minus infinity.
        entropy = -(policy.probs * policy.logits.masked_fill(~mask, 0.0)).sum(-1).mean()
        parts = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
        parts["approx_kl"] = ((ratio - 1) - logratio).mean()
        parts["clipfrac"] = ((ratio - 1).abs() > args.clip_coef).float().mean()
        loss = policy_loss - args.ent_coef * entropy + args.vf_coef * value_loss
        return loss, {f"losses/{name}": part.item() for name, part in parts.items()}

    def learn(self, minutes: float) -> None:
        """Collects and updates in turns until time is up, at least once."""
        started, updates = time.monotonic(), 0
        while not updates or time.monotonic() - started < 60 * minutes:
            metrics = self.collect() | self.update()
            updates += 1
            metrics["charts/SPS"] = self.global_step / (time.monotonic() - started)
            if self.writer:
                for name, value in metrics.items():
                    self.writer.add_scalar(name, value, self.global_step)
        print(f"{self.global_step:,} decisions; makespan over lower bound at the end {metrics['charts/ratio']:.3f}")
        self.envs.close()


def train(minutes: float, seed: int) -> tuple[Env, Choose]:
    """Trains and returns an environment and the agent."""
    ppo = Ppo(Args(seed=seed))
    ppo.learn(minutes)

    def choose(observation: Observation, mask: np.ndarray) -> int:
        with torch.no_grad():
            policy = ppo.agent.policy(flat(observation), torch.from_numpy(mask))
        return int(policy.logits.argmax())

    return gymnasium.make(ENV_ID, **SETTINGS), choose


def build() -> Command:
    """Returns the options of the command."""
    return command("cleanrl_style", __doc__, train)


main = entry(build, __name__)
