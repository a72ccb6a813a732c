"""Options that commands share, and what they stand for."""

from __future__ import annotations

import argparse
from typing import Any, get_args

from dysharp_env.config import ConfigError, parse_spec, preset_names
from dysharp_env.schedules import ScheduleSpec, load_schedule
from dysharp_env.simulator.costs import RESOLUTIONS
from dysharp_env.workload import Scenario, ScenarioSpec
from dysharp_env.workload.routing import routing_names


def add_scenario_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which machine, which layer and which tokens, and ``--seed``."""
    spec = ScenarioSpec()
    group = parser.add_argument_group("workload")

    def add(option: str, text: str, **settings: Any) -> None:
        default = getattr(spec, option.removeprefix("--").replace("-", "_"))
        shown = "" if default is None else " (default: %(default)s)"
        group.add_argument(option, default=default, help=text + shown, **settings)

    add("--system", f"a .yaml file, or one of {', '.join(preset_names('systems'))}", metavar="NAME")
    add("--gpus", "use that many of the system's GPUs (default: all)", type=int, metavar="N")
    add("--model", "a .yaml file or a preset, such as large, deepseek-v3 or qwen3-30b", metavar="NAME")
    add("--top-k", "experts per token (default: the model's)", type=int, metavar="K")
    add("--tokens", "tokens per GPU", type=int, metavar="N")
    add("--routing", f"recorded, an .npz trace, or one of {', '.join(routing_names())}", metavar="NAME")
    add("--split", "which tokens of a trace to use", choices=_literals("split"))
    add("--layer-index", "which layer of a trace to use (default: drawn by the seed)", type=int, metavar="N")
    add("--placement", "contiguous, or a .json or .npz file with the GPU of every expert", metavar="NAME")
    text = "what a dispatched token is sent in (default: the model's)"
    add("--dispatch-dtype", text, choices=_literals("dispatch_dtype"))
    add("--direction", "which pass of the layer; backward does twice the GEMM work", choices=_literals("direction"))
    text = "multiply GEMM and HBM time; 0.001 sets them near zero, so that communication is all there is"
    add("--compute-scale", text, type=float, metavar="X")
    text = "multiply the time of GEMM thread blocks on GPU 0, as if its clock were held down"
    add("--slow-gpu", text, type=float, metavar="X")
    add_seed_option(group)


def add_run_options(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds the repeatable ``--schedule``, ``--resolution`` and ``--json``; ``default`` is the schedule without one."""
    names = ", ".join(preset_names("schedules"))
    text = f"a .yaml file, or one of {names}; repeatable (default: {default})"
    parser.add_argument("--schedule", action="append", default=None, metavar="NAME", help=text)
    text = "what moves through links and switch as one: a token's vector, or each packet on its plane (default: token)"
    parser.add_argument("--resolution", choices=RESOLUTIONS, default=RESOLUTIONS[0], help=text)
    add_json_option(parser)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--json``."""
    parser.add_argument("--json", metavar="FILE", help="write results as JSON; '-' for standard output, and no tables")


def add_seed_option(parser: argparse._ActionsContainer, what: str = "seed of the routing") -> None:
    """Adds ``--seed``, which ``require_at_least`` checks once the options are read."""
    parser.add_argument("--seed", type=int, default=0, help=f"{what} (default: %(default)s)")


def require_at_least(least: int, **options: int) -> None:
    """Checks that options are not too small: ``least`` is 0 or 1.

    Raises:
        ConfigError: One is; the message names it.
    """
    for option, value in options.items():
        if value < least:
            raise ConfigError(f"{option}={value} must {f'be at least {least}' if least else 'not be negative'}")


def _literals(field: str) -> list[str]:
    """Returns the strings that a ``Literal`` field, or one that may also be None, accepts."""
    annotation = ScenarioSpec.model_fields[field].annotation
    found = [choice for part in (annotation, *get_args(annotation)) for choice in get_args(part)]
    return [choice for choice in found if isinstance(choice, str)]


def read_scenario(args: argparse.Namespace) -> Scenario:
    """Returns the scenario of the options added by ``add_scenario_options``.

    Raises:
        ConfigError: An option's value is wrong, or the parts do not fit each other.
    """
    require_at_least(0, seed=args.seed)
    values = {name: getattr(args, name) for name in ScenarioSpec.model_fields}
    return parse_spec(ScenarioSpec, values, source=args.command).build()


def read_schedules(names: list[str]) -> list[ScheduleSpec]:
    """Returns the schedules of preset names or paths, whose own names must differ.

    Raises:
        ConfigError: One is unknown or wrong, or two have the same name.
    """
    schedules: dict[str, ScheduleSpec] = {}
    for name in names:
        schedule = load_schedule(name)
        if schedule.name in schedules:
            clash = f"schedule='{name}': two of the schedules are named '{schedule.name}'"
            raise ConfigError(f"{clash}; change the name in one of them, or give it once")
        schedules[schedule.name] = schedule
    return [*schedules.values()]


def describe_config(scenario: Scenario, schedules: list[ScheduleSpec], resolution: str) -> dict[str, Any]:
    """Returns what the results depend on, for the ``config`` of a JSON result: as asked for, and as read."""
    return {
        "scenario": scenario.spec.model_dump(mode="json"),
        "system": scenario.system.model_dump(mode="json"),
        "layer": scenario.layer.model_dump(mode="json"),
        "schedules": [schedule.model_dump(mode="json") for schedule in schedules],
        "resolution": resolution,
    }
