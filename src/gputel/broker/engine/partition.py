"""One partition of the embedded engine: what the event loop sees of it.

The loop's thread accepts messages, the committer's thread writes them (`commit.py`), and
reader threads read what is committed. What they share is a deque of pending blocks, whose
ends belong to one thread each, and integers that only one thread writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

from gputel import limits
from gputel.broker.engine import Chunk, Message, PartitionFailed
from gputel.broker.engine.memory import Backlog, Block, Tail, cost_bytes
from gputel.broker.engine.producers import Mark
from gputel.broker.engine.record import Record
from gputel.broker.engine.recovery import Recovered
from gputel.broker.engine.segment import Gap, Segment
from gputel.clock import Clock

log = logging.getLogger(__name__)


class Partition:
    """A log of messages. Use from the event loop's thread, except where said."""

    def __init__(
        self,
        directory: Path,
        index: int,
        recovered: Recovered,
        *,
        clock: Clock,
        tail: Tail,
        backlog: Backlog,
        readers: Executor,
        accepted: Callable[[Partition], None],
    ) -> None:
        self.directory = directory
        self.index = index
        self.name = f"{directory.parent.name}/{index}"
        self.pending: deque[Block] = deque()  # appended here, taken by the committer
        self.queued = False  # the committer has been told of `pending`
        # Replaced, never changed in place, by the committer: any thread may read it.
        self.segments_held: tuple[Segment, ...] = tuple(recovered.segments)
        self.failure = ""
        self.damage = ""
        self.damaged_bytes = 0
        self.pending_bytes = 0
        self.duplicates = 0
        self.messages_in = 0
        self.bytes_in = 0
        self._producers = recovered.producers
        self._next_offset = recovered.next_offset
        self._accepted_offset = recovered.next_offset
        self._clock = clock
        self._tail = tail
        self._backlog = backlog
        self._recent: dict[int, Record] = {}
        self._readers = readers
        self._accepted = accepted
        self._watchers: dict[Callable[[], None], None] = {}  # in the order in which they came
        self._gaps_seen: set[tuple[int, Gap]] = set()
        self._note_gaps(recovered.segments[-1].base_offset, recovered.gaps)

    @property
    def first_offset(self) -> int:
        return self.segments_held[0].base_offset

    @property
    def next_offset(self) -> int:
        return self._next_offset

    @property
    def size_bytes(self) -> int:
        return sum(segment.size_bytes for segment in self.segments_held)

    @property
    def segments(self) -> int:
        return len(self.segments_held)

    def append(
        self,
        producer: str,
        epoch: int,
        sequence: int,
        key: bytes,
        payload: bytes,
        *,
        repeatable: bool = True,
    ) -> int:
        """See `PartitionLog.append`; a ticket is an offset."""
        message = Message(sequence, key, payload)
        return self.extend(producer, epoch, (message,), repeatable=repeatable)

    def extend(
        self, producer: str, epoch: int, messages: Sequence[Message], *, repeatable: bool = True
    ) -> int:
        """See `PartitionLog.extend`."""
        if self.failure:
            raise PartitionFailed(f"partition {self.name}: {self.failure}")
        if repeatable:
            fresh, stored_at = self._producers.fresh(producer, epoch, messages)
            self.duplicates += len(messages) - len(fresh)
            if not fresh:
                return stored_at
            messages = fresh
        offset = self._accepted_offset + len(messages) - 1
        self._producers.advance(producer, Mark(epoch, messages[-1].sequence, offset))
        for block in self._blocks(producer, epoch, messages):
            self._count_pending(block.size_bytes)
            self.pending.append(block)
        self._accepted_offset = offset + 1
        if not self.queued:
            self.queued = True
            self._accepted(self)
        return offset

    def _blocks(self, producer: str, epoch: int, messages: Sequence[Message]) -> list[Block]:
        """The messages as records, in blocks that each fit a commit."""
        stored_at_ns = self._clock.time_ns()
        offset = self._accepted_offset
        blocks: list[Block] = []
        records: list[Record] = []
        size_bytes = 0
        for sequence, key, payload in messages:
            added_bytes = cost_bytes(key, payload)
            if records and size_bytes + added_bytes > limits.COMMIT_BYTES_MAX:
                blocks.append(Block(records, size_bytes))
                records, size_bytes = [], 0
            records.append(Record(offset, stored_at_ns, producer, epoch, sequence, key, payload))
            size_bytes += added_bytes
            offset += 1
        blocks.append(Block(records, size_bytes))
        return blocks

    def is_durable(self, ticket: int) -> bool:
        return ticket < self._next_offset

    def mark(self, producer: str) -> Mark | None:
        """The last message accepted from `producer`, durable or not."""
        return self._producers.get(producer)

    def committed(self, blocks: list[Block], size_bytes: int) -> None:
        """The committer's word that `blocks` are durable; `size_bytes` of the file."""
        self._next_offset = blocks[-1].records[-1].offset + 1
        for block in blocks:
            self._tail.add(self._recent, block)
            self.messages_in += len(block.records)
        if not self.failure:
            self._count_pending(-sum(block.size_bytes for block in blocks))
        self.bytes_in += size_bytes
        self._notify()

    def failed(self, reason: str) -> None:
        """The committer's word that nothing more can be stored."""
        log.error("partition %s takes no more messages: %s", self.name, reason)
        self.failure = reason
        self.pending.clear()
        self._count_pending(-self.pending_bytes)
        self._notify()

    def _count_pending(self, size_bytes: int) -> None:
        self.pending_bytes += size_bytes
        self._backlog.grow(size_bytes)

    def watch(self, changed: Callable[[], None]) -> None:
        self._watchers[changed] = None

    def unwatch(self, changed: Callable[[], None]) -> None:
        self._watchers.pop(changed, None)

    def _notify(self) -> None:
        for changed in tuple(self._watchers):
            changed()

    async def catch_up(self) -> None:
        """See `PartitionLog.catch_up`: nobody else writes."""

    async def read(self, offset: int, messages_max: int, bytes_max: int) -> Chunk:
        """See `PartitionLog.read`. Recent messages cost no thread and no disk."""
        offset = max(offset, self.first_offset)
        if offset >= self._next_offset:
            return Chunk((), offset)
        if offset in self._recent:
            return self._read_recent(offset, messages_max, bytes_max)
        end_offset = self._next_offset
        loop = asyncio.get_running_loop()
        while True:
            segment, end = self._segment_of(offset, end_offset)
            # A segment that is left may be read by other groups, too; of the one that is written
            # the newest is in memory, and the page cache would have to be told of each commit.
            read = partial(segment.read, cached=segment is not self.segments_held[-1])
            try:
                part = await loop.run_in_executor(
                    self._readers, read, offset, end, messages_max, bytes_max
                )
            except FileNotFoundError:  # retention was faster
                offset = max(offset + 1, self.first_offset, segment.base_offset)
                if offset >= end_offset:
                    return Chunk((), offset)
                continue
            self._note_gaps(segment.base_offset, part.gaps)
            if part.records or part.next_offset >= end_offset:
                return Chunk(part.records, part.next_offset)
            offset = part.next_offset

    def _read_recent(self, offset: int, messages_max: int, bytes_max: int) -> Chunk:
        records: list[Record] = []
        taken_bytes = 0
        while len(records) < messages_max:
            record = self._recent.get(offset)
            if record is None:
                break
            taken_bytes += len(record.payload)
            if records and taken_bytes > bytes_max:
                break
            records.append(record)
            offset += 1
        return Chunk(records, offset)

    async def offset_at(self, time_ns: int) -> int:
        """See `PartitionLog.offset_at`. Reads one segment, at most two."""
        end_offset = self._next_offset
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._readers, self._search_time, time_ns)
        return end_offset if found is None else min(max(found, self.first_offset), end_offset)

    def _search_time(self, time_ns: int) -> int | None:
        segments = self.segments_held
        first = 0
        for number, segment in enumerate(segments):
            with contextlib.suppress(FileNotFoundError):  # retention was faster
                if segment.first_time() >= time_ns:
                    break
                first = number
        for segment in segments[first:]:
            with contextlib.suppress(FileNotFoundError):
                offset = segment.offset_at(time_ns)
                if offset is not None:
                    return offset
        return None

    def _segment_of(self, offset: int, end_offset: int) -> tuple[Segment, int]:
        """The segment that holds `offset`, and where what may be read of it ends."""
        segments = self.segments_held
        for number in range(len(segments) - 1, -1, -1):
            if segments[number].base_offset <= offset:
                following = segments[number + 1 : number + 2]
                end = min(end_offset, following[0].base_offset) if following else end_offset
                return segments[number], end
        return segments[0], min(end_offset, segments[0].base_offset + 1)

    def _note_gaps(self, base_offset: int, gaps: list[Gap]) -> None:
        for gap in gaps:
            if (base_offset, gap) in self._gaps_seen:
                continue
            self._gaps_seen.add((base_offset, gap))
            self.damaged_bytes += gap.end - gap.position
            self.damage = (
                f"{self.damaged_bytes} bytes in {len(self._gaps_seen)} places can't be read, the "
                f"latest in segment {base_offset} at byte {gap.position}; readers go on behind them"
            )
            log.error("partition %s is damaged: %s", self.name, self.damage)
