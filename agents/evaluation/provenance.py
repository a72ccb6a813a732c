"""What a stored row was played on, worked out from its scenario: names, digests, and whether this package ships them.

A decision list says of itself who played what. What can be worked out is not taken from it: the name of its workload
follows from the scenario and seed, and a schedule that asked nobody goes by its own name. A part (system, model,
schedule, routing) is *shipped* if it is what a preset of this package says; of any other there is only the digest.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dysharp_env.config import ConfigError, Spec, load_spec, preset_names
from dysharp_env.files import open_file, shown
from dysharp_env.schedules import ScheduleSpec, load_schedule
from dysharp_env.schedules.names import is_schedule_name
from dysharp_env.system import SystemSpec
from dysharp_env.workload import Scenario, Workload
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.routing import routing_names
from dysharp_env.workload.suite import SuiteEntry, name_in_suites

from .decision_list import DecisionList

_SHOWN_DIGITS = 16  # of a digest


@dataclass(frozen=True, order=True)
class Part:
    """A thing that a row depends on.

    Attributes:
        what: ``system``, ``model``, ``schedule`` or ``routing``.
        name: What it calls itself.
        digest: SHA-256 of its content in hex.
        is_shipped: Whether this package has the same content under that name.
        is_disguised: Whether it has other content under that name.
    """

    what: str
    name: str
    digest: str
    is_shipped: bool
    is_disguised: bool = False

    def __str__(self) -> str:
        """Returns a line for people."""
        origin = "shipped" if self.is_shipped else "NOT SHIPPED"
        return f"{origin}: {self.what} '{shown(self.name)}', sha256 {self.digest[:_SHOWN_DIGITS]}"


def parts_of(decisions: DecisionList) -> list[Part]:
    """Returns the parts of a row.

    Raises:
        ConfigError: One is named by a file that cannot be read.
    """
    scenario, schedule = decisions.scenario, decisions.schedule
    is_shipped, is_known = _is_shipped(schedule), is_schedule_name(schedule.name)
    return [
        _preset("system", SystemSpec, scenario.system),
        _preset("model", LayerSpec, scenario.model),
        Part("schedule", schedule.name, _digest(schedule), is_shipped, is_known and not is_shipped),
        Part("routing", *_routing(scenario.routing)),
        *_placement(scenario.placement),
    ]


def misnamed(decisions: DecisionList, scenario: Scenario, workload: Workload) -> str | None:
    """Returns what is wrong with what a row says of itself, or None: its workload's name, and who has played.

    A suite's name of the workload follows from scenario and seed. What a schedule plays is known, and so is that a
    schedule asks nobody; who answered what was asked is only said. What has a preset's name must be that preset.
    """
    for part in parts_of(decisions):
        if part.is_disguised:
            return f"its {part.what} has the name '{part.name}' of a shipped one, and is another"
    name = SuiteEntry(**decisions.scenario.model_dump()).name_of(scenario, workload)
    if decisions.workload != name:
        return f"it says that it played '{shown(decisions.workload)}', and played '{name}'"
    policy, schedule = decisions.policy, decisions.schedule
    if not decisions.asked.kinds:
        if policy != schedule.name:
            return f"it says that '{shown(policy)}' played, but nobody was asked and '{shown(schedule.name)}' ran"
        return None
    if is_schedule_name(policy):
        return f"it says that the schedule '{shown(policy)}' played, but somebody was asked, which no schedule does"
    return None


def _digest(spec: Spec) -> str:
    text = json.dumps(spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _preset(what: str, kind: type[Spec], given: str) -> Part:
    """Returns a system or model by its name in a suite, which of a file is the file's."""
    folder, name = f"{what}s", name_in_suites(given)
    spec = load_spec(kind, folder, given)
    is_known = name in preset_names(folder)
    is_shipped = is_known and load_spec(kind, folder, name) == spec
    return Part(what, name, _digest(spec), is_shipped, is_known and not is_shipped)


def _is_shipped(schedule: ScheduleSpec) -> bool:
    try:
        return is_schedule_name(schedule.name) and schedule in _shipped(schedule.name)
    except ConfigError:
        return False  # a path, or a planner that there is not


@cache
def _shipped(name: str) -> tuple[ScheduleSpec, ...]:
    schedule = load_schedule(name)
    return (schedule, *schedule.variants())


def _routing(given: str) -> tuple[str, str, bool]:
    """Returns name, digest and whether it is shipped of a source of routing: a generator by its name, or a file."""
    path = Path(given.rpartition(".npz")[0] + ".npz") if ".npz" in given else None
    if path is None:
        is_known = given.partition(":")[0] in {name.partition(":")[0] for name in routing_names()}
        return given, hashlib.sha256(given.encode()).hexdigest(), is_known
    return given, _file_digest(path), False


def _placement(given: str) -> list[Part]:
    """Returns the file of a placement as a part; what is worked out here needs none."""
    if given == "contiguous" or given.partition(":")[0] == "eplb":
        return []
    return [Part("placement", given, _file_digest(Path(given)), False)]


def _file_digest(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
