"""Where results go: JSON documents with a common head, checks of targets before a run, and the console."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from rich.console import Console

from dysharp_env import __version__
from dysharp_env.config import ConfigError
from dysharp_env.files import require_writable, write_text
from dysharp_env.files.writing import is_straight
from dysharp_env.report.records import TimedRun, totals_of

STANDARD_OUTPUT = "-"
PICTURES = (".png", ".svg", ".pdf")  # what pictures are written as
_PIPED_WIDTH = 160


def json_document(command: str, seed: int | None, config: dict[str, Any], **content: Any) -> dict[str, Any]:
    """Returns a command's JSON result: schema, version, seed and configuration, then its own content."""
    head = {"schema": f"dysharp/{command}/1", "version": __version__, "seed": seed, "config": config}
    return {**head, **content}


def command_words(args: argparse.Namespace) -> list[str]:
    """Returns the words of the command line that options were read from."""
    return ["python", "-m", "dysharp_env", *args.argv]


def check_targets(
    *targets: tuple[str, str | None, str | Sequence[str] | None], args: argparse.Namespace | None = None
) -> None:
    """Checks that files can be written, each to a place of its own, before anything long is started.

    Args:
        targets: The name of an option, the file it gives or None, and what the file's name must end in, one of several,
            or None. Standard output (``-``) can always be written where no ending is asked for.
        args: All options of the command: a file that another of them names is read, and so is not written.

    Raises:
        ConfigError: A folder is missing or not writable, a target is a folder, its name ends in something else, or two
            options name one file.
    """
    option_of: dict[Path, str] = {}
    read = _files_read(args, {option for option, _, _ in targets})
    for option, target, suffix in targets:
        if target is None or (target == STANDARD_OUTPUT and suffix is None):
            continue
        path = Path(target)
        suffixes = (suffix,) if isinstance(suffix, str) else suffix
        if suffixes is not None and path.suffix not in suffixes:
            raise ConfigError(f"{option}='{target}' must end in {' or '.join(suffixes)}")
        require_writable(option, target)
        if is_straight(target):
            continue  # a device takes what two options write
        real = Path(os.path.realpath(target))
        if reader := read.get(real):
            raise ConfigError(f"{option}='{target}' is the file that {reader} is read from; name another")
        earlier = option_of.setdefault(real, option)
        if earlier != option:
            raise ConfigError(f"{option}='{target}' is the file that {earlier} is written to; name two")


def _files_read(args: argparse.Namespace | None, written: Set[str]) -> dict[Path, str]:
    """Returns the files that options name which are not written, and which option does; FILE:NAME is of FILE."""
    found: dict[Path, str] = {}
    # The whole command line, which some keep for their records, names what is written too.
    for option, value in vars(args).items() if args else ():
        named = value if isinstance(value, list) else [value]
        for text in (each for each in named if isinstance(each, str) and option not in {*written, "argv"}):
            for path in (text, text.rpartition(":")[0] or text):
                if os.path.isfile(path):
                    found[Path(os.path.realpath(path))] = option
    return found


def check_folder(option: str, folder: str | None) -> None:
    """Checks that files can be written to a folder, which is made if only it is missing; None is no folder.

    Raises:
        ConfigError: They cannot.
    """
    if folder is None:
        return
    try:
        Path(folder).mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write {option}='{folder}': {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"cannot write {option}='{folder}': the folder is not writable")


def write_json(target: str, document: dict[str, Any]) -> None:
    """Writes a JSON document to a file, or to standard output if the target is ``-``.

    Raises:
        ConfigError: The file cannot be written.
    """
    # Not-a-number is no JSON: a result that holds one is a mistake of ours, so fail rather than write it.
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    if target == STANDARD_OUTPUT:
        sys.stdout.write(text)
    else:
        write_text(target, text)


def publish(target: str | None, command: str, seed: int | None, config: dict[str, Any], **content: Any) -> bool:
    """Writes a command's JSON result where ``--json`` says; returns whether tables may be printed beside it.

    They may not where standard output holds the JSON.

    Raises:
        ConfigError: The file cannot be written.
    """
    if target is not None:
        write_json(target, json_document(command, seed, config, **content))
    return target != STANDARD_OUTPUT


def run_records(runs: Sequence[TimedRun]) -> dict[str, Any]:
    """Returns ``runs``, one of each layer and schedule, and ``totals``, one of each schedule, for a JSON result."""
    return {"runs": [run.record() for run in runs], "totals": [total.record() for total in totals_of(runs)]}


def results_console() -> Console:
    """Returns the console for tables: as wide as the terminal, or wide enough for every table where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=_PIPED_WIDTH)


def say(console: Console, line: str, style: str | None = None) -> None:
    """Prints a line as it is: not read as markup, no numbers coloured, not broken at the edge of the terminal."""
    console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
