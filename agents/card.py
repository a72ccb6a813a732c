"""``python -m agents.card``: a model card for the Hugging Face hub from a run folder, with what was measured.

It writes text and uploads nothing: put it beside the run's ``config.yaml`` and ``best`` as the repository's README.md.
"""

from __future__ import annotations

import argparse
import sys

from dysharp_env.files import write_text

from .kit import Command, check_options, entry
from .policies.card import run_path
from .training.hub_card import card_text
from .training.run_folder import RunFolder


def build() -> Command:
    """Returns the options of the command."""
    command = Command("card", __doc__, run)
    command.parser.add_argument("run_folder", metavar="RUN", help="a run folder with a best policy")
    text = "a result of python -m agents.evaluate --json in which the run is a policy; RUN/evaluation.json, which"
    text += " agents.demo writes, is read anyway; repeatable"
    command.add("--results", action="append", default=[], metavar="FILE.json", help=text)
    return command.add("--out", metavar="FILE.md", help="where the card is written (by default standard output)")


def run(args: argparse.Namespace) -> int:
    """Writes the card."""
    check_options(args, ("out", args.out, ".md"))
    text = card_text(RunFolder(run_path(args.run_folder)), args.results)
    if args.out is None:
        sys.stdout.write(text)
    else:
        write_text(args.out, text)
    return 0


main = entry(build, __name__)
