"""The options of a timeline: where it goes, in which format, how much it shows; and writing it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from dysharp_env.config import ConfigError
from dysharp_env.report.timelines import aggregates, replayed, timeline_of, write_by_gpu, write_timeline
from dysharp_env.report.timelines.build import TOKENS
from dysharp_env.report.timelines.decisions import Taken
from dysharp_env.report.timelines.files import DETAILS, FORMATS, OPENED_WITH, SUFFIXES, check_target
from dysharp_env.schedules import LayerRun, Problem
from dysharp_env.schedules.opponent import Contender
from dysharp_env.workload import Scenario, Workload


def add_timeline_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options to ``parser``."""
    endings = ", ".join(SUFFIXES)
    text = f"write a timeline, by how FILE ends: {endings}; with --timeline-format a folder"
    parser.add_argument("--timeline", metavar="FILE", help=text)
    text = "write a folder with a file for each GPU: PyTorch profiler traces, or Chakra execution traces"
    parser.add_argument("--timeline-format", choices=FORMATS, help=text)
    text = "every segment on a link, or stretches in which links are in use; default: by size"
    parser.add_argument("--timeline-detail", choices=DETAILS, help=text)
    text = f"tokens whose way is shown as flows; default {TOKENS}"
    parser.add_argument("--timeline-tokens", metavar="COUNT", type=int, help=text)


@dataclass(frozen=True)
class TimelineTarget:
    """What the options of a timeline ask for."""

    target: str | None
    kind: str | None
    detail: str
    tokens: int

    @property
    def file(self) -> str | None:
        """The one file that it is; None where it is a folder, or not asked for."""
        return None if self.kind else self.target

    def write(self, scenario: Scenario, workload: Workload, contender: Contender, run: LayerRun, title: str) -> str:
        """Writes the timeline of a run that kept a log, and returns what it is and what it lacks, for people.

        Raises:
            ConfigError: A file cannot be written, or the format cannot tell this schedule.
        """
        assert self.target is not None
        engine, is_aggregated = run.engine, aggregates(run.engine, self.detail)
        decisions: list[Taken] = []
        if not self.kind and not is_aggregated:
            # Decisions are not in the log: the layer is played again, and each is written down.
            scale, resolution = scenario.spec.compute_scale, engine.costs.resolution
            problem = Problem.of(scenario.system, workload, compute_scale=scale, resolution=resolution)
            again, decisions = replayed(problem, contender.first)
            assert again.engine.now_ps == engine.now_ps, "a layer that is played again is the same"
        timeline = timeline_of(
            engine,
            title,
            schedule=run.schedule,
            system=scenario.system,
            decisions=decisions,
            tokens=self.tokens,
            detail=self.detail,
        )
        if self.kind:
            write_by_gpu(self.target, self.kind, timeline, engine)
        else:
            write_timeline(self.target, timeline)
        used = OPENED_WITH[self.kind]
        if is_aggregated and self.kind != "chakra":
            used += "; aggregated, --timeline-detail full shows every segment, flow and decision"
        return used


def timeline_target(args: argparse.Namespace) -> TimelineTarget:
    """Returns what the options ask for, checked as far as it can be before a run.

    Raises:
        ConfigError: Options do not fit each other, or the target cannot be written.
    """
    for option in ("timeline_format", "timeline_detail", "timeline_tokens"):
        if getattr(args, option) is not None and args.timeline is None:
            raise ConfigError(f"{option}={getattr(args, option)} needs --timeline")
    if args.timeline_tokens is not None and args.timeline_tokens < 0:
        raise ConfigError(f"timeline_tokens={args.timeline_tokens} must not be negative")
    if args.timeline:
        check_target(args.timeline, args.timeline_format)
    tokens = TOKENS if args.timeline_tokens is None else args.timeline_tokens
    return TimelineTarget(args.timeline, args.timeline_format, args.timeline_detail or "auto", tokens)
