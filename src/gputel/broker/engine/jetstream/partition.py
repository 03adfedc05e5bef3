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
from collections.abc import Callable, Sequence
from typing import Any, Final

from gputel import limits
from gputel.broker.background import Background
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
from gputel.broker.engine.jetstream.reader import Block, Blocks, Reader
from gputel.broker.engine.jetstream.writer import Sent, Writer
from gputel.broker.engine.memory import Backlog
from gputel.broker.engine.producers import Mark, Producers
from gputel.clock import Clock
from gputel.errors import BrokerUnavailable, LogCorrupt

log = logging.getLogger(__name__)

FOLD_BYTES: Final = 8 * limits.MIB
FOLD_BLOCKS: Final = 1024
#: What a server stores of a block beside its payload and head: subject, other headers, its own.
STORED_BYTES: Final = 150
#: A stream that ends before what is known to be stored is looked at so often before it is
#: believed: its leader may have begun just now.
SHORT_LOOKS: Final = 10
SHORT_LOOK_S: Final = 0.5


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
        background: Background,
        clock: Clock,
        backlog: Backlog,
        blocks: Blocks,
        writer_name: str,
    ) -> None:
        self.index = index
        self.name = f"{topic}/{index}"
        self.stream = stream
        self.failure = ""
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
        self._background = background
        self._clock = clock
        self._backlog = backlog
        self._reader = Reader(self.name, stream, subject, cluster, blocks)
        self._writer_name = writer_name
        self._first_known = 0  # the sequence that `first_offset` was learned from
        self._sizes = Chart()  # the bytes that were seen before a block
        self._seen_bytes = 0
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
    def damage(self) -> str:
        return self._reader.damage

    @property
    def damaged_bytes(self) -> int:
        return self._reader.damaged_bytes

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
        saved = await self._marks.load(self.durable)
        state = await self._cluster.state(self.stream)
        for _ in range(SHORT_LOOKS):
            if saved.sequence <= state.last_sequence:
                break
            await self._clock.sleep(SHORT_LOOK_S)
            state = await self._cluster.state(self.stream)
        if saved.sequence > state.last_sequence:
            self.failure = (
                f"stream {self.stream} ends at {state.last_sequence}, and {saved.sequence} blocks "
                "were acknowledged: it was deleted or put back; restore it, or remove the "
                f"keys marks.* and topic.* of {self.name} from the bucket to begin anew"
            )
            log.error("partition %s takes no more messages: %s", self.name, self.failure)
        else:
            self.tip, self.next_offset = saved.sequence, saved.next_offset
            if not state.messages:
                self._pass_to(state.last_sequence)
                self.first_offset = self.next_offset
            elif self.tip == state.last_sequence:
                await self._take_last()
            else:
                self._pass_to(max(self.tip, state.first_sequence - 1))
                await self._fold_to(state.last_sequence)
        await self._note(state)
        self._writer = Writer(
            self, self.subject, self._cluster, self._clock, self._backlog, self._writer_name
        )
        if not self.failure:
            self._writing = self._background.start(self._writer.run(), f"writer-{self.name}")

    def _pass_to(self, sequence: int) -> None:
        """The blocks up to `sequence` went unseen: whatever they held, no offset is used twice."""
        self.next_offset += (sequence - self.tip) * block.BLOCK_MESSAGES_MAX
        self.tip = sequence

    async def _take_last(self) -> None:
        """All blocks are known; when the last one was stored, and its size, is not."""
        found, _ = await self._reader.fetch(self.tip, 1, 1)
        if found:
            self.newest_ns = found[0].head.stored_at_ns
            self._sizes.add(self.tip, self._seen_bytes)
            self._seen_bytes += found[0].size_bytes + STORED_BYTES

    async def close(self) -> None:
        """Stop writing and following."""
        if self._writing is not None:
            await self._background.stop(self._writing)
        every = (self._follower, self._look, self._next_look)
        tasks = [task for task in every if task is not None]
        for task in tasks:
            task.cancel()
        if self._writer is not None:
            self._writer.close()
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
        known = self.tip
        state = await self._ask(timeout_s)
        if state.last_sequence < known:
            # A new leader may not have applied all yet; a stream that stays so was put back.
            raise BrokerUnavailable(
                f"stream {self.stream} ends at {state.last_sequence} now, and at {known} before"
            )
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
        self._sizes.drop_below(state.first_sequence)
        first = await self._reader.begin_at(state.first_sequence, self.tip)
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
            if self.tip >= self._reader.first_sequence:
                log.warning(
                    "partition %s: %d blocks went before this broker saw them",
                    self.name,
                    stored.sequence - self.tip - 1,
                )
            self._pass_to(stored.sequence - 1)
        try:
            head = Head.decode(stored.headers.get(block.HEAD))
        except LogCorrupt as error:
            # Not ours: it takes an offset of its own, and readers pass it by.
            self._reader.note_damage(stored.sequence, len(stored.data), str(error))
            head = Head("", self.tip, self.next_offset, 1, self.newest_ns, ())
        size_bytes = len(stored.data) + len(stored.headers.get(block.HEAD, "")) + STORED_BYTES
        self.fold(stored.sequence, head, size_bytes)

    def fold(self, sequence: int, head: Head, size_bytes: int) -> None:
        """The stream's `sequence` is the block `head`. What is known already is ignored."""
        if sequence <= self.tip:
            return
        if sequence > self.tip + 1:
            self.follow(sequence)
            return
        if head.after != self.tip:
            log.warning("partition %s: block %d is out of place: passed by", self.name, sequence)
            head = Head("", self.tip, self.next_offset, 0, self.newest_ns, ())
        self.tip = sequence
        self.next_offset = head.end
        self.newest_ns = max(self.newest_ns, head.stored_at_ns)
        if head.id:
            self._reader.note(sequence, head)
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
        self._reader.keep(Block(sent.sequence, sent.head, sent.payload))
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
        """See `PartitionLog.read`."""
        offset = max(offset, self.first_offset)
        if offset >= self.next_offset:
            return Chunk((), offset)
        # As they are now: what is stored while the cluster is asked is there to be read.
        tip, end_offset = self.tip, self.next_offset
        chunk = await self._reader.read(offset, tip, end_offset, messages_max, bytes_max)
        if chunk is not None:
            return chunk
        state = await self._cluster.state(self.stream)
        if state.messages or state.last_sequence < tip:
            # To pass by what is there, or what a new leader has not applied yet, would lose it.
            raise BrokerUnavailable(f"partition {self.name}: offset {offset} can't be read now")
        return Chunk((), end_offset)

    async def offset_at(self, time_ns: int) -> int:
        """See `PartitionLog.offset_at`."""
        if self.newest_ns < time_ns or not self.tip:
            return self.next_offset
        found = await self._reader.offset_at(time_ns, self.tip, self.next_offset)
        return max(found, self.first_offset)

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
        if keep > self._reader.first_sequence:
            await self._cluster.call(f"STREAM.PURGE.{self.stream}", {"seq": keep})
            await self.catch_up()

    async def save_marks(self) -> None:
        """Keep what is known of the producers, so that a start need not read the whole log."""
        if self._marks.stale:
            await self._marks.save(self.durable, self.tip, self.next_offset)

    async def _keep_by_age(self, stored_after_ns: int) -> int:
        """The first block that is young enough."""
        oldest_ns = self._reader.times.get(self._reader.first_sequence)
        if oldest_ns is None or oldest_ns > stored_after_ns:
            return self._reader.first_sequence
        return await self._reader.search(self._reader.times, stored_after_ns, self.tip) + 1

    def _keep_by_size(self, bytes_max: int) -> int:
        """The first block that need not go; rather one too early than too late.

        The sizes of blocks from before this broker's start are taken to be alike.
        """
        excess_bytes = self.size_bytes - bytes_max
        known = self._sizes.first_beyond(-1)
        if excess_bytes <= 0 or known is None:
            return self._reader.first_sequence
        before = self._sizes.get(known) or 0
        unknown_bytes = max(self.size_bytes - (self._seen_bytes - before), 0)
        unknown = known - self._reader.first_sequence
        if unknown and excess_bytes < unknown_bytes:
            return self._reader.first_sequence + excess_bytes * unknown // unknown_bytes
        rest_bytes = excess_bytes - (unknown_bytes if unknown else 0)
        return self._sizes.last_at_most(before + rest_bytes) or known
