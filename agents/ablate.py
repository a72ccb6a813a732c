"""``python -m agents.ablate``: what a trained policy plays like without some of what it sees or may do.

Each group of context values is held at its mean over the policy's own decisions on the training suite; early closing of
tiles, or waiting, is taken off the offer; only the first split, for all GPUs and the whole layer, is asked; every later
split comes one moment late; or one kind of decision is the schedule's again. Or plans that do something are off the
offer, which every machine leaves others of. Nothing is trained again: what is measured is how much the policy makes of
each, not what another could do without it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.schedules import Problem, ScheduleSpec
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import CONTEXT, DECISION_KINDS
from dysharp_env.system.primitives import DISPATCH_PRIMITIVES
from dysharp_env.workload.suite import load_suite

from .evaluation.contexts import record_decisions
from .evaluation.report import summary_table
from .evaluation.table import json_content, summarise
from .kit import Command, check_options, deliver, entry
from .opponents.players import FewerPlans, LateLearned, Learned
from .opponents.read import learned_of, read_contender

WHOLE = "whole policy"
_STATE_GROUPS = {
    "backlogs": ("uplink_backlog", "downlink_backlog", "hbm_backlog"),
    "occupancy": ("free_sms", "dispatch_in_flight", "combine_in_flight"),
    "what binds": ("link_share", "gemm_share", "hbm_share"),
    "shape": ("tokens_per_expert", "l2_room"),
    "balance": ("imbalance",),
}
_ELSEWHERE = {*CONTEXT[: len(DECISION_KINDS)], *(name for names in _STATE_GROUPS.values() for name in names)}
# All the others say how far the layer has got.
GROUPS = {"progress": tuple(name for name in CONTEXT if name not in _ELSEWHERE), **_STATE_GROUPS}


PLANS: dict[str, Callable[[ScheduleSpec], bool]] = {
    "replicas or copies": lambda plan: plan.replicate.planner == "none",
    "copies in the layer": lambda plan: not plan.replicate.makes_copies,
    "weights fetched ahead": lambda plan: plan.prefetch == "none",
    "GEMMs that communicate": lambda plan: not plan.sms.in_gemm,
    "bulk copies": lambda plan: "bulk" not in (plan.families.dispatch, plan.families.combine),
    "tokens named in the switch": lambda plan: not DISPATCH_PRIMITIVES[plan.dispatch].names_targets,
    "anything in the switch": lambda plan: not DISPATCH_PRIMITIVES[plan.dispatch].in_switch,
}
"""By what plans do that are taken off the offer, whether one stays."""


def hold(network: Network, names: Sequence[str], values: np.ndarray) -> Network:
    """Returns a network that takes the context values of these names to be always those of a (context,) array."""
    columns = [CONTEXT.index(name) for name in names]
    context = network.context.copy()
    context[columns] = 0.0
    bias = network.row_bias + values[columns] @ network.context[columns]
    linear = network.linear.copy()
    linear[columns] = 0.0
    # Every decision is of one kind, so what holds always is what each kind adds.
    linear[: len(DECISION_KINDS)] += values[columns] @ network.linear[columns]
    return replace(network, context=context, row_bias=bias.astype(np.float32), linear=linear)


def ablations(policy: Learned, mean_context: np.ndarray) -> dict[str, Learned]:
    """Returns the policy under ``WHOLE``, and by name the policy without each of the things that it sees or may do.

    Context values are held at those of the (context,) means.
    """
    env, network = policy.env, policy.network
    found = {WHOLE: policy}
    for group, names in GROUPS.items():
        opening = hold(policy.opening, names, mean_context) if policy.opening else None
        found[f"{group} held"] = replace(policy, network=hold(network, names, mean_context), opening=opening)

    def without(**changes: object) -> Learned:
        return replace(policy, env=env.model_copy(update=changes))

    late = tuple(split for split in env.splits if len(split) == 2)
    closes_early = "gemm" in env.exposed and env.partial_tiles
    if closes_early or ("split" in env.exposed and 2 <= len(late) < len(env.splits)):
        found["no early closing"] = without(splits=late, partial_tiles=False)
    if "gemm" in env.exposed and env.hold:
        found["no waiting"] = without(hold=False)
    if "split" in env.exposed and env.split_moments:
        found["first split only"] = without(split_moments=0)
    if "plan" in env.exposed:
        for what, kept in PLANS.items():
            if 0 < sum(map(kept, policy.base.options)) < len(policy.base.options):
                found[f"no plan with {what}"] = FewerPlans(policy.seed, env, network, policy.opening, kept)
    if len(env.exposed) > 1:
        for kind in env.exposed:
            found[f"no {kind} decisions"] = without(exposed=tuple(other for other in env.exposed if other != kind))
    return found


def build() -> Command:
    """Returns the options of the command."""
    command = Command("ablate", __doc__, run)
    command.add("policy", metavar="RUN", help="run folders of one policy, joined by commas, or rule.json")
    command.add_suite("held-out:dynamic-multimem").add_suite(
        "training:dynamic-multimem", "--means", "the suite that means are over"
    )
    return command.add_seed("intervals").add_json()


def run(args: argparse.Namespace) -> int:
    """Takes a policy apart as the options say and prints the table."""
    check_options(args)
    policies = learned_of(read_contender(args.policy))
    if not policies:
        raise ConfigError(f"policy='{args.policy}' has not learned; name a run folder or a rule's .json")
    suite, means = load_suite(args.suite), load_suite(args.means)
    problems, watched = Problem.of_suite(suite.draw()), Problem.of_suite(means.draw())
    rows = []
    for policy in policies:
        mean_context = record_decisions(policy, watched).mean_context
        found = ablations(policy, mean_context)
        if "split" in policy.env.exposed and policy.env.split_moments:
            found["one moment late"] = LateLearned(policy.seed, policy.env, policy.network, policy.opening)
        for name, ablated in found.items():
            rows += ablated.play(problems, name)
    summaries = summarise(rows, WHOLE, args.seed)
    config = {"policy": args.policy, "suite": suite.model_dump(mode="json"), "means": args.means}
    deliver(args, config, json_content(rows, summaries), summary_table(summaries, suite.name), timed=True)
    return 0


main = entry(build, __name__)
