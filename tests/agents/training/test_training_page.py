"""The guide's page on training holds every curve and every setting, as the code has them.

``python -m tests.agents.training.test_training_page`` writes its tables anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from agents.training import curves, settings
from agents.training.spec import TrainSpec
from dysharp_env.config import flat_keys

PAGE = Path(__file__).parents[3] / "dysharp_env" / "docs" / "training.md"
TABLES: dict[str, Callable[[], str]] = {"curves": curves.markdown, "settings": settings.markdown}


def with_tables(text: str) -> str:
    """Returns the page with its tables written anew, each below the comment that names it."""
    for name, table in TABLES.items():
        head = rf"(<!-- {name}: [^\n]* -->\n)(\n?\|[^\n]*\n)*"
        text, count = re.subn(head, lambda found, table=table: f"{found[1]}\n{table()}\n", text)
        assert count == 1, name
    return text


def test_tables_are_those_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert with_tables(text) == text


def test_every_setting_is_there_and_says_what_it_is() -> None:
    told = [*settings.settings_of()]
    assert {*flat_keys(TrainSpec)} <= {each.key for each in told}
    assert all(each.meaning for each in told)
    by_key = {each.key: each for each in told}
    assert by_key["ppo.n_steps"].default == "256" and by_key["env.exposed"].default == "[dispatch, gemm, combine]"
    assert by_key["evolution"].default == "null" and by_key["evolution.pairs"].default == "10"


def test_every_trainer_shares_names_for_what_means_the_same() -> None:
    shared = {curve.name for curve in curves.CURVES if curve.of == curves.TRAINERS}
    assert {
        "eval/ratio_to_bound",
        "eval/schedule",
        "rollout/ratio_to_reference",
        "train/loss",
        "opponents/NAME",
    } <= shared
    names = [curve.name for curve in curves.CURVES]
    assert len(names) == len({*names})
    assert curves.find("kinds/gemm_share") and not curves.find("kinds/gemm_shares")


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
