"""The guide in the terminal: which pages there are, what is shown of them, and what is said of others."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dysharp_env.__main__ import main
from dysharp_env.commands import docs
from dysharp_env.commands.docs import FOLDER, Page, pages

INDEX = """# Guide

- [First things](first.md): how to begin
- [More](more-of-it.md): all the rest
"""
FIRST = """# First *things*

<!-- test: slow -->
```bash
python -m dysharp_env list
```

See [more](more-of-it.md).
"""


@pytest.fixture
def small_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("index", INDEX), ("first", FIRST), ("more-of-it", "# More\n")):
        (tmp_path / f"{name}.md").write_text(text, encoding="utf-8")
    monkeypatch.setattr(docs, "FOLDER", tmp_path)


@pytest.mark.usefixtures("small_guide")
def test_pages_are_those_that_the_index_lists_in_its_order() -> None:
    assert [*pages()] == ["index", "first", "more-of-it"]
    assert pages()["first"] == Page("first", "First things", "how to begin")


@pytest.mark.usefixtures("small_guide")
def test_the_list_is_a_line_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docs", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "index       who it is for, and where to go",
        "first       how to begin",
        "more-of-it  all the rest",
    ]


@pytest.mark.usefixtures("small_guide")
@pytest.mark.parametrize("name", ["first", "first.md"])
def test_a_pipe_gets_the_markdown_without_what_only_tests_read(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docs", name]) == 0
    assert capsys.readouterr().out == FIRST.replace("<!-- test: slow -->\n", "")
    assert main(["docs"]) == 0
    assert capsys.readouterr().out == INDEX


@pytest.mark.usefixtures("small_guide")
def test_a_terminal_gets_it_laid_out(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("PAGER", "cat")
    assert main(["docs", "first"]) == 0
    out = capsys.readouterr().out
    assert "\x1b[" in out and "# First" not in out and "```" not in out
    assert "more-of-it.md" in out


@pytest.mark.usefixtures("small_guide")
def test_an_unknown_page_is_a_line_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docs", "frist"]) == 2
    said = (
        "error: page='frist' is not a page of the guide (did you mean 'first'?); choose from index, first, more-of-it\n"
    )
    assert capsys.readouterr().err == said


@pytest.mark.usefixtures("small_guide")
def test_a_listed_page_that_is_not_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    (docs.FOLDER / "more-of-it.md").unlink()
    assert [*pages()] == ["index", "first"]


def test_every_file_of_the_guide_is_package_data() -> None:
    settings = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    carried = {path for pattern in settings["package-data"]["dysharp_env"] for path in FOLDER.parent.glob(pattern)}
    assert {path for path in FOLDER.rglob("*") if path.is_file()} <= carried


def test_a_page_is_shown_where_letters_are_few() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "dysharp_env", "docs", "pictures"]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert b"\\xb5s" in done.stdout and done.stdout.isascii()
