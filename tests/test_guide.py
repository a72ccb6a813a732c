"""README and the guide say what the project does: their commands run, and their links lead somewhere.

``python -m tests.test_guide PAGE...`` runs all blocks of pages as they stand, slow ones too, each page in a new folder.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from glob import glob
from pathlib import Path

import pytest

import agents
from agents.__main__ import main as agents_main
from dysharp_env import __version__
from dysharp_env.__main__ import build_parser
from dysharp_env.__main__ import main as env_main
from dysharp_env.commands.docs import FOLDER, pages
from tests.guide_pages import BROUGHT, SHELL, UNTESTED, Block, argv_of, blocks, cheap, commands

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README": ROOT / "README.md", **{path.stem: path for path in sorted(FOLDER.glob("*.md"))}}
MOST_LINES_OF_README = 150


def text_of(name: str) -> str:
    return PAGES[name].read_text(encoding="utf-8")


def parse(command: str) -> None:
    """Parses a command of this project, so that all its options exist.

    Raises:
        ConfigError: One does not.
    """
    package, (name, *rest) = argv_of(command) or ("", [""])
    if package == "dysharp_env":
        build_parser().parse_args([name, *rest])
    elif package:
        module = importlib.import_module(f"agents.{name}.__main__" if name == "exact" else f"agents.{name}")
        module.build().parser.parse_args(rest)


def run_command(command: str) -> None:
    """Runs a command in the current folder; it must end well."""
    first = command.split()[0]
    if found := argv_of(command):
        # As a shell would, which leaves what matches nothing as it is.
        words = [each for word in found[1] for each in (sorted(glob(word)) or [word] if "*" in word else [word])]
        status = {"dysharp_env": env_main, "agents": agents_main}[found[0]](words)
        assert status == 0, command
    elif first == "make":
        subprocess.run([*command.split(), "-n"], cwd=ROOT, check=True, capture_output=True)
    elif first in SHELL:
        subprocess.run(["bash", "-euc", command], check=True, capture_output=True)
    else:
        assert first in UNTESTED, f"no test knows how to run '{command}'"


def run_block(block: Block, page: str, namespace: dict[str, object], as_it_stands: bool) -> None:
    """Runs a block in the current folder, by cheap stand-ins unless as it stands."""
    if block.mark == "skip" or (block.mark == "slow" and not as_it_stands):
        return
    if block.mark == "file":
        Path(block.what).write_text(block.text, encoding="utf-8")
    elif block.language == "python":
        exec(compile(block.text, f"{page}.md, line {block.line}", "exec"), namespace)
    elif block.language == "bash":
        for command in commands(block.text):
            run_command(command if as_it_stands else cheap(command))


def furnish(folder: Path) -> None:
    """Puts into a folder what readers have: the presets and the shipped agent of a checkout, and files of their own."""
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "runs").mkdir()
    (folder / "runs" / "reference").symlink_to(ROOT / "runs" / "reference")
    for name, write in BROUGHT.items():
        write(folder / name)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A reader's folder, which is the current one, and from which Python imports, as ``python -m`` does."""
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "dysharp_agents", agents)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES)
def test_options_exist(page: str) -> None:
    for block in blocks(text_of(page)):
        if block.language == "bash" and block.mark in ("", "slow"):
            for command in commands(block.text):
                parse(command)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run(page: str, desk: Path) -> None:
    namespace: dict[str, object] = {"__name__": page}
    for block in blocks(text_of(page)):
        run_block(block, page, namespace, as_it_stands=False)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_lead_somewhere(page: str) -> None:
    here = PAGES[page].parent
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text_of(page)):
        if not target.startswith("http"):
            path = here / target
            assert path.exists(), target
            # Pages are installed without the rest of the checkout.
            assert page == "README" or path.resolve().is_relative_to(FOLDER), target


def test_the_index_lists_every_page_and_the_site_has_its_order() -> None:
    assert set(pages()) == PAGES.keys() - {"README"}
    site = tomllib.loads((ROOT / ".zensical.toml").read_text(encoding="utf-8"))["project"]
    titles = {name.removesuffix(".md"): title for entry in site["nav"] for title, name in entry.items()}
    assert [*titles.items()][0] == ("index", pages()["index"].title)
    listed = re.findall(r"^- \[(.+?)\]\(([\w-]+)\.md\): ", text_of("index"), re.MULTILINE)
    assert [*titles.items()][1:] == [(name, title) for title, name in listed]
    assert titles.keys() == pages().keys()


def test_the_readme_is_short_and_of_this_version() -> None:
    readme = text_of("README")
    assert len(readme.splitlines()) <= MOST_LINES_OF_README
    assert f"version = {{{__version__}}}" in readme


def test_a_page_begins_with_its_title() -> None:
    for page in PAGES:
        assert re.match(r"# \S", text_of(page)), page
        assert len(re.findall(r"^# ", re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S), re.M)) == 1, page


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("zensical")
    for path in (*FOLDER.rglob("*"), ROOT / ".zensical.toml"):
        if path.is_file():
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    build = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", ".zensical.toml"]
    ended = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    built = {path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / "build" / "docs").glob("*.html")}
    assert built.keys() >= pages().keys()
    fetched = re.compile(r"<(?:script|img|link|iframe)\b[^>]*(?:src|href)=\"?(?:https?:)?//")
    assert not [name for name, html in built.items() if fetched.search(html)]


if __name__ == "__main__":
    for asked in sys.argv[1:] or PAGES:
        with tempfile.TemporaryDirectory() as place:
            furnish(Path(place))
            os.chdir(place)
            sys.path.insert(0, place)
            sys.modules["dysharp_agents"] = agents
            names: dict[str, object] = {"__name__": asked}
            for each in blocks(text_of(asked)):
                run_block(each, asked, names, as_it_stands=True)
            os.chdir(ROOT)
