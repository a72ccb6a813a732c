"""What can be named on a command line, one row each: systems, models, schedules, suites, policies, routing."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dysharp_env.config import preset_names
from dysharp_env.schedules import load_schedule
from dysharp_env.schedules.contenders import agents_package
from dysharp_env.schedules.hardware import fixed_costs, hardware_needs
from dysharp_env.system import FaultSpec, SystemSpec, load_system
from dysharp_env.system.faults import read_faults
from dysharp_env.system.primitives import COMBINE_PRIMITIVES, DISPATCH_PRIMITIVES
from dysharp_env.workload.formats import NATIVE_FORMAT
from dysharp_env.workload.layer import load_model
from dysharp_env.workload.routing import describe_routing
from dysharp_env.workload.suite import load_suite

Row = dict[str, Any]
_SEARCHED_DEPTH = 3  # folders below runs/ in which run folders are looked for
# Who plays and is no schedule; agents/opponents/read.py reads the names.
_PLAYERS = {
    "random": "a legal candidate of every decision, drawn at random",
    "first": "the first candidate of every decision",
    "virtual-best": "the fastest hand-designed schedule of each layer, in hindsight",
    "look-ahead:SCHEDULE": "a schedule that simulates ahead before it decides",
    "RULE.json": "a distilled rule",
    "package.module:function": "whatever a function of yours answers",
}


def systems() -> Iterator[Row]:
    """Yields every system: sizes, rates, and what its switch can do."""
    for name in preset_names("systems"):
        system = load_system(name)
        yield {
            "name": name,
            "gpus": system.num_gpus,
            "sms": system.gpu.num_sms,
            "fp8_tflops": system.gpu.fp8_tflops,
            "hbm_gbps": system.gpu.hbm_gbps,
            "link_gbps": system.link.gbps,
            "multimem": _multimem(system),
            "description": system.description,
        }


def _multimem(system: SystemSpec) -> str:
    has = [DISPATCH_PRIMITIVES[name] for name in system.switch.dispatch_primitives]
    has += [COMBINE_PRIMITIVES[name] for name in system.switch.combine_primitives]
    if any(each.names_targets for each in has):
        return "dynamic"
    return "static" if any(each.in_switch for each in has) else "none"


def models() -> Iterator[Row]:
    """Yields every model: sizes of its MoE layer and formats."""
    for name in preset_names("models"):
        layer = load_model(name)
        yield {
            "name": name,
            "experts": layer.experts,
            "top_k": layer.top_k,
            "hidden": layer.hidden,
            "moe_ff": layer.moe_ff,
            "shared": layer.shared_experts,
            "dispatch": layer.dispatch_dtype,
            "combine": layer.combine_dtype,
            "gemms": layer.compute_dtype,
            "weights": layer.weight_dtype or NATIVE_FORMAT[layer.compute_dtype],
        }


def schedules(system: SystemSpec) -> Iterator[Row]:
    """Yields every schedule: the hardware that it needs, and what it pays on a system whatever the layer."""
    for name in preset_names("schedules"):
        schedule = load_schedule(name)
        yield {
            "name": name,
            "hardware": " or ".join(hardware_needs(schedule)),
            **fixed_costs(schedule, system).record(),
            "aliases": list(schedule.aliases),
            "found_by": schedule.found_by,
            "description": schedule.description,
        }


def suites() -> Iterator[Row]:
    """Yields every suite: how many workloads, and the labels of its subsets."""
    for name in preset_names("suites"):
        suite = load_suite(name)
        labels = dict.fromkeys(label for entry in suite.workloads for label in entry.labels)
        count = sum(entry.seeds[1] for entry in suite.workloads)
        yield {"name": name, "workloads": count, "labels": list(labels), "description": suite.description}


def faults() -> Iterator[Row]:
    """Yields every preset of what may be wrong with a machine."""
    for name in preset_names("faults"):
        given = read_faults(name)
        changed = {key: value for key, value in given.items() if value != FaultSpec.model_fields[key].default}
        yield {"name": name, "settings": ",".join(f"{key}={value:g}" for key, value in changed.items())}


def routing() -> Iterator[Row]:
    """Yields what routing can be drawn from by name."""
    for name, (parameter, text) in describe_routing().items():
        yield {"name": f"{name}:{parameter}" if parameter else name, "description": text}
    yield {"name": "recorded", "description": "the trace that ships: a tiny MoE language model on Python's own sources"}
    yield {"name": "FILE.npz", "description": "a trace, or with :NAME loads that tokens are drawn from"}


def policies(runs: Path = Path("runs")) -> Iterator[Row]:
    """Yields who else can play: the shipped agent, choices, and run folders below a folder."""
    shipped = _shipped()
    if cards := [card for folder in shipped for card in _cards(folder)]:
        seeds = ", ".join(str(card["seed"]) for card in cards)
        yield {"name": "reference", "description": f"the shipped agent, on {cards[0]['schedule']}; seeds {seeds}"}
    for name, text in _PLAYERS.items():
        yield {"name": name, "description": text}
    known = {folder.resolve() for folder in shipped}
    found = {path for depth in range(1, _SEARCHED_DEPTH + 1) for path in runs.glob("/".join(["*"] * depth))}
    for folder in sorted(found):
        for card in _cards(folder) if folder.resolve() not in known else ():
            score = "" if card["ratio"] is None else f", {card['ratio']:.3f} of the bound on validation"
            text = f"run '{card['name']}', seed {card['seed']}, on {card['schedule']}{score}"
            yield {"name": str(folder), "description": text}


def _shipped() -> list[Path]:
    """Returns the run folders of the shipped agent, without importing the package of agents, which brings torch."""
    found = importlib.util.find_spec(agents_package())
    if found is None or found.origin is None:
        return []
    package = Path(found.origin).parent
    roots = (package / "shipped", package.parent / "runs" / "reference")
    return sorted(next((root for root in roots if root.is_dir()), package).glob("seed-*"))


def _cards(folder: Path) -> Iterator[Row]:
    """Yields what the best policy of a run folder says of itself; nothing if there is none."""
    try:
        card = json.loads((folder / "best" / "policy.json").read_text(encoding="utf-8"))
        yield {
            **{"name": card["name"], "seed": card["seed"], "schedule": card["env"]["schedule"]},
            "ratio": card.get("validation_ratio"),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return


KINDS: dict[str, Callable[..., Iterator[Row]]] = {
    **{"systems": systems, "models": models, "schedules": schedules, "suites": suites, "policies": policies},
    "faults": faults,
    "routing": routing,
}
