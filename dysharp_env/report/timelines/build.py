"""Makes the timeline of a layer, in full or aggregated, from its engine and what else is known of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dysharp_env.report.moves import Moves
from dysharp_env.report.paid import Payer
from dysharp_env.report.timelines import counters as counting
from dysharp_env.report.timelines.decisions import Taken, decision_tracks
from dysharp_env.report.timelines.flows import Flows, flows_of, sampled
from dysharp_env.report.timelines.groups import GROUPS, RowUse, group_tracks
from dysharp_env.report.timelines.links import DOWNLINK, REDUCTION, UPLINK, aggregated_link_tracks, link_tracks
from dysharp_env.report.timelines.log import Log
from dysharp_env.report.timelines.model import Timeline
from dysharp_env.report.timelines.phases import paid_tracks, phase_tracks, whole_tracks
from dysharp_env.schedules import ScheduleSpec
from dysharp_env.simulator.engine import Engine
from dysharp_env.system import SystemSpec

# The order of a GPU's tracks, after its whole time and what it pays alone.
# A sum goes down as its last piece is added, at the same moment: its flow goes from the unit to the downlink.
_LINKS, _AFTER = (UPLINK, REDUCTION, DOWNLINK), (GROUPS["gemm"], GROUPS["weights"], GROUPS["combine"])
RANKS = {name: rank for rank, name in enumerate(("decisions", GROUPS["dispatch"], *_LINKS, *_AFTER), start=2)}
# A log with more rows is aggregated unless all of it is asked for.
MOST_ROWS_IN_FULL = 200_000
TOKENS = 8


def timeline_of(
    engine: Engine,
    title: str = "",
    *,
    schedule: ScheduleSpec | None = None,
    system: SystemSpec | None = None,
    decisions: Sequence[Taken] = (),
    tokens: int = TOKENS,
    detail: str = "auto",
) -> Timeline:
    """Returns the timeline of a layer.

    Args:
        engine: A finished layer, or one under way, of which what has ended is shown. Without a log there are only SM
            groups and phases.
        title: What it is of, for people.
        schedule: What it was run under; it names what is paid, which is one sum otherwise.
        system: What it was run on; likewise.
        decisions: Decisions that were recorded (``decisions.replayed``).
        tokens: Tokens whose way is shown as flows, spread evenly over all; none are where links are aggregated.
        detail: ``full``; ``aggregated``: links as stretches in use, coarser counters, no flows and decisions;
            ``auto``: aggregated where the log has more than ``MOST_ROWS_IN_FULL`` rows.
    """
    is_logged = bool(engine.state.root["logging"][0])
    is_aggregated = is_logged and aggregates(engine, detail)
    timeline = Timeline(title, engine.workload.num_gpus, engine.now_ps, is_aggregated, notes=_notes(is_aggregated))
    tracks = [*phase_tracks(engine), *whole_tracks(engine)]
    if not is_logged:
        tracks += group_tracks(engine, RANKS, None, {})
    else:
        log, moves = Log(engine), Moves(engine)
        use, flows = RowUse(engine, moves), Flows()
        if is_aggregated:
            tracks += aggregated_link_tracks(log, RANKS)
        else:
            flows = flows_of(log, sampled(engine.workload.num_tokens, tokens) if tokens else np.zeros(0, int))
            tracks += link_tracks(log, RANKS, flows.of_row)
            tracks += decision_tracks(decisions, RANKS)
        tracks += group_tracks(engine, RANKS, use, flows.of_item)
        tracks += paid_tracks(Payer(engine, schedule, system))
        bins = counting.AGGREGATED_BINS if is_aggregated else counting.BINS
        timeline.counters.extend(counting.counters(log, moves, use.l2, bins))
    timeline.tracks.extend(sorted(tracks, key=lambda track: (track.gpu, track.rank, track.name, track.lane)))
    return timeline


def aggregates(engine: Engine, detail: str) -> bool:
    """Returns whether a layer is shown aggregated at a level of detail."""
    return detail == "aggregated" or (detail == "auto" and int(engine.state.root["log_size"][0]) > MOST_ROWS_IN_FULL)


def _notes(is_aggregated: bool) -> tuple[str, ...]:
    notes = (
        "wire_bytes count headers, payload_bytes data as far as they fill flits",
        "control flits (requests, acknowledgements, notifications) are in the totals of each GPU and not drawn",
        "SMs are counted: the simulator does not number them",
    )
    if is_aggregated:
        return (*notes, "aggregated: links are stretches in use, without single segments, flows and decisions")
    return notes
