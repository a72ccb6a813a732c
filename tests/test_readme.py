"""The README says what the code does: its tables are the environment's own, its links lead somewhere.

``python -m tests.test_readme`` writes the tables anew.
"""

from __future__ import annotations

import re
from pathlib import Path

from dysharp_env.envs.token_schedule import markdown_table
from dysharp_env.simulator.state.observation import CANDIDATE_MEANINGS, CONTEXT_MEANINGS, FEATURE_MEANINGS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tables() -> list[str]:
    """Returns the tables that the README holds, as they should be."""
    return [
        markdown_table(("kind", "the candidates are"), CANDIDATE_MEANINGS),
        markdown_table(("column", "meaning"), FEATURE_MEANINGS, indexed=True),
        markdown_table(("index", "meaning"), CONTEXT_MEANINGS, indexed=True),
    ]


def with_tables(text: str) -> str:
    """Returns the README with its tables written anew: each is told by its first line."""
    for table in tables():
        head = re.escape(table.partition("\n")[0])
        text, count = re.subn(rf"^{head}\n(\|.*\n)+", lambda _, table=table: table + "\n", text, flags=re.MULTILINE)
        assert count == 1, head
    return text


def test_tables_are_the_environment_s() -> None:
    assert with_tables(README) == README


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


if __name__ == "__main__":
    (ROOT / "README.md").write_text(with_tables(README), encoding="utf-8")
