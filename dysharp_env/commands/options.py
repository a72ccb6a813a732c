"""Options that commands share, and what they stand for."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from dysharp_env.config import ConfigError, Spec, parse_spec, preset_names
from dysharp_env.schedules import schedule_names
from dysharp_env.schedules.contenders import CONTENDER_HELP, read_contenders
from dysharp_env.schedules.opponent import Contender
from dysharp_env.schedules.replication import PLANNERS, WEIGHTS
from dysharp_env.simulator.costs import RESOLUTIONS
from dysharp_env.workers import Processes, Workers
from dysharp_env.workers.cluster import Cluster
from dysharp_env.workload import Scenario, ScenarioSpec, Workload
from dysharp_env.workload.routing import routing_names

ENGINES = ("processes", "ray")
MOST_WORKERS_A_CORE, _MOST_ELSEWHERE = 4, 10_000
MOST_RENAMINGS = 100  # numberings of GPUs
MOST_MINUTES = 30 * 24 * 60.0  # that a command may be told to take


def add_spec_options(
    parser: argparse._ActionsContainer,
    spec: type[Spec],
    names: Mapping[str, Sequence[str]] = {},  # noqa: B006
) -> None:
    """Adds an option for every field of a spec: its type, its default, and its own description as the help.

    Args:
        parser: A parser or a group of one.
        spec: Every field must be a number or a string, from a ``Literal`` or not; None may stand beside it, and tuples
            of numbers beside a number.
        names: Names that a field takes, by field, where its type does not say them.
    """
    for name, field in spec.model_fields.items():
        types = {field.annotation, *get_args(field.annotation)}
        literals = [choice for each in types for choice in get_args(each) if isinstance(choice, str)]
        number = next((each for each in (int, float) if each in types), str)
        # A number that may also be several, or a word.
        is_open = number is not str and any(get_origin(each) is tuple for each in types)
        metavar = {int: "N", float: "X", str: "NAME"}[number]
        text = str(field.description).replace("``", "").removesuffix(".").replace("%", "%%")
        text = text if text[1].isupper() else text[0].lower() + text[1:]
        text += f": {', '.join(names[name])}" if name in names else ""
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            default=field.default,
            help=text if field.default is None else f"{text} (default: %(default)s)",
            type=_number_or_text if is_open else number,
            choices=None if is_open else literals or None,
            metavar=f"{metavar}[,{metavar},...]" if is_open else None if literals else metavar,
        )


def _number_or_text(given: str) -> int | str:
    """Returns a whole number if it is one; the spec says what is wrong with any other text."""
    try:
        return int(given)
    except ValueError:
        return given


def add_scenario_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which machine, which layer and which tokens, and ``--seed``."""
    group = parser.add_argument_group("workload")
    add_spec_options(group, ScenarioSpec, {"system": preset_names("systems"), "routing": routing_names()})
    add_seed_option(group)


def add_run_options(parser: argparse.ArgumentParser, default: str, *, several: bool = True) -> None:
    """Adds ``--schedule``, of which there may be ``several``, ``--resolution`` and ``--json``.

    The help says that ``default`` is the schedule without one.
    """
    names = ", ".join(schedule_names())
    planners = f"{', '.join(PLANNERS)}; weights: {', '.join(WEIGHTS)}"
    text = f"{CONTENDER_HELP}; schedules are {names}; NAME+PLANNER or NAME+PLANNER:WEIGHTS lets a planner copy experts"
    text += f" (planners: {planners}){'; repeatable' * several} (default: {default})"
    parser.add_argument("--schedule", action="append", default=None, metavar="NAME", help=text)
    text = "what moves through links and switch as one: a token's vector, or each packet on its plane (default: token)"
    parser.add_argument("--resolution", choices=RESOLUTIONS, default=RESOLUTIONS[0], help=text)
    add_json_option(parser)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--json``."""
    parser.add_argument("--json", metavar="FILE", help="write results as JSON; '-' for standard output, and no tables")


def add_report_option(parser: argparse._ActionsContainer) -> None:
    """Adds ``--report``, a folder for a page that ``output.check_folder`` checks and ``report.page`` writes."""
    text = "write a page for the browser with tables, drawings and the results, DIR/index.html"
    parser.add_argument("--report", metavar="DIR", help=text)


def add_seed_option(parser: argparse._ActionsContainer, what: str = "seed of the routing") -> None:
    """Adds ``--seed``, which ``require_within`` checks once the options are read."""
    parser.add_argument("--seed", type=int, default=0, help=f"{what} (default: %(default)s)")


def add_worker_options(parser: argparse.ArgumentParser, default: str = "1, this process") -> None:
    """Adds ``--engine``, ``--workers`` and ``--address``, which ``open_workers`` and ``asked_workers`` read."""
    group = parser.add_argument_group("workers")
    text = "what workers are: processes of this machine, or Ray's; results are the same (default: %(default)s)"
    group.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help=text)
    text = f"how many work at a time (default: {default}; with --engine ray one a core)"
    group.add_argument("--workers", type=int, metavar="N", help=text)
    text = "of a running Ray cluster, HOST:PORT or auto (default: one is started on this machine)"
    group.add_argument("--address", metavar="ADDRESS", help=text)


def open_workers(args: argparse.Namespace) -> Workers:
    """Returns the workers of the options added by ``add_worker_options``, this process if none are asked for.

    Raises:
        ConfigError: There cannot be so many, an address is of no cluster, or Ray is not installed.
    """
    return asked_workers(args) or Workers()


def asked_workers(args: argparse.Namespace) -> Workers | None:
    """Returns the workers of the options; None if none are asked for, which leaves the choice to the command.

    Raises:
        ConfigError: As ``open_workers``.
    """
    is_ray = args.engine == "ray"
    if args.address is not None and not is_ray:
        raise ConfigError(f"address='{args.address}' is of a Ray cluster; it needs --engine ray")
    if args.workers is not None:
        most = most_workers()
        if args.address is not None:
            require_within(1, _MOST_ELSEWHERE, workers=args.workers)
        elif not 1 <= args.workers <= most:
            raise ConfigError(f"workers={args.workers} must be 1 to {most}, four times the cores of this machine")
    if is_ray:
        return Cluster(args.workers, args.address)
    if args.workers is None:
        return None
    return Workers() if args.workers == 1 else Processes(args.workers)


def most_workers() -> int:
    """Returns how many processes or threads may work at a time on this machine: four a core."""
    return MOST_WORKERS_A_CORE * (os.cpu_count() or 1)


def require_within(least: int, most: float | None, **options: float | None) -> None:
    """Checks that numbers of options are within limits; those not given, None, are.

    Args:
        least: What each must be at least, from 0 on.
        most: What each may be at most: what would never end, or never fit, is more. None if what takes them says.
        options: Values by name.

    Raises:
        ConfigError: One is not; the message names it.
    """
    for option, value in options.items():
        if value is not None and value < least:
            raise ConfigError(f"{option}={value} must {f'be at least {least}' if least else 'not be negative'}")
        if value is not None and most is not None and value > most:
            raise ConfigError(f"{option}={value} must be at most {most}")


def read_scenario(args: argparse.Namespace) -> Scenario:
    """Returns the scenario of the options added by ``add_scenario_options``.

    Raises:
        ConfigError: An option's value is wrong, or the parts do not fit each other.
    """
    require_within(0, None, seed=args.seed)
    values = {name: getattr(args, name) for name in ScenarioSpec.model_fields}
    return parse_spec(ScenarioSpec, values, source=args.command).build()


def require_one_layer(workloads: Sequence[Workload], files: Mapping[str, str | None]) -> None:
    """Checks that files that show one layer, by option, are asked for of one only.

    Raises:
        ConfigError: One is asked for, and there are several layers.
    """
    for option, target in files.items():
        if target and len(workloads) > 1:
            raise ConfigError(f"{option}='{target}' shows one layer; layer_index names {len(workloads)}")


def read_named_apart(given: Sequence[str]) -> list[Contender]:
    """Returns what names of schedules and agents stand for; the names that results show must differ.

    Raises:
        ConfigError: One is unknown or wrong, or two have the same name.
    """
    found = read_contenders(given)
    seen: set[str] = set()
    for contender in found:
        if contender.name in seen:
            clash = f"schedule='{contender.given}': two of the schedules are named '{contender.name}'"
            raise ConfigError(f"{clash}; change the name in one of them, or give it once")
        seen.add(contender.name)
    return found


def describe_config(scenario: Scenario, contenders: Sequence[Contender], resolution: str) -> dict[str, Any]:
    """Returns what the results depend on, for the ``config`` of a JSON result: as asked for, and as read."""
    return {
        "scenario": scenario.spec.model_dump(mode="json"),
        "system": scenario.system.model_dump(mode="json"),
        "layer": scenario.layer.model_dump(mode="json"),
        "schedules": [contender.described() for contender in contenders],
        "resolution": resolution,
    }
