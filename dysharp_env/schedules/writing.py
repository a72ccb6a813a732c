"""Schedules as YAML that ``load_schedule`` reads."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from dysharp_env.schedules.spec import ScheduleSpec

_WIDTH = 120


def as_yaml(schedule: ScheduleSpec, header: Sequence[str] = ()) -> str:
    """Returns a schedule's YAML, what is as by default left out, below lines of comment."""
    settings = schedule.model_dump(mode="json", exclude_defaults=True)
    body = yaml.safe_dump(settings, sort_keys=False, width=_WIDTH, default_flow_style=None)
    return "".join(f"# {line}\n" for line in header) + body
