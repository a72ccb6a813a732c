"""Which experts' weights are copied to which GPUs, and how many of an expert's tokens each copy takes."""

from dysharp_env.schedules.replication.planned import planned, slots_of
from dysharp_env.schedules.replication.spec import PLANNERS, WEIGHTS, ReplicateSpec, replicate_defaults

__all__ = ["PLANNERS", "WEIGHTS", "ReplicateSpec", "planned", "replicate_defaults", "slots_of"]
