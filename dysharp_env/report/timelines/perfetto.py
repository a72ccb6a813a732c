"""Writes timelines as Perfetto traces (TrackEvent protobuf), which ui.perfetto.dev and its trace processor open.

Perfetto counts whole nanoseconds: starts and ends are rounded, so that a slice may be up to one longer or shorter, and
lanes still never overlap. Each track is a sequence of packets of its own, with its names interned.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dysharp_env.report.timelines.model import ALL_GPUS, Counter, Instant, Slice, Timeline, Track

if TYPE_CHECKING:
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import DebugAnnotation, TracePacket, TrackEvent

_PS_PER_NS = 1000


def perfetto_trace(timeline: Timeline) -> bytes:
    """Returns a timeline as a Perfetto trace.

    Raises:
        ModuleNotFoundError: The package ``perfetto`` is not installed.
    """
    return _Writer(timeline).written()


def _ns(time_ps: int) -> int:
    return (time_ps + _PS_PER_NS // 2) // _PS_PER_NS


class _Writer:
    def __init__(self, timeline: Timeline) -> None:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos
        from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder

        self._protos, self._timeline, self._file = protos, timeline, io.BytesIO()
        self._builder = StreamingTraceProtoBuilder(self._file)
        self._uuids = itertools.count(1)

    def written(self) -> bytes:
        process = {gpu: self._process(gpu) for gpu in (ALL_GPUS, *range(self._timeline.num_gpus))}
        for track in self._timeline.tracks:
            self._track(track, process[track.gpu])
        rank = max((track.rank for track in self._timeline.tracks), default=0) + 1
        for place, counter in enumerate(self._timeline.counters):
            self._counter(counter, process[counter.gpu], rank + place)
        return self._file.getvalue()

    def _process(self, gpu: int) -> int:
        """Writes the process of a GPU, or the layer's, and returns its track."""
        packet, uuid = self._builder.create_packet(), next(self._uuids)
        packet.trusted_packet_sequence_id = uuid
        described = packet.track_descriptor
        described.uuid = uuid
        # Process 0 is the idle one of an operating system.
        described.process.pid = gpu + 2
        described.process.process_name = "layer" if gpu == ALL_GPUS else f"GPU {gpu}"
        described.child_ordering = self._protos.TrackDescriptor.EXPLICIT
        if gpu == ALL_GPUS:
            described.description = "\n".join((self._timeline.title, *self._timeline.notes))
        self._builder.write_packet(packet)
        return uuid

    def _described(self, name: str, parent: int, rank: int, note: str = "") -> TracePacket:
        """Returns the first packet of a track: what it is, and what the packets behind it leave unsaid."""
        packet, uuid = self._builder.create_packet(), next(self._uuids)
        packet.trusted_packet_sequence_id = uuid
        packet.sequence_flags = packet.SEQ_INCREMENTAL_STATE_CLEARED
        packet.trace_packet_defaults.track_event_defaults.track_uuid = uuid
        described = packet.track_descriptor
        described.uuid, described.parent_uuid, described.name = uuid, parent, name
        described.sibling_order_rank = rank
        if note:
            described.description = note
        return packet

    def _track(self, track: Track, parent: int) -> None:
        packet = self._described(track.name, parent, track.rank * 100 + min(track.lane, 99), track.note)
        sequence = _Sequence(self, packet.track_descriptor.uuid)
        self._builder.write_packet(packet)
        sequence.slices(track.slices)
        sequence.instants(track.instants)

    def _counter(self, counter: Counter, parent: int, rank: int) -> None:
        packet = self._described(counter.name, parent, 10_000 + rank)
        packet.track_descriptor.counter.unit_name = counter.unit
        uuid = packet.track_descriptor.uuid
        self._builder.write_packet(packet)
        sequence, last = _Sequence(self, uuid), None
        for time_ps, value in zip(counter.times_ps.tolist(), counter.values.round(6).tolist(), strict=True):
            if value != last:
                event = sequence.event(self._protos.TrackEvent.TYPE_COUNTER, time_ps)
                event.double_counter_value = last = value
                sequence.write()
        sequence.event(self._protos.TrackEvent.TYPE_COUNTER, self._timeline.end_ps).double_counter_value = 0.0
        sequence.write()


class _Sequence:
    """Packets of one track."""

    def __init__(self, writer: _Writer, uuid: int) -> None:
        self._writer, self._uuid, self._protos = writer, uuid, writer._protos
        self._names: dict[str, int] = {}
        self._arguments: dict[str, int] = {}
        self._packet = writer._builder.create_packet()

    def event(self, kind: int, time_ps: int) -> TrackEvent:
        """Returns the event of the packet at hand."""
        packet = self._packet = self._writer._builder.create_packet()
        packet.trusted_packet_sequence_id = self._uuid
        packet.sequence_flags = packet.SEQ_NEEDS_INCREMENTAL_STATE
        packet.timestamp = _ns(time_ps)
        packet.track_event.type = kind
        return packet.track_event

    def write(self) -> None:
        """Writes the packet at hand."""
        self._writer._builder.write_packet(self._packet)

    def slices(self, slices: Iterable[Slice]) -> None:
        types = self._protos.TrackEvent
        for each in slices:
            event = self.event(types.TYPE_SLICE_BEGIN, each.start_ps)
            self._name(event, each.name)
            self._annotate(event, each.args)
            event.flow_ids.extend(each.flows)
            self.write()
            self.event(types.TYPE_SLICE_END, each.end_ps)
            self.write()

    def instants(self, instants: Iterable[Instant]) -> None:
        for each in instants:
            event = self.event(self._protos.TrackEvent.TYPE_INSTANT, each.time_ps)
            self._name(event, each.name)
            self._annotate(event, each.args)
            self.write()

    def _name(self, event: TrackEvent, name: str) -> None:
        event.name_iid = self._interned(self._names, name, "event_names")

    def _interned(self, known: dict[str, int], name: str, table: str) -> int:
        """Returns the number of a name, which is told with the packet at hand if it is new."""
        if name not in known:
            known[name] = len(known) + 1
            added = getattr(self._packet.interned_data, table).add()
            added.iid, added.name = known[name], name
        return known[name]

    def _annotate(self, event: TrackEvent, args: dict[str, Any]) -> None:
        for name, value in args.items():
            annotation = event.debug_annotations.add()
            annotation.name_iid = self._interned(self._arguments, name, "debug_annotation_names")
            self._set(annotation, value)

    def _set(self, annotation: DebugAnnotation, value: Any) -> None:
        match value:
            case int():
                annotation.int_value = value
            case float():
                annotation.double_value = value
            case str():
                annotation.string_value = value
            case dict():
                for name, each in value.items():
                    entry = annotation.dict_entries.add()
                    entry.name_iid = self._interned(self._arguments, name, "debug_annotation_names")
                    self._set(entry, each)
            case _:
                for each in value:
                    self._set(annotation.array_values.add(), each)
