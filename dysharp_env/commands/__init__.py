"""Command lines: what every command shares in parsing, reporting mistakes and ending.

A command is a module with ``add_arguments(parser)`` and ``run(args) -> int``. ``run_main`` is the one place where a
mistake of the user becomes a line on standard error and exit status 2; the scripts of ``agents`` end through it too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from dysharp_env.config import ConfigError, Notice, did_you_mean, how_to_install
from dysharp_env.files import shown

MISTAKE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
PIPE_CLOSED = 141  # 128 + SIGPIPE
# Which extra brings a library that a command may need and that the environment itself does without.
_EXTRA_OF = {
    "matplotlib": "report",
    "jinja2": "report",
    "perfetto": "report",
    "google": "report",  # protobuf, which perfetto brings
    "torch": "agents",
    "stable_baselines3": "agents",
    "sb3_contrib": "agents",
    "tensorboard": "agents",
    "safetensors": "formats",
    "pyarrow": "formats",
    "gguf": "formats",
    "cma": "agents",
    "ray": "dist",
    "tree": "examples",  # of dm-tree, the first library that ray.rllib misses where ray alone is installed
    "torchrl": "examples",
    "tensordict": "examples",
    "ortools": "exact",
}


_INVALID_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)")


class CommandParser(argparse.ArgumentParser):
    """An argument parser that reports mistakes as ``ConfigError`` and accepts no abbreviated options.

    What is unknown is told with the nearest that is known, before what is missing.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Raises the message together with where help is found.

        Raises:
            ConfigError: Always.
        """
        if found := _INVALID_CHOICE.search(message):
            message += did_you_mean(found[1], re.findall(r"[^\s',]+", found[2]))
        raise ConfigError(f"{message}; see '{self.prog} --help'")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Returns what was given; nothing may be left over.

        Raises:
            ConfigError: An option is unknown, or an argument is one too many.
        """
        given = sys.argv[1:] if args is None else list(args)
        options = [name for name in self._option_string_actions if name.startswith("--")]
        # A command's own options come behind its name, and are read by its own parser.
        own = [] if self._subparsers else given[: given.index("--")] if "--" in given else given
        names = [each.partition("=")[0] for each in own if each.startswith("--") and " " not in each]
        if unknown := [f"{name}{did_you_mean(name, options)}" for name in names if name not in options]:
            self.error(f"unknown option{'s' * (len(unknown) > 1)} {', '.join(unknown)}")
        found, extras = super().parse_known_args(given, namespace)
        if extras:
            name = extras[0]
            self.error(f"unknown option {name}" if name.startswith("-") else f"'{name}' is one argument too many")
        return found, extras


def run_main(build_parser: Callable[[], argparse.ArgumentParser], argv: Sequence[str] | None = None) -> int:
    """Parses ``argv``, runs ``args.run(args)`` and returns the exit status.

    Args:
        build_parser: Makes the parser; it must set ``run`` as a default.
        argv: Arguments without the program's name; None takes them from the command line.
    """
    # Pictures go to files: a notebook's backend, handed down to what it starts, may not even exist here.
    os.environ["MPLBACKEND"] = "Agg"
    for stream in (sys.stdout, sys.stderr):
        # Where a terminal cannot show a letter, its number will do.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        args = build_parser().parse_args(argv)
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            status: int = args.run(args)
        sys.stdout.flush()
        return status
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except ModuleNotFoundError as error:
        library = str(error.name).partition(".")[0]
        if library not in _EXTRA_OF:
            raise
        hint = how_to_install(library.replace("_", "-"), _EXTRA_OF[library])
        text = f"this needs {library}, which is not installed: {hint}"
        print(f"error: {text}", file=sys.stderr)
        return MISTAKE
    except MemoryError:
        print("error: not enough memory for a layer of this size; use fewer --tokens or --gpus", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # What is still buffered would fail again when the interpreter ends.
        _silence_stdout()
        return PIPE_CLOSED
    except OSError as error:
        _silence_stdout()
        what = "write the results" if error.filename is None else f"use '{shown(os.fsdecode(error.filename))}'"
        print(f"error: cannot {what}: {error.strerror or error}", file=sys.stderr)
        return MISTAKE


def _show_warning(
    shown_otherwise: Callable[..., None], message: Warning | str, category: type[Warning], *where: Any, **more: Any
) -> None:
    """Prints a notice as a line; other warnings as they were."""
    if issubclass(category, Notice):
        print(f"note: {message}", file=sys.stderr)
    else:
        shown_otherwise(message, category, *where, **more)


def _silence_stdout() -> None:
    with contextlib.suppress(io.UnsupportedOperation):  # of what stands for it where a command is called as a function
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
