"""``python -m dysharp_env new``: a commented file to edit: a system, model, suite or schedule of one's own."""

from __future__ import annotations

import argparse
import os
import re
from typing import Any, NamedTuple

from dysharp_env.commands.output import check_targets, results_console, say
from dysharp_env.config import ConfigError, Spec, find_config, read_yaml
from dysharp_env.files import write_text
from dysharp_env.report.keys import template
from dysharp_env.schedules import ScheduleSpec, load_schedule, preset_of
from dysharp_env.system import SystemSpec, load_system
from dysharp_env.workload.layer import LayerSpec, load_model
from dysharp_env.workload.suite import SuiteSpec, load_suite


class _Kind(NamedTuple):
    """What a file may be of.

    Attributes:
        folder: Of its presets.
        spec: What reads it.
        base: The preset that values are of unless another is named.
        load: Reads a file, as commands do.
        use: A command line that takes it.
        preset_keys: Keys of presets that are theirs alone.
    """

    folder: str
    spec: type[Spec]
    base: str
    load: Any
    use: str
    preset_keys: tuple[str, ...] = ()


KINDS = {
    "system": _Kind("systems", SystemSpec, "dgx-h200", load_system, "dysharp_env compare --system"),
    "model": _Kind("models", LayerSpec, "deepseek-v3", load_model, "dysharp_env compare --model", ("source",)),
    "suite": _Kind("suites", SuiteSpec, "smoke", load_suite, "agents.evaluate --policy dysharp --suite"),
    "schedule": _Kind(
        *("schedules", ScheduleSpec, "dysharp", load_schedule),
        *("dysharp_env compare --schedule dysharp --schedule", ("aliases", "found_by")),
    ),
}
_NAME = re.compile(r"[\w.-]+")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to ``parser``."""
    parser.add_argument("kind", choices=list(KINDS), metavar=f"{{{','.join(KINDS)}}}", help="what it is")
    parser.add_argument("name", metavar="NAME", help="what results call it")
    bases = ", ".join(f"{kind.base} for a {name}" for name, kind in KINDS.items())
    text = f"a preset or .yaml whose values it begins with (default: {bases})"
    parser.add_argument("--from", dest="base", metavar="PRESET", help=text)
    parser.add_argument("--out", metavar="FILE.yaml", help="the file to write (default: NAME.yaml)")
    parser.add_argument("--force", action="store_true", help="write it even if there is such a file")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit status.

    Raises:
        ConfigError: A name is wrong or unknown, or the file exists.
    """
    kind = KINDS[args.kind]
    if not _NAME.fullmatch(args.name):
        raise ConfigError(f"name='{args.name}' must be letters, digits, '-', '_' and '.'")
    target = args.out or f"{args.name}.yaml"
    check_targets(("out", target, (".yaml", ".yml")), args=argparse.Namespace(base=args.base))
    if os.path.exists(target) and not args.force:
        raise ConfigError(f"out='{target}' exists; name another file, or --force")
    base = args.base or kind.base
    kind.load(base)  # says what is wrong with it
    values = read_yaml(find_config(kind.folder, preset_of(base) if args.kind == "schedule" else base))
    values = {key: value for key, value in values.items() if key not in kind.preset_keys}
    values |= {"name": args.name}
    if "description" in kind.spec.model_fields:
        values["description"] = f"As {base}, to be edited."
    head = f"# A {args.kind} of your own, with the values of {base}. Keys behind a # have the value that they show.\n\n"
    write_text(target, f"{head}{template(kind.spec, values)}\n")
    kind.load(target)
    say(results_console(), f"wrote {target}: edit it, then python -m {kind.use} {target}")
    return 0
