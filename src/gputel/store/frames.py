"""Messages of the broker, read and checked: what each will put into the tables, or why not."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gputel import limits, wire
from gputel.batch import Batch
from gputel.catalog import METRIC_SETS, SET_BY_ID
from gputel.errors import ChunkCorrupt, FrameCorrupt
from gputel.inventory import Event, Gpu, ProcessSample
from gputel.store import schema
from gputel.store.chunks import Chunk
from gputel.store.hot import Int64s
from gputel.store.inventory import Identity, Sighting, united, unknown
from gputel.store.times import DAY_NS, MINUTE_NS, span_problem

#: Up to here a list's own min and max are faster than numpy's.
_SHORT_MAX: Final = 64
#: Kinds of GPUs by the metrics they lack, and the moments when they lack more.
_KINDS_MAX: Final = 1024
_ALL_IDS: Final = {s.id: frozenset(metric.id for metric in s.metrics) for s in METRIC_SETS}


class Message(NamedTuple):
    """One message of a partition, as the broker delivers it."""

    offset: int
    producer: str
    epoch: int
    sequence: int
    payload: bytes


class Seen(NamedTuple):
    """What samples say of their GPU: their earliest and latest time, and which metrics it has."""

    first_ns: int
    last_ns: int
    metric_ids: frozenset[int] = frozenset()

    def joined(self, other: Seen) -> Seen:
        """Both together."""
        return Seen(
            min(self.first_ns, other.first_ns),
            max(self.last_ns, other.last_ns),
            united(self.metric_ids, other.metric_ids),
        )


class HotPiece(NamedTuple):
    """Samples that become rows of a hot table."""

    identity: Identity
    batch: Batch
    seen: Seen


class ChunkPiece(NamedTuple):
    """Samples whose chunk is kept as it is."""

    identity: Identity
    chunk: Chunk
    seen: Seen


@dataclass(frozen=True, slots=True)
class Content:
    """What a readable message holds. `seen` has every GPU that it names."""

    message: Message
    node: str
    sealed_at_ns: int
    hot: tuple[HotPiece, ...]
    chunks: tuple[ChunkPiece, ...]
    seen: dict[Identity, Seen]
    inventory: tuple[Gpu, ...]
    events: tuple[Event, ...]
    processes: tuple[ProcessSample, ...]
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
        times = [event.time_ns for event in frame.events]
        times += [sample.time_ns for sample in frame.processes]
        for time_ns in times:
            _check_times(time_ns, time_ns, now_ns)
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
            first_ns, last_ns = _extremes(batch.time_ns)
            _check_times(first_ns, last_ns, now_ns)
            # A chunk of more than a day would have to be looked for in too many places.
            if len(batch) < limits.CHUNK_DIRECT_SAMPLES_MIN or last_ns - first_ns >= DAY_NS:
                seen = Seen(first_ns, last_ns, _metric_ids(batch))
                hot.append(HotPiece(identity, batch, seen))
            else:
                chunk = Chunk.of(message.epoch, batch, first_ns, last_ns, payload)
                seen = Seen(first_ns, last_ns, _ids_at(batch.metric_set.id, chunk.minutes.columns))
                chunks.append(ChunkPiece(identity, chunk, seen))
    return Content(
        message,
        frame.node,
        frame.sealed_at_ns,
        tuple(hot),
        tuple(chunks),
        _seen(frame, (*hot, *chunks), now_ns),
        frame.inventory,
        frame.events,
        frame.processes,
        cells,
    )


def _extremes(time_ns: Int64s) -> tuple[int, int]:
    if len(time_ns) <= _SHORT_MAX:
        times = time_ns.tolist()
        return min(times), max(times)
    return int(time_ns.min()), int(time_ns.max())


def _check_times(first_ns: int, last_ns: int, now_ns: int) -> None:
    problem = span_problem(first_ns, last_ns, now_ns)
    if problem is not None:
        raise FrameCorrupt(problem)


def _metric_ids(batch: Batch) -> frozenset[int]:
    """The metrics that have a value."""
    # PERF(frames): a GPU that lacks nothing is recognised by a search for a zero byte.
    if 0 not in batch.valid.tobytes():
        return _ALL_IDS[batch.metric_set.id]
    return _ids_at(batch.metric_set.id, tuple(np.flatnonzero(batch.valid.any(axis=1)).tolist()))


@functools.lru_cache(maxsize=_KINDS_MAX)
def _ids_at(set_id: int, columns: tuple[int, ...]) -> frozenset[int]:
    metrics = SET_BY_ID[set_id].metrics
    return frozenset(metrics[j].id for j in columns)


def _seen(
    frame: wire.Frame, pieces: Iterable[HotPiece | ChunkPiece], now_ns: int
) -> dict[Identity, Seen]:
    found: dict[Identity, Seen] = {}
    for identity, _, seen in pieces:
        before = found.get(identity)
        found[identity] = before.joined(seen) if before else seen
    # A GPU that only the inventory names was seen when the frame was sealed.
    sealed_ns = frame.sealed_at_ns
    if span_problem(sealed_ns, sealed_ns, now_ns) is not None:
        sealed_ns = now_ns
    for sample in frame.processes:
        identity = (sample.gpu_uuid, frame.node)
        seen = Seen(sample.time_ns, sample.time_ns)
        before = found.get(identity)
        found[identity] = before.joined(seen) if before else seen
    for gpu in frame.inventory:
        found.setdefault((gpu.uuid, frame.node), Seen(sealed_ns, sealed_ns))
    return found


def sightings(contents: Sequence[Content]) -> list[Sighting]:
    """Every GPU of the messages once, as the last inventory that names it says."""
    found: dict[Identity, Seen] = {}
    gpus: dict[Identity, Gpu] = {}
    for content in contents:
        for identity, seen in content.seen.items():
            before = found.get(identity)
            found[identity] = before.joined(seen) if before else seen
        for gpu in content.inventory:
            gpus[gpu.uuid, gpu.node] = gpu
    return [
        Sighting(gpus.get(identity) or unknown(*identity), *seen)
        for identity, seen in found.items()
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
        for _, chunk, seen in content.chunks:
            minutes.setdefault("sample_chunk", set()).add(seen.first_ns // MINUTE_NS)
            of_chunk = (chunk.minutes.minute_ns // MINUTE_NS).tolist()
            minutes.setdefault("rollup_1m", set()).update(of_chunk)
        if content.processes:
            ran = {sample.time_ns // MINUTE_NS for sample in content.processes}
            minutes.setdefault("process_sample", set()).update(ran)
    return {
        table: [np.fromiter(needed, np.int64, len(needed)) * MINUTE_NS]
        for table, needed in minutes.items()
    }


def _minutes(piece: HotPiece) -> Iterable[int]:
    first_ns, last_ns, _ = piece.seen
    if last_ns - first_ns < MINUTE_NS:
        return first_ns // MINUTE_NS, last_ns // MINUTE_NS
    found: list[int] = np.unique(piece.batch.time_ns // MINUTE_NS).tolist()
    return found
