"""Messages of the broker, read and checked: what each will put into the tables, or why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gputel import limits, wire
from gputel.batch import Batch
from gputel.catalog import METRIC_SETS, MetricSet
from gputel.errors import ChunkCorrupt, FrameCorrupt
from gputel.inventory import Event, ProcessSample
from gputel.store import schema
from gputel.store.hot import Int64s
from gputel.store.inventory import Identity, Sighting, unknown
from gputel.store.times import DAY_NS, MINUTE_NS, span_problem


class Message(NamedTuple):
    """One message of a partition, as the broker delivers it."""

    offset: int
    producer: str
    epoch: int
    sequence: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """The samples of one chunk. `chunk` is kept as it is when it is large enough."""

    identity: Identity
    batch: Batch
    chunk: bytes | None


@dataclass(frozen=True, slots=True)
class Content:
    """What a readable message holds."""

    message: Message
    node: str
    sealed_at_ns: int
    pieces: tuple[Piece, ...]
    sightings: tuple[Sighting, ...]
    events: tuple[Event, ...]
    processes: tuple[ProcessSample, ...]


@dataclass(frozen=True, slots=True)
class Poison:
    """A message that can't be stored, and why."""

    message: Message
    reason: str


def read_message(message: Message, now_ns: int) -> Content | Poison:
    """Decode and check everything of a message: afterwards the database has no objection."""
    try:
        frame = wire.decode_frame(message.payload)
        pieces = [
            _piece((gpu.uuid, frame.node), chunk, now_ns)
            for gpu in frame.gpus
            for chunk in gpu.chunks
        ]
        times = [event.time_ns for event in frame.events]
        times += [sample.time_ns for sample in frame.processes]
        for time_ns in times:
            _check_span(time_ns, time_ns, now_ns)
    except (FrameCorrupt, ChunkCorrupt) as error:
        return Poison(message, f"{type(error).__name__}: {error}")
    return Content(
        message,
        frame.node,
        frame.sealed_at_ns,
        tuple(pieces),
        tuple(_sightings(frame, pieces, now_ns)),
        frame.events,
        frame.processes,
    )


def _piece(identity: Identity, chunk: bytes, now_ns: int) -> Piece:
    batch = wire.decode_chunk(chunk)
    first_ns, last_ns = int(batch.time_ns.min()), int(batch.time_ns.max())
    _check_span(first_ns, last_ns, now_ns)
    direct = len(batch) >= limits.CHUNK_DIRECT_SAMPLES_MIN and last_ns - first_ns < DAY_NS
    return Piece(identity, batch, chunk if direct else None)


def _check_span(first_ns: int, last_ns: int, now_ns: int) -> None:
    problem = span_problem(first_ns, last_ns, now_ns)
    if problem is not None:
        raise FrameCorrupt(problem)


def _sightings(frame: wire.Frame, pieces: Sequence[Piece], now_ns: int) -> list[Sighting]:
    # A GPU that only the inventory names was seen when the frame was sealed.
    sealed_ns = frame.sealed_at_ns
    if span_problem(sealed_ns, sealed_ns, now_ns) is not None:
        sealed_ns = now_ns
    times = [(p.identity, int(p.batch.time_ns.min()), int(p.batch.time_ns.max())) for p in pieces]
    times += [((s.gpu_uuid, frame.node), s.time_ns, s.time_ns) for s in frame.processes]
    spans: dict[Identity, tuple[int, int]] = {}
    for identity, first_ns, last_ns in times:
        before = spans.get(identity, (first_ns, last_ns))
        spans[identity] = min(before[0], first_ns), max(before[1], last_ns)
    found = []
    for gpu in frame.inventory:
        span = spans.pop((gpu.uuid, frame.node), (sealed_ns, sealed_ns))
        found.append(Sighting(gpu, *span))
    found += [Sighting(unknown(*identity), *span) for identity, span in spans.items()]
    return found


def sightings(contents: Sequence[Content]) -> list[Sighting]:
    """Every GPU of the messages once."""
    found: dict[Identity, Sighting] = {}
    for content in contents:
        for seen in content.sightings:
            identity = (seen.gpu.uuid, seen.gpu.node)
            found[identity] = found[identity].joined(seen) if identity in found else seen
    return list(found.values())


def hot_pieces(contents: Sequence[Content]) -> dict[MetricSet, list[tuple[Content, Piece]]]:
    """The pieces that become rows, by metric set."""
    found: dict[MetricSet, list[tuple[Content, Piece]]] = {}
    for content in contents:
        for piece in content.pieces:
            if piece.chunk is None:
                found.setdefault(piece.batch.metric_set, []).append((content, piece))
    return found


def chunk_pieces(contents: Sequence[Content]) -> list[tuple[Content, Piece]]:
    """The pieces that stay chunks."""
    return [
        (content, piece)
        for content in contents
        for piece in content.pieces
        if piece.chunk is not None
    ]


def needed_partitions(contents: Sequence[Content]) -> dict[str, list[Int64s]]:
    """The times for which each partitioned table must have a place."""
    needs: dict[str, list[Int64s]] = {schema.hot_table(s): [] for s in METRIC_SETS}
    for metric_set, pieces in hot_pieces(contents).items():
        needs[schema.hot_table(metric_set)] = [piece.batch.time_ns for _, piece in pieces]
    chunks = [piece.batch.time_ns for _, piece in chunk_pieces(contents)]
    needs["sample_chunk"] = [times.min(keepdims=True) for times in chunks]
    processes = [sample.time_ns for content in contents for sample in content.processes]
    needs["process_sample"] = [np.array(processes, np.int64)] if processes else []
    needs["rollup_1m"] = [np.unique(times // MINUTE_NS) * MINUTE_NS for times in chunks]
    return needs
