"""What a tuned layer takes beside all shipped schedules that the hardware can run, on layers that were not searched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import numpy as np

from dysharp_env.config import ConfigError, preset_names
from dysharp_env.report.page.parts import Grid
from dysharp_env.schedules import Problem, ScheduleSpec, load_schedule
from dysharp_env.schedules.opponent import Contender, Played
from dysharp_env.workers import Workers

from ..evaluation.statistics import Estimate, geometric_mean
from ..evaluation.table import evaluate, log_ratios
from ..opponents.read import VIRTUAL_BEST, designed_by_hand, read_contender
from ..policies.card import REFERENCE
from .policy import NAME, Tuned
from .spec import TuneSpec

BY_RULE, BY_NETWORK = "tuned by rule", "tuned by network"
UNSEARCHED = "chosen, not searched"  # of what is shipped and its plans, chosen for each number of tokens likewise
_LEVEL = 0.03


@dataclass(frozen=True)
class Line:
    """A schedule's makespan over the best shipped one's, on layers of a number of tokens or of all (None)."""

    policy: str
    tokens: int | None
    mean_us: float
    ratio: Estimate


@dataclass(frozen=True)
class Report:
    """What was measured on the test split.

    Attributes:
        rows: All layers that were played.
        best_shipped: The shipped schedule with the lowest geometric mean over all of them.
        best_of_tokens: The same for each number of tokens alone.
        lines: Everybody for each number of tokens and for all, over ``best_shipped``.
        tuned: The tuned plans over ``best_shipped``.
        tuned_over_each: The same over ``best_of_tokens``.
        tuned_over_hindsight: The same over the fastest hand-designed schedule of each layer.
        tuned_over_unsearched: The same over what is chosen without a search: what changes have brought.
    """

    rows: list[Played]
    best_shipped: str
    best_of_tokens: dict[int, str]
    lines: list[Line]
    tuned: Estimate
    tuned_over_each: Estimate
    tuned_over_hindsight: Estimate
    tuned_over_unsearched: Estimate

    def content(self) -> dict[str, object]:
        """Returns it for JSON."""
        over = ("tuned", "tuned_over_each", "tuned_over_hindsight", "tuned_over_unsearched")
        ratios = {name: getattr(self, name)._asdict() for name in over}
        lines = [{**asdict(line), "ratio": line.ratio._asdict()} for line in self.lines]
        return {
            "best_shipped": self.best_shipped,
            "best_of_tokens": {str(tokens): name for tokens, name in self.best_of_tokens.items()},
            **ratios,
            "lines": lines,
            "rows": [asdict(row) for row in self.rows],
        }


def opponents(problem: Problem) -> list[Contender]:
    """Returns all shipped schedules and agents that a layer's machine can run."""
    found = []
    for name in [*preset_names("schedules"), REFERENCE]:
        with suppress(ConfigError):
            contender = read_contender(name) if name == REFERENCE else Contender.of_schedule(load_schedule(name))
            for opponent in contender.opponents:
                opponent.start(problem)
            found.append(contender)
    return found


def measure(
    spec: TuneSpec,
    tuned: Tuned,
    unsearched: dict[int, ScheduleSpec],
    workers: Workers,
    tell: Callable[[int], object],
) -> Report:
    """Plays the test layers of all numbers of tokens under everybody.

    Args:
        spec: The run.
        tuned: What it has chosen.
        unsearched: What it would have chosen without a search, for each number of tokens.
        workers: Who plays.
        tell: Hears which number of tokens is next.
    """
    rows: list[Played] = []
    tokens_of: dict[str, int] = {}
    shipped = opponents(spec.problems(spec.tokens[0], "test")[0])
    for tokens in spec.tokens:
        tell(tokens)
        problems = spec.problems(tokens, "test")
        ours = [Contender.of_schedule(tuned.of_tokens(tokens).with_changes({"name": NAME}))]
        ours.append(Contender.of_schedule(unsearched[tokens].with_changes({"name": UNSEARCHED})))
        if tuned.learned:
            ours.append(Contender.of_schedule(tuned.schedule.with_changes({"name": BY_RULE})))
            ours.append(Contender(BY_NETWORK, BY_NETWORK, "network", tuned.learned, (tuned.learned,)))
        rows += evaluate(problems, [*ours, *shipped], workers=workers)
        tokens_of |= {problem.name: tokens for problem in problems}
    rows += _in_hindsight(rows)
    return summarise(rows, tokens_of, spec.seed)


def _in_hindsight(rows: Sequence[Played]) -> list[Played]:
    """Returns a row of the fastest of the hand-designed schedules for every layer."""
    names = {schedule.name for schedule in designed_by_hand()}
    best: dict[tuple[str, int], Played] = {}
    for row in rows:
        key = row.workload, row.renaming
        if row.policy in names and (key not in best or row.makespan_us < best[key].makespan_us):
            best[key] = row
    return [replace(row, policy=VIRTUAL_BEST) for row in best.values()]


def summarise(rows: list[Played], tokens_of: dict[str, int], seed: int) -> Report:
    """Returns the report of rows; ``tokens_of`` says how many tokens per GPU a workload has."""
    ours = (NAME, UNSEARCHED, BY_RULE, BY_NETWORK, VIRTUAL_BEST)
    policies = list(dict.fromkeys(row.policy for row in rows))
    # Who cannot run all layers is compared on none: a mean over others would not be comparable.
    policies = [policy for policy in policies if {row.workload for row in rows if row.policy == policy} == {*tokens_of}]
    shipped = [policy for policy in policies if policy not in ours]
    counts = list(dict.fromkeys(tokens_of.values()))

    def ratios(policy: str, against: str, tokens: int | None = None) -> np.ndarray:
        chosen = [row for row in rows if tokens in (None, tokens_of[row.workload])]
        return log_ratios(chosen, policy, against)[1].mean(axis=0, keepdims=True)

    def best(tokens: int | None) -> str:
        return min(shipped, key=lambda policy: float(ratios(policy, NAME, tokens).mean()))

    best_shipped, best_of_tokens = best(None), {tokens: best(tokens) for tokens in counts}
    lines = []
    for tokens in (*counts, None):
        for policy in policies:
            times = [
                row.makespan_us for row in rows if row.policy == policy and tokens in (None, tokens_of[row.workload])
            ]
            ratio = geometric_mean(ratios(policy, best_shipped, tokens), seed)
            lines.append(Line(policy, tokens, float(np.exp(np.log(times).mean())), ratio))
    each = np.concatenate([ratios(NAME, best_of_tokens[tokens], tokens) for tokens in counts], axis=1)
    return Report(
        rows,
        best_shipped,
        best_of_tokens,
        lines,
        geometric_mean(ratios(NAME, best_shipped), seed),
        geometric_mean(each, seed),
        geometric_mean(ratios(NAME, VIRTUAL_BEST), seed),
        geometric_mean(ratios(NAME, UNSEARCHED), seed),
    )


def verdict(report: Report) -> str:
    """Returns in a sentence what was gained."""
    ratio, over = report.tuned, f"the best shipped schedule, {report.best_shipped}"
    interval = f"95 %: {ratio.low:.3f} to {ratio.high:.3f}"
    if ratio.high >= 1:
        return f"Nothing was surely gained: the tuned plans take {ratio.value:.3f} of the time of {over} ({interval})."
    by = "3 % or more" if ratio.value <= 1 - _LEVEL else "less than 3 %"
    return f"The tuned plans take {ratio.value:.3f} of the time of {over} ({interval}): {by} faster."


def title(spec: TuneSpec) -> str:
    """Returns what was tuned for."""
    return f"{spec.model} on {spec.system}, hardware {spec.hardware}"


def texts(spec: TuneSpec, report: Report, searched: str) -> tuple[str, str, str]:
    """Returns what was done, what was gained over the best shipped schedule, and over what else."""
    return (
        f"Routing {spec.routing}; {searched}. Test: {spec.test} layers of each number of tokens per GPU, of the test"
        f" split or of other seeds, each the geometric mean over {spec.renamings} numberings of the GPUs.",
        verdict(report),
        f"Over the best shipped schedule of each number of tokens: {_shown(report.tuned_over_each)}. Over the fastest"
        f" hand-designed one of each layer, in hindsight: {_shown(report.tuned_over_hindsight)}. Over the shipped"
        " schedules and plans that validation chooses for each number of tokens without a search:"
        f" {_shown(report.tuned_over_unsearched)}.",
    )


def grids(spec: TuneSpec, tuned: Tuned, report: Report) -> list[Grid]:
    """Returns the plan of each number of tokens, and everybody on all layers and on those of each number of tokens."""
    plans = []
    for tokens, name in report.best_of_tokens.items():
        shown = np.log([_mean(report, NAME, tokens), _mean(report, name, tokens)])
        plans.append((str(tokens), tuned.of_tokens(tokens).name, name, f"{np.exp(shown[0] - shown[1]):.3f}"))
    found = [Grid("", ("tokens", "plan", "best shipped", "tuned / it"), plans, (True, False, False, True))]
    columns = ("schedule", "µs", f"/ {report.best_shipped}", "95 %")
    for part in (None, *spec.tokens):
        rows = [
            (line.policy, f"{line.mean_us:.1f}", f"{line.ratio.value:.3f}", _interval(line.ratio))
            for line in lines_of(report, part)
        ]
        name = "All" if part is None else f"{part} tokens per GPU"
        found.append(Grid(name, columns, rows, (False, True, True, True)))
    return found


def lines_of(report: Report, tokens: int | None) -> list[Line]:
    """Returns everybody on layers of a number of tokens, or on all, fastest first."""
    return sorted((line for line in report.lines if line.tokens == tokens), key=lambda line: line.ratio.value)


def rule_text(tuned: Tuned) -> str:
    """Returns the rule that chooses among the plans; nothing if there is none."""
    if not tuned.rule:
        return ""
    weights = ", ".join(f"{name} {weight:g}" for name, weight in tuned.rule.items())
    return f"Of the plans that with the highest sum is taken: {weights}."


def markdown(spec: TuneSpec, tuned: Tuned, report: Report, searched: str) -> str:
    """Returns report.md."""
    blocks = [f"# {title(spec)}", *texts(spec, report, searched)]
    for grid in grids(spec, tuned, report):
        if grid.title:
            blocks.append(f"## {grid.title}")
        lines = [grid.columns, ["---"] * len(grid.columns), *grid.rows]
        blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    if rule := rule_text(tuned):
        blocks += ["## Rule", rule]
    return "\n\n".join(blocks) + "\n"


def _mean(report: Report, policy: str, tokens: int) -> float:
    return next(line.mean_us for line in report.lines if (line.policy, line.tokens) == (policy, tokens))


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} (95 %: {_interval(estimate)})"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.low:.3f} to {estimate.high:.3f}"
