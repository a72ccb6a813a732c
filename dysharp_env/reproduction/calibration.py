"""Calibrations: what is changed of a system, for all schedules alike, before the paper's experiments are repeated."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from dysharp_env.config import Spec, load_spec
from dysharp_env.system import SystemSpec, load_system

DEFAULT_CALIBRATIONS = ("paper", "measured")


class CalibrationSpec(Spec):
    """One reading of the modelled machine."""

    name: str = Field(min_length=1)
    """Name shown in results."""
    description: str = ""
    """One line for people."""
    system: str
    """System preset the experiments run on, unless they name another."""
    changes: dict[str, bool | int | float | str | dict[str, Any]] = {}
    """Settings of the system by dotted key; physical constants only, so none favours a schedule."""

    def machine(self, system: str | None = None, changes: dict[str, object] | None = None) -> SystemSpec:
        """Returns a system with the calibration's changes and, over them, an experiment's own.

        Raises:
            ConfigError: A key or value is wrong.
        """
        return load_system(system or self.system).with_changes({**self.changes, **(changes or {})})


def load_calibration(name_or_path: str) -> CalibrationSpec:
    """Returns the calibration of a preset name or YAML path, its changes checked against its system.

    Raises:
        ConfigError: No such calibration, or a key or value in it is wrong.
    """
    calibration = load_spec(CalibrationSpec, "calibrations", name_or_path)
    calibration.machine()
    return calibration
