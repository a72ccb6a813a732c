"""Who decides: schedules and rules as data the engine can run, and the bound none of them can beat."""

from dysharp_env.schedules.bound import LowerBound
from dysharp_env.schedules.exposure import Exposure
from dysharp_env.schedules.names import is_schedule_name, preset_of, schedule_names
from dysharp_env.schedules.run import LayerRun, Problem, Starter, simulate
from dysharp_env.schedules.spec import ScheduleSpec, load_schedule

__all__ = [
    "Exposure",
    "LayerRun",
    "LowerBound",
    "Problem",
    "ScheduleSpec",
    "Starter",
    "is_schedule_name",
    "load_schedule",
    "preset_of",
    "schedule_names",
    "simulate",
]
