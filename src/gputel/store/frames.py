"""Messages of the broker, read and checked: what each will put into the tables, or why not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gputel import limits, wire
from gputel.batch import Batch
from gputel.errors import ChunkCorrupt, FrameCorrupt
from gputel.inventory import Event, Gpu
from gputel.store import schema
from gputel.store.chunks import Chunk
from gputel.store.hot import Int64s
from gputel.store.inventory import Identity, Sighting, unknown
from gputel.store.times import DAY_NS, MINUTE_NS, span_problem

#: Up to here a list's own min and max are faster than numpy's.
_SHORT_MAX = 64


class Message(NamedTuple):
    """One message of a partition, as the broker delivers it."""

    offset: int
    producer: str
    epoch: int
    sequence: int
    payload: bytes


class Span(NamedTuple):
    """From the earliest to the latest of some times, both included."""

    first_ns: int
    last_ns: int

    def joined(self, other: Span) -> Span:
        """The span of both."""
        return Span(min(self.first_ns, other.first_ns), max(self.last_ns, other.last_ns))


class HotPiece(NamedTuple):
    """Samples that become rows of a hot table."""

    identity: Identity
    batch: Batch
    span: Span


class ChunkPiece(NamedTuple):
    """Samples whose chunk is kept as it is."""

    identity: Identity
    chunk: Chunk
    span: Span


@dataclass(frozen=True, slots=True)
class Content:
    """What a readable message holds. `spans` has every GPU that it names."""

    message: Message
    node: str
    sealed_at_ns: int
    hot: tuple[HotPiece, ...]
    chunks: tuple[ChunkPiece, ...]
    spans: dict[Identity, Span]
    inventory: tuple[Gpu, ...]
    events: tuple[Event, ...]
    #: Cells decoded, valid or not: what holding this costs.
    cells: int


@dataclass(frozen=True, slots=True)
class Poison:
    """A message that can't be stored, and why."""

    message: Message
    reason: str


def read_message(message: Message, now_ns: int) -> Content | Poison:
    """Decode and check everything of a message: afterwards the database has no objection."""
    try:
        frame = wire.decode_frame(message.payload)
        for event in frame.events:
            _check_span(Span(event.time_ns, event.time_ns), now_ns)
        return _content(message, frame, now_ns)
    except (FrameCorrupt, ChunkCorrupt) as error:
        return Poison(message, f"{type(error).__name__}: {error}")


def _content(message: Message, frame: wire.Frame, now_ns: int) -> Content:
    hot: list[HotPiece] = []
    chunks: list[ChunkPiece] = []
    cells = 0
    for gpu in frame.gpus:
        identity = (gpu.uuid, frame.node)
        for payload in gpu.chunks:
            batch = wire.decode_chunk(payload)
            cells += len(batch) * len(batch.columns)
            if cells > limits.FRAME_CELLS_MAX:
                raise FrameCorrupt(f"more than {limits.FRAME_CELLS_MAX} values when decoded")
            span = _span(batch.time_ns)
            _check_span(span, now_ns)
            # A chunk of more than a day would have to be looked for in too many places.
            if len(batch) < limits.CHUNK_DIRECT_SAMPLES_MIN or span[1] - span[0] >= DAY_NS:
                hot.append(HotPiece(identity, batch, span))
            else:
                chunk = Chunk.of(message.epoch, batch, *span, payload)
                chunks.append(ChunkPiece(identity, chunk, span))
    return Content(
        message,
        frame.node,
        frame.sealed_at_ns,
        tuple(hot),
        tuple(chunks),
        _spans(frame, (*hot, *chunks), now_ns),
        frame.inventory,
        frame.events,
        cells,
    )


def _span(time_ns: Int64s) -> Span:
    if len(time_ns) <= _SHORT_MAX:
        times = time_ns.tolist()
        return Span(min(times), max(times))
    return Span(int(time_ns.min()), int(time_ns.max()))


def _check_span(span: Span, now_ns: int) -> None:
    problem = span_problem(span.first_ns, span.last_ns, now_ns)
    if problem is not None:
        raise FrameCorrupt(problem)


def _spans(
    frame: wire.Frame, pieces: Iterable[HotPiece | ChunkPiece], now_ns: int
) -> dict[Identity, Span]:
    spans: dict[Identity, Span] = {}
    for piece in pieces:
        before = spans.get(piece.identity)
        spans[piece.identity] = before.joined(piece.span) if before else piece.span
    # A GPU that only the inventory names was seen when the frame was sealed.
    sealed_ns = frame.sealed_at_ns
    if span_problem(sealed_ns, sealed_ns, now_ns) is not None:
        sealed_ns = now_ns
    for gpu in frame.inventory:
        spans.setdefault((gpu.uuid, frame.node), Span(sealed_ns, sealed_ns))
    return spans


def sightings(contents: Sequence[Content]) -> list[Sighting]:
    """Every GPU of the messages once, as the last inventory that names it says."""
    spans: dict[Identity, Span] = {}
    gpus: dict[Identity, Gpu] = {}
    for content in contents:
        for identity, span in content.spans.items():
            before = spans.get(identity)
            spans[identity] = before.joined(span) if before else span
        for gpu in content.inventory:
            gpus[gpu.uuid, gpu.node] = gpu
    return [
        Sighting(gpus.get(identity) or unknown(*identity), *span)
        for identity, span in spans.items()
    ]


def needed_partitions(contents: Sequence[Content]) -> dict[str, list[npt.NDArray[np.int64]]]:
    """Times (ns), one at least in each minute for which a partitioned table must have a place.

    The bounds of partitions are whole minutes.
    """
    minutes: dict[str, set[int]] = {}
    for content in contents:
        for piece in content.hot:
            table = schema.hot_table(piece.batch.metric_set)
            minutes.setdefault(table, set()).update(_minutes(piece))
        for _, chunk, span in content.chunks:
            minutes.setdefault("sample_chunk", set()).add(span.first_ns // MINUTE_NS)
            of_chunk = (chunk.minutes.minute_ns // MINUTE_NS).tolist()
            minutes.setdefault("rollup_1m", set()).update(of_chunk)
    return {
        table: [np.fromiter(needed, np.int64, len(needed)) * MINUTE_NS]
        for table, needed in minutes.items()
    }


def _minutes(piece: HotPiece) -> Iterable[int]:
    first_ns, last_ns = piece.span
    if last_ns - first_ns < MINUTE_NS:
        return first_ns // MINUTE_NS, last_ns // MINUTE_NS
    found: list[int] = np.unique(piece.batch.time_ns // MINUTE_NS).tolist()
    return found
