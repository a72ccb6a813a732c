"""Where a layer's time goes: what it would gain if something were ideal, and its critical path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from dysharp_env.report.path import critical_path
from dysharp_env.report.steps import Step
from dysharp_env.report.tables import add_groups, empty_table
from dysharp_env.schedules import LayerRun, Problem
from dysharp_env.schedules.ideal import ALL, IDEALISATIONS, IdealRun, binding, ideal_runs
from dysharp_env.schedules.opponent import Contender

_MEANINGS = {each.name: each.meaning for each in IDEALISATIONS}


@dataclass(frozen=True)
class Explanation:
    """One layer under one schedule, explained.

    Attributes:
        schedule: Name of the schedule.
        run: The finished layer; its engine kept a log.
        ideal: The layer where something is ideal, as ``ideal_runs`` has it.
        path: The critical path, from the start to the end.
    """

    schedule: str
    run: LayerRun
    ideal: Sequence[IdealRun]
    path: Sequence[Step]

    @property
    def makespan_ps(self) -> int:
        """What is explained."""
        return self.run.engine.now_ps

    @property
    def binds(self) -> str:
        """The resource that the layer would gain most from if it were ideal."""
        return binding(self.ideal)

    def saved_pct(self, ideal: IdealRun) -> float:
        """Returns what is saved where something is ideal, as a percentage of the makespan."""
        return 100 * (self.makespan_ps - ideal.makespan_ps) / self.makespan_ps

    def record(self) -> dict[str, Any]:
        """Returns the explanation as one item of ``runs`` in a JSON result."""
        return {
            "schedule": self.schedule,
            "variant": self.run.variant,
            "makespan_us": self.makespan_ps / 1e6,
            "lower_bound_us": self.run.lower_bound_ps / 1e6,
            "binds": self.binds,
            "idealised": [
                {
                    "what": ideal.what,
                    "makespan_us": ideal.makespan_ps / 1e6,
                    "saved_us": (self.makespan_ps - ideal.makespan_ps) / 1e6,
                    "saved_pct": self.saved_pct(ideal),
                }
                for ideal in self.ideal
            ],
            "path": [step.record() for step in self.path],
        }


def explain(problem: Problem, contender: Contender) -> Explanation:
    """Returns where the time of a problem goes under a schedule, of several variants the fastest, or under an agent.

    Where something is ideal an agent plays anew, as a schedule's rule does.

    Raises:
        ConfigError: The schedule beneath does not fit the system.
    """
    opponent = contender.first.on(problem)
    run = opponent.run(problem, logging=True)
    path = critical_path(run)
    return Explanation(contender.name, run, ideal_runs(problem, opponent), path)


def ideal_name(ideal: IdealRun) -> str:
    """Returns what people call that which is ideal, where its resource is not beside it."""
    return f"{ideal.what}, together" if ideal.is_group and ideal.what in ("links", "memory", "software") else ideal.what


def ideal_table(explanation: Explanation) -> Table:
    """Returns what each thing would save if it were ideal, in groups by resource."""
    columns = ("makespan us", "saved us", "saved %")
    table = empty_table("If it were ideal", ("resource", "what", "means"), columns)
    rows = []
    for ideal in explanation.ideal:
        name, meaning = ideal.what, _MEANINGS.get(ideal.what, "")
        if ideal.is_group:
            name, meaning = ("all of it", "") if ideal.what == ALL else ("together", "")
            members = [each for each in IDEALISATIONS if each.resource == ideal.resource]
            if len(members) == 1:
                name, meaning = members[0].name, members[0].meaning
        style = "bold" if ideal.what == explanation.binds else ""
        saved_us = (explanation.makespan_ps - ideal.makespan_ps) / 1e6
        cells = (
            name,
            meaning,
            f"{ideal.makespan_ps / 1e6:.1f}",
            f"{saved_us:.1f}",
            f"{explanation.saved_pct(ideal):.1f}",
        )
        rows.append((ideal.resource, [f"[{style}]{escape(cell)}[/]" if style else escape(cell) for cell in cells]))
    add_groups(table, rows)
    return table


def path_table(explanation: Explanation) -> Table:
    """Returns the critical path, one line a step."""
    table = empty_table("Critical path of the last token home", ("what", "waited for"), ("from us", "to us", "us", "%"))
    for step in explanation.path:
        took_ps = step.end_ps - step.start_ps
        table.add_row(
            *(escape(step.what), escape(step.waited_for)),
            *(f"{step.start_ps / 1e6:.2f}", f"{step.end_ps / 1e6:.2f}", f"{took_ps / 1e6:.2f}"),
            f"{100 * took_ps / explanation.makespan_ps:.1f}",
        )
    return table
