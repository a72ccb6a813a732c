"""README and the guide say what the code does: their tables are the code's own, links lead somewhere.

``python -m tests.test_readme`` writes anew the tables of the page on the environment, and the README's on regimes,
which takes a minute.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import gymnasium

from dysharp_env.envs.spec import EnvSpec
from dysharp_env.envs.token_schedule import TokenScheduleEnv, markdown_table
from dysharp_env.schedules import Problem, load_schedule
from dysharp_env.schedules.ideal import RESOURCES, binding, resource_runs
from dysharp_env.simulator.state.observation import CANDIDATE_MEANINGS, CONTEXT_MEANINGS, FEATURE_MEANINGS
from dysharp_env.workload import ScenarioSpec

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENVIRONMENT = ROOT / "dysharp_env" / "docs" / "environment.md"

REGIME_COLUMNS = ("tokens per GPU", "schedule", "makespan, us", *RESOURCES, "binds")
REGIME_TOKENS = (64, 512, 4096, 8192)
REGIME_SCHEDULES = ("deepep", "mega-moe", "dysharp")


def regimes(token_counts: Iterable[int]) -> list[str]:
    """Returns lines of the README's table on what binds DeepSeek-V3 on 8 H200."""
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


def with_regimes(text: str) -> str:
    """Returns the README with its table on regimes written anew."""
    head = f"| {' | '.join(REGIME_COLUMNS)} |\n|{'---|' * len(REGIME_COLUMNS)}\n"
    table = head + "".join(f"{line}\n" for line in regimes(REGIME_TOKENS))
    text, count = re.subn(rf"{re.escape(head)}(\|.*\n)+", lambda _: table, text)
    assert count == 1
    return text


def settings_table() -> str:
    """Returns the settings that environments have besides those of a scenario, with their defaults, as Markdown."""
    own = {name: field for name, field in EnvSpec.model_fields.items() if name not in ScenarioSpec.model_fields}
    lines = [
        f"| `{name}` | `{field.default!r}` | {str(field.description).replace('``', '`').replace(chr(10), ' ')} |"
        for name, field in own.items()
    ]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *lines])


def tables() -> list[str]:
    """Returns the tables that the page on the environment holds, as they should be."""
    return [
        markdown_table(("kind", "the candidates are"), CANDIDATE_MEANINGS, indexed=True),
        markdown_table(("column", "meaning"), FEATURE_MEANINGS, indexed=True),
        markdown_table(("index", "meaning"), CONTEXT_MEANINGS, indexed=True),
        settings_table(),
    ]


def with_tables(text: str) -> str:
    """Returns the page with its tables written anew: each is told by its first line."""
    for table in tables():
        head = re.escape(table.partition("\n")[0])
        text, count = re.subn(rf"^{head}\n(\|.*\n)+", lambda _, table=table: table + "\n", text, flags=re.MULTILINE)
        assert count == 1, head
    return text


def test_tables_are_the_environment_s() -> None:
    page = ENVIRONMENT.read_text(encoding="utf-8")
    assert with_tables(page) == page


def test_the_page_names_every_key_of_an_info_and_every_id() -> None:
    page = ENVIRONMENT.read_text(encoding="utf-8")
    _, info = TokenScheduleEnv(model="small", gpus=2, tokens=8, routing="uniform").reset(seed=0)
    ids = [name for name in gymnasium.registry if name.startswith("DySHARP/")]
    assert len(ids) == 2
    for name in (*info, *ids, *EnvSpec.model_fields["exposed"].default):
        assert f"`{name}`" in page, name


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_regimes_are_those_that_explain_finds() -> None:
    assert all(f"{line}\n" in README for line in regimes(REGIME_TOKENS[:1]))


if __name__ == "__main__":
    ENVIRONMENT.write_text(with_tables(ENVIRONMENT.read_text(encoding="utf-8")), encoding="utf-8")
    (ROOT / "README.md").write_text(with_regimes(README), encoding="utf-8")
