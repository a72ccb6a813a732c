"""Who decides: schedules and rules as data the engine can run, and the bound none of them can beat."""

from dysharp_env.schedules.bound import lower_bound_ps
from dysharp_env.schedules.run import LayerRun, Starter, simulate, start
from dysharp_env.schedules.spec import Exposure, ScheduleSpec, load_schedule

__all__ = ["Exposure", "LayerRun", "ScheduleSpec", "Starter", "load_schedule", "lower_bound_ps", "simulate", "start"]
