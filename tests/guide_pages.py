"""Pages of the guide taken apart: their fenced blocks, the commands in them, and the cheap stand-ins that tests run.

A comment on the line above a block says what is done with it: ``<!-- test: slow -->`` (its commands are only parsed),
``<!-- test: skip, REASON -->`` (nothing), ``<!-- test: file NAME -->`` (it is written to that file).
"""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_BLOCK = re.compile(
    r"(?:^<!-- test: (?P<mark>\w+)(?:,? (?P<what>[^>]*?))? -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
MARKS = ("", "slow", "skip", "file")
# What is asked of a command in a test, in place of what the page asks: a pattern, and what it becomes.
CHEAP = (
    (r"--minutes [\d.]+", "--minutes 0.01"),
    (r"(agents[. ]tune .*)", r"\1 --gpus 2 --train 1 --validation 1 --test 1 --quiet"),
    (r"(agents[. ]tune .*)--tokens [\d,]+", r"\1--tokens 8"),
    (r"(agents[. ]train .*)--config \w+", r"\1--config smoke --quiet"),
    (r"(agents[. ]train .*?)( --set total_decisions=\d+)?$", r"\1 --set total_decisions=512"),
    (r"(agents[. ]search .*)--episodes \d+", r"\1--episodes 24 --batch 2 --quiet"),
    (r"(agents[. ]evaluate .*)--suite [\w:-]+(.*)", r"\1--suite smoke\2 --renamings 1"),
    (r"(trace generate .*)--tokens \d+", r"\1--tokens 2048"),
    (r"(dysharp_env (?:simulate|compare|explain) .*)--tokens (?:512|1024|2048|4096|8192)\b", r"\1--tokens 64"),
    (r"--system gh200-nvl32", "--system gh200-nvl32 --gpus 8"),
)
SHELL = {"cat", "cp", "gcc", "grep", "head", "ls", "mkdir", "mv", "sed", "unzip"}
"""What a shell runs, by the first word of a command."""
UNTESTED = {"tensorboard": "serves until it is ended", "source": "of the shell itself", "ray": "starts a cluster"}
"""What means something in a page and nothing to a test, likewise."""


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, what it is written in, how it is marked, and its text."""

    line: int
    language: str
    mark: str
    what: str
    text: str


def blocks(page: str) -> list[Block]:
    """Returns the blocks of a page's Markdown."""
    found = []
    for match in _BLOCK.finditer(page):
        line = page.count("\n", 0, match.start("text"))
        mark, what = match["mark"] or "", match["what"] or ""
        assert mark in MARKS, f"line {line}: '{mark}' is no mark; choose from {MARKS}"
        found.append(Block(line, match["language"], mark, what, match["text"]))
    return found


def commands(text: str) -> Iterator[str]:
    """Yields the commands of a bash block: continued lines joined, comments and empty lines left out."""
    lines = iter(text.replace("\\\n", " ").splitlines())
    for line in lines:
        if here := re.search(r"<<\s*'?(\w+)'?", line):  # what follows up to the word belongs to the command
            body = [line]
            for more in lines:
                body.append(more)
                if more == here[1]:
                    break
            yield "\n".join(body)
        elif plain := re.sub(r"(^|\s+)#.*$", "", line).strip():
            yield " ".join(plain.split())


def cheap(command: str) -> str:
    """Returns the stand-in of a command."""
    for pattern, instead in CHEAP:
        command = re.sub(pattern, instead, command)
    return command


def argv_of(command: str) -> tuple[str, list[str]] | None:
    """Returns the package and arguments of a command of this project; None if it is none.

    Of a pipe, only the first command counts, and what output is written to is left out.
    """
    words = shlex.split(command)
    end = next((place for place, word in enumerate(words) if word in ("|", ">", ">>", "2>")), len(words))
    words = words[:end]
    if words[:2] in (["python", "-m"], [".venv/bin/python", "-m"]):
        package, *rest = words[2].split(".")
        if package in ("dysharp_env", "agents", "dysharp_agents"):
            return "dysharp_env" if package == "dysharp_env" else "agents", [*rest, *words[3:]]
    if words[0] in ("dysharp", "dysharp-agents"):
        return {"dysharp": "dysharp_env", "dysharp-agents": "agents"}[words[0]], words[1:]
    return None


def _responses(path: Path) -> None:
    """Writes what a vLLM server answers with ``--enable-return-routed-experts``: Qwen3-30B, 640 tokens."""
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((640, 4, 128)), axis=2)[:, :, :8].repeat(12, axis=1).astype(np.uint8)
    held = io.BytesIO()
    np.save(held, ids)
    choice = {"index": 0, "text": "", "routed_experts": base64.b64encode(held.getvalue()).decode()}
    path.write_text(json.dumps({"object": "text_completion", "model": "Qwen3-30B-A3B", "choices": [choice]}))


# Files that readers of a page bring along, by name: what writes one like theirs.
BROUGHT: dict[str, Callable[[Path], None]] = {"responses.json": _responses}
