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
from gputel.catalog import SET_BY_ID, MetricSet
from gputel.errors import ChunkCorrupt, FrameCorrupt
from gputel.inventory import Event, Gpu, ProcessSample
from gputel.kernels import ChunkRows, RowBlock
from gputel.store import schema
from gputel.store.chunks import Chunk
from gputel.store.hot import Int64s
from gputel.store.inventory import Identity, Seen
from gputel.store.times import AHEAD_MAX_NS, DAY_NS, MINUTE_NS, TIME_MIN_NS, span_problem

#: Up to here a list's own min and max are faster than numpy's.
_SHORT_MAX: Final = 64
#: Kinds of GPUs by the metrics they lack, and the moments when they lack more.
_KINDS_MAX: Final = 1024


class Message(NamedTuple):
    """One message of a partition, as the broker delivers it."""

    offset: int
    producer: str
    epoch: int
    sequence: int
    payload: bytes


class HotBlock(NamedTuple):
    """Samples that become rows of a hot table: `counts` of each of `identities`, in turn.

    A GPU may occur several times, once for each of its chunks.
    """

    metric_set: MetricSet
    identities: tuple[Identity, ...]
    counts: tuple[int, ...]
    rows: RowBlock

    @property
    def cells(self) -> int:
        """Cells decoded, valid or not."""
        return len(self.rows.time_ns) * len(self.rows.columns)


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
    hot: tuple[HotBlock, ...]
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


class _OfSet:
    """The rows of small chunks of one metric set, and whose they are."""

    __slots__ = ("columns", "counts", "identities", "metric_ids", "metric_set", "rows", "width")

    def __init__(self, metric_set: MetricSet) -> None:
        self.metric_set = metric_set
        self.width = len(metric_set.metrics)
        self.rows: ChunkRows = wire.chunk_rows(metric_set)
        self.identities: list[Identity] = []
        self.counts: list[int] = []
        #: Of the last chunk: the bits of the columns it had, and their metrics. The next has the
        #: same, most likely.
        self.columns = 0
        self.metric_ids: frozenset[int] = frozenset()


class _SmallChunks:
    """The rows of a frame's small chunks, a block for each metric set.

    PERF(frames): with a sample a chunk, arrays of each chunk's own were half of what storing it
    cost; they are made for a frame at a time. `take` runs once a row then, so it calls little.
    """

    def __init__(self, now_ns: int) -> None:
        self._now_ns = now_ns
        self._time_max_ns = now_ns + AHEAD_MAX_NS
        self._sets: dict[int, _OfSet] = {}
        self._last: _OfSet | None = None  # where the last chunk went: the next likely does, too
        self.cells = 0

    def take(self, identity: Identity, payload: bytes) -> Seen | None:
        """Take a chunk's rows, if it is small and nothing about it is unusual.

        ChunkCorrupt; FrameCorrupt: its times are absurd.
        """
        of_set = self._last
        taken = of_set.rows.take(payload) if of_set is not None else None
        if taken is None or of_set is None:
            of_set = self._of_another(payload)
            taken = of_set.rows.take(payload) if of_set is not None else None
            if taken is None or of_set is None:
                return None
        samples, first_ns, last_ns, columns = taken
        if first_ns < TIME_MIN_NS or last_ns > self._time_max_ns:
            _check_times(first_ns, last_ns, self._now_ns)
        if columns != of_set.columns:
            of_set.columns = columns
            of_set.metric_ids = _ids_of(of_set.metric_set.id, columns)
        of_set.identities.append(identity)
        of_set.counts.append(samples)
        self.cells += samples * of_set.width
        return Seen(first_ns, last_ns, of_set.metric_ids)

    def _of_another(self, payload: bytes) -> _OfSet | None:
        """Where chunks like this one go; None: its set is unknown here."""
        metric_set = SET_BY_ID.get(wire.read_chunk_header(payload).set_id)
        if metric_set is None:
            return None
        if metric_set.id not in self._sets:
            self._sets[metric_set.id] = _OfSet(metric_set)
        self._last = self._sets[metric_set.id]
        return self._last

    def blocks(self) -> list[HotBlock]:
        """What was taken."""
        return [
            HotBlock(one.metric_set, tuple(one.identities), tuple(one.counts), one.rows.block())
            for one in self._sets.values()
            if one.counts
        ]


def _content(message: Message, frame: wire.Frame, now_ns: int) -> Content:
    small = _SmallChunks(now_ns)
    hot: list[HotBlock] = []
    chunks: list[ChunkPiece] = []
    seen: dict[Identity, Seen] = {}
    node = frame.node
    cells = 0
    for uuid, payloads in frame.gpus:
        identity = (uuid, node)
        for payload in payloads:
            of_chunk = small.take(identity, payload)
            if of_chunk is None:
                piece, of_chunk = _large(message.epoch, identity, payload, now_ns)
                if isinstance(piece, ChunkPiece):
                    chunks.append(piece)
                    cells += piece.chunk.samples * len(piece.chunk.metric_set.metrics)
                else:
                    hot.append(piece)
                    cells += piece.cells
            if cells + small.cells > limits.FRAME_CELLS_MAX:
                raise FrameCorrupt(f"more than {limits.FRAME_CELLS_MAX} values when decoded")
            before = seen.get(identity)
            seen[identity] = of_chunk if before is None else before.joined(of_chunk)
    return Content(
        message,
        frame.node,
        frame.sealed_at_ns,
        (*hot, *small.blocks()),
        tuple(chunks),
        _with_others(seen, frame, now_ns),
        frame.inventory,
        frame.events,
        frame.processes,
        cells + small.cells,
    )


def _large(
    epoch: int, identity: Identity, payload: bytes, now_ns: int
) -> tuple[HotBlock | ChunkPiece, Seen]:
    """What becomes of a chunk that is not small, or unusual."""
    batch = wire.decode_chunk(payload)
    first_ns, last_ns = _extremes(batch.time_ns)
    _check_times(first_ns, last_ns, now_ns)
    # A chunk of more than a day would have to be looked for in too many places.
    if len(batch) < limits.CHUNK_DIRECT_SAMPLES_MIN or last_ns - first_ns >= DAY_NS:
        rows = RowBlock(batch.time_ns, batch.sequence, batch.columns, batch.valid)
        block = HotBlock(batch.metric_set, (identity,), (len(batch),), rows)
        return block, Seen(first_ns, last_ns, _metric_ids(batch))
    chunk = Chunk.of(epoch, batch, first_ns, last_ns, payload)
    seen = Seen(first_ns, last_ns, _ids_at(batch.metric_set.id, chunk.minutes.columns))
    return ChunkPiece(identity, chunk, seen), seen


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
    return _ids_at(batch.metric_set.id, tuple(np.flatnonzero(batch.valid.any(axis=1)).tolist()))


@functools.lru_cache(maxsize=_KINDS_MAX)
def _ids_at(set_id: int, columns: tuple[int, ...]) -> frozenset[int]:
    metrics = SET_BY_ID[set_id].metrics
    return frozenset(metrics[j].id for j in columns)


@functools.lru_cache(maxsize=_KINDS_MAX)
def _ids_of(set_id: int, bits: int) -> frozenset[int]:
    return _ids_at(set_id, tuple(j for j in range(bits.bit_length()) if bits >> j & 1))


def _with_others(
    seen: dict[Identity, Seen], frame: wire.Frame, now_ns: int
) -> dict[Identity, Seen]:
    """`seen` with the GPUs that only processes, events or the inventory name."""
    for sample in frame.processes:
        identity = (sample.gpu_uuid, frame.node)
        of_sample = Seen(sample.time_ns, sample.time_ns)
        before = seen.get(identity)
        seen[identity] = before.joined(of_sample) if before else of_sample
    for event in frame.events:
        if event.gpu_uuid:
            of_event = Seen(event.time_ns, event.time_ns)
            seen.setdefault((event.gpu_uuid, frame.node), of_event)
    # A GPU that only the inventory names was seen when the frame was sealed.
    sealed_ns = frame.sealed_at_ns
    if span_problem(sealed_ns, sealed_ns, now_ns) is not None:
        sealed_ns = now_ns
    for gpu in frame.inventory:
        seen.setdefault((gpu.uuid, frame.node), Seen(sealed_ns, sealed_ns))
    return seen


def sightings(
    contents: Sequence[Content],
) -> tuple[dict[Identity, Seen], dict[Identity, Gpu]]:
    """Every GPU of the messages once, and the last inventory of those of which some came."""
    found: dict[Identity, Seen] = {}
    gpus: dict[Identity, Gpu] = {}
    for content in contents:
        if found.keys().isdisjoint(content.seen):
            found.update(content.seen)
        else:
            for identity, seen in content.seen.items():
                before = found.get(identity)
                found[identity] = seen if before is None else before.joined(seen)
        for gpu in content.inventory:
            gpus[gpu.uuid, gpu.node] = gpu
    return found, gpus


def needed_partitions(contents: Sequence[Content]) -> dict[str, list[npt.NDArray[np.int64]]]:
    """Times (ns), one at least in each minute for which a partitioned table must have a place.

    The bounds of partitions are whole minutes.
    """
    minutes: dict[str, set[int]] = {}
    for content in contents:
        for block in content.hot:
            table = schema.hot_table(block.metric_set)
            minutes.setdefault(table, set()).update(_minutes(block.rows.time_ns))
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


def _minutes(time_ns: Int64s) -> Iterable[int]:
    first_ns, last_ns = _extremes(time_ns)
    if last_ns - first_ns < MINUTE_NS:
        return first_ns // MINUTE_NS, last_ns // MINUTE_NS
    found: list[int] = np.unique(time_ns // MINUTE_NS).tolist()
    return found
