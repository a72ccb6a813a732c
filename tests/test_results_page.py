"""The guide's table of what binds DeepSeek-V3 on 8 H200 is what ``explain`` finds.

``python -m tests.test_results_page`` writes it anew, which takes a minute.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from dysharp_env.commands.docs import FOLDER
from dysharp_env.schedules import Problem, load_schedule
from dysharp_env.schedules.ideal import RESOURCES, binding, resource_runs
from dysharp_env.workload import ScenarioSpec

PAGE = FOLDER / "results.md"
REGIME_COLUMNS = ("tokens per GPU", "schedule", "makespan, us", *RESOURCES, "binds")
REGIME_TOKENS = (64, 512, 4096, 8192)
REGIME_SCHEDULES = ("deepep", "mega-moe", "dysharp")


def regimes(token_counts: Iterable[int]) -> list[str]:
    """Returns lines of the table on what binds DeepSeek-V3 on 8 H200."""
    lines = []
    for tokens in token_counts:
        options = {"system": "dgx-h200", "model": "deepseek-v3", "tokens": tokens, "routing": "uniform"}
        scenario = ScenarioSpec(**options).build()
        problem = Problem.of(scenario.system, scenario.draw(0))
        for name in REGIME_SCHEDULES:
            schedule = load_schedule(name)
            makespan_ps, runs = problem.engine(schedule).run().now_ps, resource_runs(problem, schedule)
            saved = [f"{100 * (makespan_ps - run.makespan_ps) / makespan_ps:.0f}" for run in runs]
            cells = (f"{tokens}", f"`{name}`", f"{makespan_ps / 1e6:.0f}", *saved, binding(runs))
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def regime_table(token_counts: Iterable[int]) -> str:
    return "\n".join([f"| {' | '.join(REGIME_COLUMNS)} |", f"|{'---|' * len(REGIME_COLUMNS)}", *regimes(token_counts)])


def test_regimes_are_those_that_explain_finds() -> None:
    assert f"{regime_table(REGIME_TOKENS[:1])}\n| {REGIME_TOKENS[1]} |" in PAGE.read_text(encoding="utf-8")


if __name__ == "__main__":
    table = regime_table(REGIME_TOKENS)
    head = re.escape(table.partition("\n")[0])
    text, count = re.subn(rf"{head}\n(\|.*\n)+", lambda _: table + "\n", PAGE.read_text(encoding="utf-8"))
    assert count == 1
    PAGE.write_text(text, encoding="utf-8")
