"""One partition: a stream of blocks, as this broker knows it.

    first                                            tip
      |  blocks, each with its offsets and its time    |
      +------------------------------------------------+--> the writer's chain

The servers repeat every block's headers to all brokers (`republish`), so each knows what the
others have stored; what it missed it reads. Payloads are read when somebody wants them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final

from gputel import limits
from gputel.broker.engine import Chunk, Message, PartitionFailed
from gputel.broker.engine.jetstream import block
from gputel.broker.engine.jetstream.block import Head
from gputel.broker.engine.jetstream.chart import Chart
from gputel.broker.engine.jetstream.cluster import (
    REQUEST_S,
    Cluster,
    Stored,
    StreamState,
)
from gputel.broker.engine.jetstream.marks import Marks
from gputel.broker.engine.jetstream.writer import Sent, Writer
from gputel.broker.engine.memory import Backlog
from gputel.broker.engine.producers import Mark, Producers
from gputel.broker.engine.record import Record
from gputel.clock import Clock
from gputel.errors import BrokerUnavailable, LogCorrupt

log = logging.getLogger(__name__)

READ_BYTES: Final = 2 * limits.MIB
READ_BLOCKS: Final = 512
FOLD_BYTES: Final = 8 * limits.MIB
FOLD_BLOCKS: Final = 1024
#: What a server stores of a block beside its payload and head: subject, other headers, its own.
STORED_BYTES: Final = 150


class Block:
    """A stored block; decoded when it is first looked into."""

    def __init__(self, sequence: int, head: Head, payload: bytes) -> None:
        self.sequence = sequence
        self.head = head
        self.size_bytes = len(payload)
        self._payload = payload
        self._records: list[Record] | None = None

    @property
    def records(self) -> list[Record]:
        """The messages. LogCorrupt."""
        if self._records is None:
            self._records = block.decode(self.head, self._payload)
            self._payload = b""
        return self._records


class Blocks:
    """The blocks that were read or written last, of all partitions, bounded in bytes."""

    def __init__(self, bytes_max: int = limits.TAIL_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._kept: OrderedDict[tuple[str, int], Block] = OrderedDict()
        self._size_bytes = 0

    def add(self, stream: str, block: Block) -> None:
        """Keep a block."""
        key = (stream, block.sequence)
        if key in self._kept:
            return
        self._kept[key] = block
        self._size_bytes += block.size_bytes
        while self._size_bytes > self._bytes_max:
            _, oldest = self._kept.popitem(last=False)
            self._size_bytes -= oldest.size_bytes

    def get(self, stream: str, sequence: int) -> Block | None:
        """The block, if it is kept."""
        found = self._kept.get((stream, sequence))
        if found is not None:
            self._kept.move_to_end((stream, sequence))
        return found


class Partition:
    """See `PartitionLog`."""

    def __init__(
        self,
        topic: str,
        index: int,
        stream: str,
        subject: str,
        cluster: Cluster,
        marks: Marks,
        *,
        clock: Clock,
        backlog: Backlog,
        blocks: Blocks,
        writer_name: str,
    ) -> None:
        self.index = index
        self.name = f"{topic}/{index}"
        self.stream = stream
        self.failure = ""
        self.damage = ""
        self.damaged_bytes = 0
        self.size_bytes = 0
        self.segments = 0
        self.first_offset = 0
        self.next_offset = 0
        self.tip = 0
        self.newest_ns = 0
        self.durable = Producers()
        self.subject = subject
        self._cluster = cluster
        self._marks = marks
        self._clock = clock
        self._backlog = backlog
        self._blocks = blocks
        self._writer_name = writer_name
        self._first_sequence = 1
        self._first_known = 0  # the sequence that `first_offset` was learned from
        self._offsets = Chart()
        self._times = Chart()
        self._sizes = Chart()  # the bytes that were seen before a block
        self._seen_bytes = 0
        self._damaged: set[int] = set()
        self._watchers: set[Callable[[], None]] = set()
        self._catching_up = asyncio.Lock()
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._look: asyncio.Task[None] | None = None
        self._next_look: asyncio.Task[None] | None = None
        self._follower: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._writer: Writer | None = None

    @property
    def writer(self) -> Writer:
        """The writing end; there is one once the partition is open."""
        assert self._writer is not None
        return self._writer

    @property
    def watched(self) -> bool:
        """Whether anybody reads or writes here now."""
        return bool(self._watchers) or not self.writer.idle

    @property
    def pending_bytes(self) -> int:
        return self.writer.pending_bytes

    @property
    def duplicates(self) -> int:
        return self.writer.duplicates

    @property
    def messages_in(self) -> int:
        return self.writer.messages_in

    @property
    def bytes_in(self) -> int:
        return self.writer.bytes_in

    # -- opening, following ------------------------------------------------------------

    async def open(self) -> None:
        """Learn what the stream holds and begin to write. BrokerUnavailable."""
        state = await self._cluster.state(self.stream)
        saved = await self._marks.load(self.durable)
        if saved.sequence > state.last_sequence:
            self.failure = (
                f"stream {self.stream} ends at {state.last_sequence}, and {saved.sequence} blocks "
                "were acknowledged: it was deleted or put back; restore it, or remove the "
                f"keys marks.* and topic.* of {self.name} from the bucket to begin anew"
            )
            log.error("partition %s takes no more messages: %s", self.name, self.failure)
        elif not state.messages:
            # Purged by hand: no offset is used twice.
            unknown = state.last_sequence - saved.sequence
            self.next_offset = saved.next_offset + unknown * block.BLOCK_MESSAGES_MAX
            self.first_offset = self.next_offset
            self.tip = state.last_sequence
        else:
            # At least the last block is read: when it was stored matters.
            self.tip = max(saved.sequence, state.first_sequence - 1)
            self.tip = min(self.tip, state.last_sequence - 1)
            await self._fold_to(state.last_sequence)
        await self._note(state)
        self._writer = Writer(
            self, self.subject, self._cluster, self._clock, self._backlog, self._writer_name
        )
        if not self.failure:
            self._writing = asyncio.create_task(self._writer.run(), name=f"writer-{self.name}")

    async def close(self) -> None:
        """Stop writing and following."""
        every = (self._writing, self._follower, self._look, self._next_look)
        tasks = [task for task in every if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def catch_up(self, timeout_s: float = REQUEST_S) -> None:
        """See `PartitionLog.catch_up`.

        Those who ask while a question is on its way share the next one: a thousand producers
        that come from a broker that died ask the cluster twice.
        """
        if self.failure:
            return
        if self._next_look is None:
            self._next_look = asyncio.create_task(self._look_after(self._look, timeout_s))
            self._next_look.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._next_look)

    async def _look_after(self, last: asyncio.Task[None] | None, timeout_s: float) -> None:
        if last is not None:
            await asyncio.wait({last})
        self._look, self._next_look = self._next_look, None
        state = await self._ask(timeout_s)
        await self._fold_to(state.last_sequence)
        await self._note(state)

    async def _ask(self, timeout_s: float) -> StreamState:
        """What the stream holds; asked anew when there is a new leader, the old one is silent."""
        while True:
            changed = self._changed
            asking = asyncio.ensure_future(self._cluster.state(self.stream, timeout_s=timeout_s))
            try:
                both: set[asyncio.Future[Any]] = {asking, changed}
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if asking.done():
                    return asking.result()
            finally:
                asking.cancel()

    async def _note(self, state: StreamState) -> None:
        """Take what a stream's leader has said of it."""
        self.size_bytes = state.size_bytes
        self.segments = state.messages
        if not state.messages or state.first_sequence == self._first_known:
            return
        self._first_sequence = state.first_sequence
        self._offsets.drop_below(self._first_sequence)
        self._times.drop_below(self._first_sequence)
        self._sizes.drop_below(self._first_sequence)
        first = self._offsets.get(self._first_sequence)
        if first is None or self._times.get(self._first_sequence) is None:
            found = await self._fetch(self._first_sequence, 1, 1)
            first = found[0].head.base if found else None
        if first is not None:
            self._first_known = state.first_sequence
            self.first_offset = max(first, self.first_offset)

    async def _fold_to(self, last_sequence: int) -> None:
        """Know of all blocks up to `last_sequence`."""
        async with self._catching_up:
            while self.tip < last_sequence:
                found = await self._cluster.read(
                    self.stream, self.subject, self.tip + 1, FOLD_BLOCKS, FOLD_BYTES
                )
                if not found:
                    raise BrokerUnavailable(f"stream {self.stream} has no block {self.tip + 1} yet")
                for stored in found:
                    self._fold_stored(stored)

    def _fold_stored(self, stored: Stored) -> None:
        if stored.sequence <= self.tip:
            return
        if stored.sequence > self.tip + 1:
            if self.tip >= self._first_sequence:
                log.warning(
                    "partition %s: %d blocks went before this broker saw them",
                    self.name,
                    stored.sequence - self.tip - 1,
                )
            self.tip = stored.sequence - 1
            self.next_offset = 0
        try:
            head = Head.decode(stored.headers.get(block.HEAD))
        except LogCorrupt as error:
            # Not ours: it takes an offset of its own, and readers pass it by.
            self._note_damage(stored.sequence, len(stored.data), str(error))
            head = Head("", self.next_offset, 1, self.newest_ns, ())
        size_bytes = len(stored.data) + len(stored.headers.get(block.HEAD, "")) + STORED_BYTES
        self.fold(stored.sequence, head, size_bytes)

    def fold(self, sequence: int, head: Head, size_bytes: int) -> None:
        """The stream's `sequence` is the block `head`. What is known already is ignored."""
        if sequence <= self.tip:
            return
        if sequence > self.tip + 1:
            self.follow(sequence)
            return
        self.tip = sequence
        self.next_offset = head.end
        self.newest_ns = max(self.newest_ns, head.stored_at_ns)
        self._offsets.add(sequence, head.base)
        self._times.add(sequence, head.stored_at_ns)
        self._sizes.add(sequence, self._seen_bytes)
        self._seen_bytes += size_bytes
        for producer, epoch, last in head.marks:
            self.durable.rebuild(producer, Mark(epoch, last, 0))
            self._marks.touch(producer)
        self._marks.grow(size_bytes)
        if self._writer is not None:
            self._writer.folded(sequence, head)
        self.notify()

    def follow(self, sequence: int) -> None:
        """Blocks up to `sequence` are there: read those that are not known."""
        if self._follower is None or self._follower.done():
            self._follower = asyncio.create_task(
                self._follow(sequence), name=f"follower-{self.name}"
            )

    async def _follow(self, sequence: int) -> None:
        # What fails is tried again with the next block, or the next look at the stream.
        with contextlib.suppress(BrokerUnavailable):
            await self._fold_to(sequence)

    def stored(self, sent: Sent) -> None:
        """See `writer.Log`."""
        self._blocks.add(self.stream, Block(sent.sequence, sent.head, sent.payload))
        size_bytes = len(sent.payload) + len(sent.head.encode()) + STORED_BYTES
        self.fold(sent.sequence, sent.head, size_bytes)

    def interrupt(self) -> None:
        """The stream's leader, or the connection, has changed."""
        if not self._changed.done():
            self._changed.set_result(None)
        self._changed = asyncio.get_running_loop().create_future()
        if self._writer is not None:
            self._writer.interrupt()

    # -- the log -----------------------------------------------------------------------

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
        """See `PartitionLog.append`."""
        message = Message(sequence, key, payload)
        return self.extend(producer, epoch, (message,), repeatable=repeatable)

    def extend(
        self, producer: str, epoch: int, messages: Sequence[Message], *, repeatable: bool = True
    ) -> int:
        """See `PartitionLog.extend`."""
        if self.failure:
            raise PartitionFailed(f"partition {self.name}: {self.failure}")
        return self.writer.accept(producer, epoch, messages, repeatable=repeatable)

    def is_durable(self, ticket: int) -> bool:
        return self.writer.is_durable(ticket)

    def watch(self, changed: Callable[[], None]) -> None:
        self._watchers.add(changed)

    def unwatch(self, changed: Callable[[], None]) -> None:
        self._watchers.discard(changed)

    def notify(self) -> None:
        """Tell the watchers."""
        for changed in tuple(self._watchers):
            changed()

    # -- reading -----------------------------------------------------------------------

    async def read(self, offset: int, messages_max: int, bytes_max: int) -> Chunk:
        """See `PartitionLog.read`. Neighbouring blocks are read ahead and kept for a while."""
        offset = max(offset, self.first_offset)
        if offset >= self.next_offset:
            return Chunk((), offset)
        sequence = await self._locate(offset)
        records: list[Record] = []
        taken_bytes = 0
        while sequence <= self.tip:
            found = self._blocks.get(self.stream, sequence)
            if found is None:
                if records:  # it is not worth a wait
                    break
                found = await self._block(sequence)
                if found is None:
                    return Chunk((), self.next_offset)
            for record in self._records(found):
                if record.offset < offset:
                    continue
                taken_bytes += len(record.payload)
                if records and (taken_bytes > bytes_max or len(records) >= messages_max):
                    return Chunk(records, offset)
                records.append(record)
                offset = record.offset + 1
            offset = max(offset, found.head.end)
            sequence = found.sequence + 1
            if taken_bytes >= bytes_max or len(records) >= messages_max:
                break
        return Chunk(records, offset)

    def _records(self, of: Block) -> Sequence[Record]:
        try:
            return of.records
        except LogCorrupt as error:
            self._note_damage(of.sequence, of.size_bytes, str(error))
            return ()

    async def _block(self, sequence: int) -> Block | None:
        """The block at `sequence`, or the first one behind it that is kept."""
        found = await self._fetch(sequence, READ_BLOCKS, READ_BYTES)
        return found[0] if found else None

    async def _fetch(self, sequence: int, messages: int, size_bytes: int) -> list[Block]:
        stored = await self._cluster.read(self.stream, self.subject, sequence, messages, size_bytes)
        blocks: list[Block] = []
        for each in stored:
            try:
                head = Head.decode(each.headers.get(block.HEAD))
            except LogCorrupt as error:
                self._note_damage(each.sequence, len(each.data), str(error))
                continue
            self._offsets.add(each.sequence, head.base)
            self._times.add(each.sequence, head.stored_at_ns)
            blocks.append(Block(each.sequence, head, each.data))
            self._blocks.add(self.stream, blocks[-1])
        return blocks

    async def _locate(self, offset: int) -> int:
        """The sequence of the block that holds `offset`, or of one before it that is gone."""
        return await self._search(self._offsets, offset)

    async def _search(self, chart: Chart, value: int) -> int:
        """The last block whose value is at most `value`; the first when there is none."""
        while True:
            low = chart.last_at_most(value)
            high = chart.first_beyond(value) or self.tip + 1
            if low is not None and high <= low + 1:
                return low
            if low is None and high <= self._first_sequence:
                return high
            middle = self._first_sequence if low is None else (low + high) // 2
            found = await self._fetch(middle, 1, 1)
            if not found or found[0].sequence >= high:
                return high if low is None else low

    async def offset_at(self, time_ns: int) -> int:
        """See `PartitionLog.offset_at`."""
        if self.newest_ns < time_ns or not self.tip:
            return self.next_offset
        at = await self._search(self._times, time_ns - 1)
        found = self._blocks.get(self.stream, at) or await self._block(at)
        if found is None:
            return self.next_offset
        if found.head.stored_at_ns < time_ns:
            return max(found.head.end, self.first_offset)
        return max(found.head.base, self.first_offset)

    def _note_damage(self, sequence: int, size_bytes: int, reason: str) -> None:
        if sequence in self._damaged:
            return
        self._damaged.add(sequence)
        self.damaged_bytes += size_bytes
        self.damage = (
            f"{self.damaged_bytes} bytes in {len(self._damaged)} blocks can't be read, the latest "
            f"at sequence {sequence} of stream {self.stream} ({reason}); readers go on behind them"
        )
        log.error("partition %s is damaged: %s", self.name, self.damage)

    # -- housekeeping ------------------------------------------------------------------

    async def tend(self, bytes_max: int, stored_after_ns: int) -> None:
        """Look at the stream, save the producers' marks when it is time, let old blocks go."""
        if self.failure:
            return
        await self.catch_up()
        if self._marks.due:
            await self.save_marks()
        keep = max(await self._keep_by_age(stored_after_ns), self._keep_by_size(bytes_max))
        # The last block stays for ever: it says which offset is next.
        keep = min(keep, self.tip)
        if keep > self._first_sequence:
            await self._cluster.call(f"STREAM.PURGE.{self.stream}", {"seq": keep})
            await self.catch_up()

    async def save_marks(self) -> None:
        """Keep what is known of the producers, so that a start need not read the whole log."""
        if self._marks.stale:
            await self._marks.save(self.durable, self.tip, self.next_offset)

    async def _keep_by_age(self, stored_after_ns: int) -> int:
        """The first block that is young enough."""
        oldest_ns = self._times.get(self._first_sequence)
        if oldest_ns is None or oldest_ns > stored_after_ns:
            return self._first_sequence
        return await self._search(self._times, stored_after_ns) + 1

    def _keep_by_size(self, bytes_max: int) -> int:
        """The first block that need not go; rather one too early than too late.

        The sizes of blocks from before this broker's start are taken to be alike.
        """
        excess_bytes = self.size_bytes - bytes_max
        known = self._sizes.first_beyond(-1)
        if excess_bytes <= 0 or known is None:
            return self._first_sequence
        before = self._sizes.get(known) or 0
        unknown_bytes = max(self.size_bytes - (self._seen_bytes - before), 0)
        unknown = known - self._first_sequence
        if unknown and excess_bytes < unknown_bytes:
            return self._first_sequence + excess_bytes * unknown // unknown_bytes
        rest_bytes = excess_bytes - (unknown_bytes if unknown else 0)
        return self._sizes.last_at_most(before + rest_bytes) or known
