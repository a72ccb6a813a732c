"""``python -m dysharp_env trace``: inspect, import, record, generate and convert routing traces; place experts."""

from __future__ import annotations

import argparse

from dysharp_env.commands.trace import importing, info, making, placing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions ``info``, ``import``, ``place``, ``record``, ``generate`` and ``convert`` with their options."""
    names = "{info,import,place,record,generate,convert}"
    actions = parser.add_subparsers(dest="action", required=True, metavar=names)
    info.add_action(actions)
    importing.add_action(actions)
    placing.add_action(actions)
    making.add_actions(actions)


def run(args: argparse.Namespace) -> int:
    """Runs the action that ``args`` name and returns the exit status.

    Raises:
        ConfigError: An option or a file is wrong.
    """
    args.act(args)
    return 0
