"""Which preset a measured device is, and how many of its GPUs one node has."""

from __future__ import annotations

from dysharp_env.validation.tables.readings import CannotExpressError

# Names as CUDA gives them: (preset, GPUs of one node, between which DeepEP needs no other network).
DEVICES = {
    "NVIDIA H100 80GB HBM3": ("dgx-h100", 8),
    "NVIDIA H200": ("dgx-h200", 8),
    "NVIDIA H800": ("dgx-h800", 8),
    "NVIDIA B200": ("dgx-b200", 8),
    "NVIDIA GB200": ("gb200-nvl72", 4),
}


def machine_of(device: str) -> tuple[str, int]:
    """Returns the preset of a device and the GPUs of one node.

    Raises:
        CannotExpressError: There is no preset for it.
    """
    if device not in DEVICES:
        raise CannotExpressError(f"no preset for device '{device}'")
    return DEVICES[device]
