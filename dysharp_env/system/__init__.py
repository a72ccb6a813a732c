"""The machine: specs of GPUs, links, switch planes and software costs, and the presets that fill them."""

from dysharp_env.system.faults import FaultSpec
from dysharp_env.system.overheads import OverheadSpec
from dysharp_env.system.presets import load_system
from dysharp_env.system.primitives import CombinePrimitive, DispatchPrimitive, Hardware
from dysharp_env.system.spec import FamilySpec, GpuSpec, LinkSpec, SwitchSpec, SystemSpec

__all__ = [
    "CombinePrimitive",
    "DispatchPrimitive",
    "FamilySpec",
    "FaultSpec",
    "GpuSpec",
    "Hardware",
    "LinkSpec",
    "OverheadSpec",
    "SwitchSpec",
    "SystemSpec",
    "load_system",
]
