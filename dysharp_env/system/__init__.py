"""The machine: specs of GPUs, links, switch planes and software costs, and the presets that fill them."""

from dysharp_env.system.primitives import CombinePrimitive, DispatchPrimitive
from dysharp_env.system.spec import (
    FamilySpec,
    GpuSpec,
    LinkSpec,
    OverheadSpec,
    SwitchSpec,
    SystemSpec,
    load_system,
)

__all__ = [
    "CombinePrimitive",
    "DispatchPrimitive",
    "FamilySpec",
    "GpuSpec",
    "LinkSpec",
    "OverheadSpec",
    "SwitchSpec",
    "SystemSpec",
    "load_system",
]
