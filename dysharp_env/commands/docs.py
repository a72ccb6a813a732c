"""``python -m dysharp_env docs``: the user guide, page by page, in the terminal.

Pages are the Markdown files of ``dysharp_env/docs``. Their order and what each is about stand once, as the list of the
index; ``make docs`` builds a site of the same files.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from dysharp_env.config import ConfigError, did_you_mean

FOLDER = Path(__file__).resolve().parents[1] / "docs"
INDEX = "index"
_LISTED = re.compile(r"^- \[(?P<title>[^]]+)\]\((?P<name>[\w-]+)\.md\): (?P<about>.+)$", re.MULTILINE)
_COMMENT = re.compile(r"^<!--.*?-->\n", re.MULTILINE | re.DOTALL)
_WIDEST = 120


@dataclass(frozen=True)
class Page:
    """A page of the guide: the name it is asked for by, its title, and what it is about in a line."""

    name: str
    title: str
    about: str

    @property
    def text(self) -> str:
        """The page's Markdown, without the comments that only tests read."""
        return _COMMENT.sub("", (FOLDER / f"{self.name}.md").read_text(encoding="utf-8"))


def pages() -> dict[str, Page]:
    """Returns the pages by name: the index, then those of its list in its order, as far as they are there."""
    index = Page(INDEX, "The guide", "who it is for, and where to go")
    listed = [Page(**match.groupdict()) for match in _LISTED.finditer(index.text)]
    return {page.name: page for page in (index, *listed) if (FOLDER / f"{page.name}.md").is_file()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the page and ``--list``."""
    text = "its name, as --list has it (default: %(default)s)"
    parser.add_argument("page", nargs="?", default=INDEX, metavar="PAGE", help=text)
    parser.add_argument("--list", action="store_true", help="only say which pages there are, a line each")


def run(args: argparse.Namespace) -> int:
    """Shows a page, or the list of them."""
    known = pages()
    if args.list:
        width = max(map(len, known))
        print("\n".join(f"{page.name:<{width}}  {page.about}" for page in known.values()))
        return 0
    name = args.page.removesuffix(".md")
    if name not in known:
        close = did_you_mean(name, known)
        raise ConfigError(f"page='{args.page}' is not a page of the guide{close}; choose from {', '.join(known)}")
    _show(known[name].text)
    return 0


def _show(text: str) -> None:
    """Prints Markdown: laid out and in a pager on a terminal, as it is to anything else."""
    console = Console(highlight=False)
    if not console.is_terminal:
        sys.stdout.write(text)
        return
    console.width = min(console.width, _WIDEST)
    os.environ.setdefault("LESS", "FRX")  # colours; no pager for what fits the screen; leave it on the screen
    with console.pager(styles=True, links=True):
        console.print(Markdown(text, hyperlinks=False, code_theme="ansi_dark"))
