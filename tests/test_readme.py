"""The README says what the code does: its tables are the environment's own, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

from dysharp_env.envs.token_schedule import markdown_table
from dysharp_env.simulator.state.observation import CANDIDATE_MEANINGS, CONTEXT_MEANINGS, FEATURE_MEANINGS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_the_environment_s():
    assert markdown_table(("kind", "the candidates are"), CANDIDATE_MEANINGS) in README
    assert markdown_table(("column", "meaning"), FEATURE_MEANINGS, indexed=True) in README
    assert markdown_table(("index", "meaning"), CONTEXT_MEANINGS, indexed=True) in README


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
