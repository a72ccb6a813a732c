"""What the machine is asked to do: the shape of an MoE layer, its routing, its traces, and where experts live."""

from dysharp_env.workload.layer import LayerSpec, load_model
from dysharp_env.workload.placement import Placement
from dysharp_env.workload.scenario import Scenario, ScenarioSpec
from dysharp_env.workload.source import WorkloadSource
from dysharp_env.workload.workload import Workload

__all__ = ["LayerSpec", "Placement", "Scenario", "ScenarioSpec", "Workload", "WorkloadSource", "load_model"]
