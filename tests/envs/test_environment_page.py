"""The page on the environment says what the code does.

``python -m tests.envs.test_environment_page`` writes its tables anew.
"""

from __future__ import annotations

import re

import gymnasium

from dysharp_env.commands.docs import FOLDER
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.envs.token_schedule import TokenScheduleEnv, markdown_table
from dysharp_env.simulator.state.observation import CANDIDATE_MEANINGS, CONTEXT_MEANINGS, FEATURE_MEANINGS
from dysharp_env.workload import ScenarioSpec

ENVIRONMENT = FOLDER / "environment.md"


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


if __name__ == "__main__":
    ENVIRONMENT.write_text(with_tables(ENVIRONMENT.read_text(encoding="utf-8")), encoding="utf-8")
