"""Every name that a run shows in TensorBoard, and what stands there: for its own cards and for the guide.

Trainers share names for what means the same: ``eval/`` is of validation, ``rollout/`` of what training plays,
``train/`` of learning, ``time/`` of where the time goes. A part in capitals stands for names: KIND for kinds of
decision, NAME for schedules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Trainer = Literal["PPO", "evolution", "planning"]
TRAINERS: tuple[Trainer, ...] = ("PPO", "evolution", "planning")
Panel = Literal["scalars", "histograms", "images", "text"]


@dataclass(frozen=True)
class Curve:
    """What stands under a name.

    Attributes:
        name: The name, with a part in capitals for what differs.
        meaning: One sentence without its end.
        of: Trainers that show it.
        panel: Where TensorBoard shows it.
    """

    name: str
    meaning: str
    of: tuple[Trainer, ...] = TRAINERS
    panel: Panel = "scalars"

    @property
    def pattern(self) -> str:
        """The name as a regular expression."""
        return re.sub(r"[A-Z]{4,}", r"[A-Za-z0-9_.+-]+", re.escape(self.name))


_PPO: tuple[Trainer, ...] = ("PPO",)
_CHOICES = "of the policy's most likely choices on the validation workloads"
CURVES: tuple[Curve, ...] = (
    Curve(
        "eval/ratio_to_bound", f"mean makespan over lower bound {_CHOICES}; 1 cannot be beaten, best/ keeps the lowest"
    ),
    Curve(
        "eval/ratio_to_reference",
        f"geometric mean of makespan over the reference schedule's {_CHOICES}; below 1 is faster",
    ),
    Curve("eval/worst_ratio_to_reference", "the largest ratio to the reference on one validation workload"),
    Curve("eval/best_ratio_to_bound", "the lowest eval/ratio_to_bound so far, that of the policy in best/"),
    Curve("eval/best_ratio_to_reference", "eval/ratio_to_reference of the policy in best/"),
    Curve("eval/workloads_to_bound", "makespan over lower bound of each validation workload", panel="histograms"),
    Curve(
        "eval/workloads_to_reference", "makespan over the reference's of each validation workload", panel="histograms"
    ),
    Curve(
        "eval/schedule",
        "the first validation workload, always the same, as the policy schedules it, above the reference",
        panel="images",
    ),
    Curve(
        "opponents/NAME",
        "mean makespan over lower bound of a schedule on the validation workloads: a line to hold eval/ratio_to_bound"
        " against; of those that not all machines can run, there is none",
    ),
    Curve(
        "rollout/ratio_to_reference",
        "geometric mean of makespan over the reference's in training: of the last 32 episodes (PPO), of all nudged"
        " policies of a generation (evolution), of the plans chosen on the layers just drawn (planning)",
    ),
    Curve(
        "rollout/worst_ratio_to_reference",
        "largest such ratio on one workload, as geometric mean over its nudges",
        ("evolution",),
    ),
    Curve("rollout/ratio_to_bound", "mean makespan over lower bound of the last 32 episodes", _PPO),
    Curve("rollout/return", "mean return of the last 32 episodes: minus makespan over lower bound", _PPO),
    Curve("rollout/episode_decisions", "mean number of decisions that were asked in an episode", _PPO),
    Curve(
        "rollout/entropy",
        "mean entropy of the policy over legal candidates, nats, at 1,024 decisions of the rollout",
        _PPO,
    ),
    Curve("kinds/KIND_share", "share of a kind of decision (plan, split, dispatch, gemm, ...) among those", _PPO),
    Curve("kinds/KIND_entropy", "mean entropy at decisions of that kind, nats", _PPO),
    Curve(
        "kinds/KIND_place",
        "mean row chosen over the number of legal ones: 0 is always the first, near 1 always the last",
        _PPO,
    ),
    Curve("train/updates", "steps of the learner so far: epochs (PPO), generations (evolution), fits (planning)"),
    Curve(
        "train/loss",
        "what the learner makes small: weighted sum of the parts at the update's last gradient step (PPO), log of"
        " rollout/ratio_to_reference (evolution), mean log makespan above the best plan played, of what one fit chooses"
        " in the table (planning)",
    ),
    Curve("train/learning_rate", "present step size", ("PPO", "evolution")),
    Curve("train/policy_gradient_loss", "the policy's part of the loss, mean over the update", _PPO),
    Curve("train/value_loss", "the value network's part of the loss, mean over the update", _PPO),
    Curve("train/entropy_loss", "minus the mean entropy, mean over the update", _PPO),
    Curve("train/approx_kl", "how far an update moved the policy; it ends early above ppo.target_kl", _PPO),
    Curve("train/clip_fraction", "share of choices whose probability ratio was clipped", _PPO),
    Curve("train/clip_range", "how far a choice's probability may move in an update", _PPO),
    Curve("train/clip_range_vf", "how far a value may move in an update, where ppo.clip_range_vf is set", _PPO),
    Curve(
        "train/explained_variance",
        "how much of the returns' variance the value network explains; 1 is all, below 0 is worse than their mean",
        _PPO,
    ),
    Curve("train/table_layers", "layers in the table of plans so far", ("planning",)),
    Curve("train/loss_of_first_plan", "train/loss of always taking the first plan", ("planning",)),
    Curve("imitation/loss", "cross-entropy with look-ahead's choices, nats; steps are passes", _PPO),
    Curve("imitation/accuracy", "share of decisions in which the likeliest candidate is look-ahead's", _PPO),
    Curve("time/decisions_per_second", "decisions a second since this process began, everything included"),
    Curve("time/elapsed_s", "seconds of training so far, those of interrupted processes included"),
    Curve("time/eval_share", "share of this process's time in validation"),
    Curve("time/env_share", "share of this process's time in playing, environments and choices", _PPO),
    Curve("time/policy_share", "share of this process's time in working out values", _PPO),
    Curve("time/update_share", "share of this process's time in gradient steps", _PPO),
    Curve("run/configuration", "config.yaml: every setting of the run", panel="text"),
    Curve("run/command", "the command lines, first and resumed", panel="text"),
    Curve("run/versions", "meta.json's versions and machine, and what the run is validated on", panel="text"),
)


def find(tag: str) -> Curve | None:
    """Returns what a tag of TensorBoard stands for; None if it is in no table."""
    return next((curve for curve in CURVES if re.fullmatch(curve.pattern, tag)), None)


def description(tag: str) -> str:
    """Returns what TensorBoard says of a tag."""
    curve = find(tag)
    return "" if curve is None else f"{curve.meaning[0].upper()}{curve.meaning[1:]}."


def markdown() -> str:
    """Returns the guide's table of all names."""
    lines = ["| name | of | meaning |", "|---|---|---|"]
    for curve in CURVES:
        of = "all" if curve.of == TRAINERS else ", ".join(curve.of)
        where = "" if curve.panel == "scalars" else f" ({curve.panel})"
        lines.append(f"| `{curve.name}` | {of} | {curve.meaning}{where} |")
    return "\n".join(lines)


# Charts of several curves, by the section of TensorBoard's custom scalars that they stand in. Tags are patterns.
LAYOUT: dict[str, dict[str, list[str]]] = {
    "Agent against schedules": {
        "makespan over lower bound, validation": ["eval/ratio_to_bound", "eval/best_ratio_to_bound", "opponents/.*"],
        "makespan over the reference's": [
            "eval/ratio_to_reference",
            "eval/worst_ratio_to_reference",
            "rollout/ratio_to_reference",
        ],
    },
    "Learning": {
        "what is chosen": ["rollout/entropy", "kinds/.*_place"],
        "loss": ["train/loss", "train/loss_of_first_plan", "train/value_loss", "train/policy_gradient_loss"],
    },
    "Time": {"share of the time": ["time/.*_share"]},
}
