"""One Consume stream: a reader that obeys requests, and a pump that delivers.

The pump is the only one that writes. It goes round the partitions that the member holds:
repeats that fell due first, then what is new, as far as credit and the group's window
reach. It sleeps until a commit, a request or a deadline wakes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc.aio

from gputel import limits
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker.deadletters import DeadLetters
from gputel.broker.engine import PartitionLog, Record, TopicLog
from gputel.broker.groups import Cursor, Group, Member
from gputel.clock import NS_PER_MS, NS_PER_S, Clock
from gputel.errors import GputelError, InputError

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[mq.ConsumeRequest, mq.ConsumeResponse]
Requests = AsyncIterator[mq.ConsumeRequest]

READ_MESSAGES_MAX = 256


class LeaseExpired(GputelError):
    """A member that was silent for so long that its partitions went to others."""


class GroupState:
    """A group, the streams of its members, and whether its positions need saving."""

    def __init__(self, topic: TopicLog, name: str, positions: dict[int, int]) -> None:
        self.topic = topic
        self.name = name
        self.group = Group(len(topic.partitions))
        self.saved = dict(positions)
        self.streams: dict[Member, ConsumeStream] = {}
        self.lost = 0  # unsettled messages that retention took away
        self.rewound = 0  # positions beyond the end of the log

    def cursor(self, partition: int, start_at: int) -> Cursor:
        """The cursor of a partition; a new group begins where `start_at` says."""
        cursor = self.group.cursors.get(partition)
        if cursor is None:
            plog = self.topic.partitions[partition]
            latest = start_at == mq.START_AT_LATEST
            floor = plog.next_offset if latest else plog.first_offset
            if partition in self.saved:
                floor = self.existing(partition, self.saved[partition])
            cursor = self.group.cursors[partition] = Cursor(floor)
        return cursor

    def existing(self, partition: int, offset: int) -> int:
        """`offset`, or the first one kept when the log does not reach that far.

        Such an offset is of a log that is gone. To wait for the new log to reach it would
        skip everything until then.
        """
        plog = self.topic.partitions[partition]
        if offset <= plog.next_offset:
            return offset
        self.rewound += 1
        log.warning(
            "group %s: offset %d of %s/%d is beyond the log's end at %d; going on at %d",
            self.name,
            offset,
            self.topic.name,
            partition,
            plog.next_offset,
            plog.first_offset,
        )
        return plog.first_offset

    def positions(self) -> dict[int, int]:
        """Every partition's floor."""
        return {**self.saved, **{p: c.floor for p, c in self.group.cursors.items()}}

    def join(self, member: Member, stream: ConsumeStream) -> None:
        """A member has come."""
        self.streams[member] = stream
        self._tell(self.group.join(member))

    def leave(self, member: Member) -> None:
        """A member has gone."""
        self.streams.pop(member, None)
        self._tell(self.group.leave(member))

    def _tell(self, changed: list[Member]) -> None:
        for member in changed:
            stream = self.streams.get(member)
            if stream is not None:
                stream.assignment_changed()


class ConsumeStream:
    """Serves one consumer until its stream ends."""

    def __init__(
        self,
        state: GroupState,
        member: Member,
        request: mq.ConsumeOpen,
        *,
        observer: bool,
        dead_letters: DeadLetters,
        max_deliver: int,
        clock: Clock,
        context: Context,
    ) -> None:
        self._state = state
        self._member = member
        self._observer = observer
        self._dead_letters = dead_letters
        self._max_deliver = request.max_deliver or max_deliver
        self._ack_timeout_ns = (request.ack_timeout_ms or 30_000) * NS_PER_MS
        self._start_at = request.start_at
        self._clock = clock
        self._context = context
        self._wake = asyncio.Event()
        self._tell_assignment = False
        self._evicted = asyncio.Event()
        self.delivered = 0
        self.delivered_bytes = 0

    def assignment_changed(self) -> None:
        """The pump tells the member."""
        self._tell_assignment = True
        self._wake.set()

    def evict(self) -> None:
        """The member's lease is over: its stream ends with a status, so that it comes again.

        Cancelling the stream's task would not do: gRPC then sends no status.
        """
        self._state.leave(self._member)
        self._evicted.set()

    async def serve(self, requests: Requests) -> None:
        """Return when the consumer has gone; GputelError when it must be refused."""
        logs = self._state.topic.partitions
        await self._context.write(
            mq.ConsumeResponse(
                opened=mq.ConsumeOpened(partitions=len(logs), member=self._member.name)
            )
        )
        for plog in logs:
            plog.watch(self._wake.set)
        self._state.join(self._member, self)
        pump = asyncio.create_task(self._pump(), name=f"consume-{self._member.name}")
        reader = asyncio.create_task(self._read(requests), name="consume-reader")
        evicted = asyncio.create_task(self._evicted.wait(), name="consume-lease")
        tasks: set[asyncio.Task[Any]] = {pump, reader, evicted}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if evicted.done():
                raise LeaseExpired(f"{self._member.name}: the lease is over after a long silence")
            for task in (reader, pump):
                if task.done():
                    task.result()
        finally:
            # Before anything is awaited: a second cancellation would end this clause there, and
            # a member that has gone would keep its partitions.
            self._state.leave(self._member)
            for plog in logs:
                plog.unwatch(self._wake.set)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # -- requests ----------------------------------------------------------------------

    async def _read(self, requests: Requests) -> None:
        async for request in requests:
            now_ns = self._clock.monotonic_ns()
            self._member.last_seen_ns = now_ns
            await self._obey(request, now_ns)
            self._wake.set()

    async def _obey(self, request: mq.ConsumeRequest, now_ns: int) -> None:
        match request.WhichOneof("request"):
            case "credit":
                self._member.credit_messages += request.credit.messages
                self._member.credit_bytes += request.credit.bytes
            case "ack":
                for part in request.ack.offsets:
                    if cursor := self._held(part.partition):
                        for offset in part.offsets:
                            cursor.ack(offset)
            case "nak":
                if cursor := self._held(request.nak.partition):
                    cursor.nak(request.nak.offset, request.nak.delay_ms * NS_PER_MS, now_ns)
            case "in_progress":
                for part in request.in_progress.offsets:
                    if cursor := self._held(part.partition):
                        for offset in part.offsets:
                            cursor.in_progress(offset, now_ns)
            case "term":
                await self._give_up(request.term)
            case "position":
                self._activate(request.position)
            case _:
                raise InputError("a stream is opened once, and by a known request")

    def _held(self, partition: int) -> Cursor | None:
        """The cursor of a partition that this member holds; late words about others are moot."""
        if partition not in self._member.active:
            return None
        return self._state.group.cursors.get(partition)

    async def _give_up(self, term: mq.Term) -> None:
        cursor = self._held(term.partition)
        if cursor is None or cursor.is_settled(term.offset):
            return
        chunk = await self._state.topic.partitions[term.partition].read(term.offset, 1, 1)
        for record in chunk.records:
            if record.offset == term.offset:
                await self._bury(term.partition, record, cursor, term.reason or "given up")

    def _activate(self, position: mq.Position) -> None:
        partition = position.partition
        if (
            partition not in self._member.partitions
            or position.generation < self._state.group.since.get(partition, 0)
        ):
            return
        cursor = self._state.cursor(partition, self._start_at)
        cursor.ack_timeout_ns = self._ack_timeout_ns
        if position.HasField("next_offset"):
            cursor.seek(self._state.existing(partition, position.next_offset))
        self._member.active.add(partition)

    # -- deliveries --------------------------------------------------------------------

    async def _pump(self) -> None:
        while True:
            self._wake.clear()
            if self._tell_assignment:
                self._tell_assignment = False
                await self._context.write(
                    mq.ConsumeResponse(
                        assignment=mq.Assignment(
                            partitions=sorted(self._member.partitions),
                            generation=self._state.group.generation,
                        )
                    )
                )
            progressed = False
            for partition in sorted(self._member.active):
                if self._member.has_credit and not self._tell_assignment:
                    progressed |= await self._deliver(partition)
            if not progressed and not self._wake.is_set():
                await self._sleep()

    async def _sleep(self) -> None:
        """Until something wakes the pump, or a delivery falls due by itself."""
        wakes = [
            when
            for partition in self._member.active
            if (cursor := self._held(partition)) and (when := cursor.wake_ns()) is not None
        ]
        timeout_s = None
        if wakes:
            timeout_s = max(0.001, (min(wakes) - self._clock.monotonic_ns()) / NS_PER_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()

    async def _deliver(self, partition: int) -> bool:
        """One batch of a partition; was there anything?"""
        cursor = self._held(partition)
        if cursor is None:
            return False
        plog = self._state.topic.partitions[partition]
        now_ns = self._clock.monotonic_ns()
        cursor.expire(now_ns)
        again = cursor.due(now_ns)
        if again is not None:
            chunk = await plog.read(again, 1, limits.BATCH_BYTES_MAX)
            if self._held(partition) is not cursor or not cursor.floor <= again < cursor.fresh:
                return True  # taken away or moved while we read
            if not chunk.records or chunk.records[0].offset != again:
                self._jump(partition, cursor, plog, min(chunk.next_offset, cursor.fresh))
                return True
            return await self._send(partition, cursor, chunk.records)
        if cursor.window_full or cursor.fresh >= plog.next_offset:
            return False
        start = cursor.fresh
        bytes_max = min(limits.BATCH_BYTES_MAX, max(1, self._member.credit_bytes))
        messages_max = min(READ_MESSAGES_MAX, self._member.credit_messages)
        chunk = await plog.read(start, messages_max, bytes_max)
        if self._held(partition) is not cursor or cursor.fresh != start:
            return True  # taken away or moved while we read
        first = chunk.records[0].offset if chunk.records else chunk.next_offset
        if first > start:
            self._jump(partition, cursor, plog, first)
        if not chunk.records:
            return first > start
        return await self._send(partition, cursor, chunk.records)

    def _jump(self, partition: int, cursor: Cursor, plog: PartitionLog, offset: int) -> None:
        lost = cursor.skip_to(offset)
        if lost and not self._observer:
            self._state.lost += lost
            log.warning(
                "group %s: %d messages of %s/%d before offset %d are gone (retention or damage)",
                self._state.name,
                lost,
                self._state.topic.name,
                partition,
                offset,
            )

    async def _send(self, partition: int, cursor: Cursor, records: Sequence[Record]) -> bool:
        batch = mq.DeliveryBatch()
        now_ns = self._clock.monotonic_ns()
        for record in records:
            if cursor.is_settled(record.offset):
                cursor.fresh = max(cursor.fresh, record.offset + 1)
                continue
            if not self._member.has_credit:
                break
            if not self._observer and cursor.attempt(record.offset) >= self._max_deliver:
                reason = f"delivered {self._max_deliver} times, never acknowledged"
                await self._bury(partition, record, cursor, reason)
                continue
            attempt = cursor.deliver(record.offset, now_ns)
            self._member.spend(len(record.payload))
            self.delivered += 1
            self.delivered_bytes += len(record.payload)
            batch.deliveries.add(
                partition=partition,
                offset=record.offset,
                stored_at_ns=record.stored_at_ns,
                attempt=attempt,
                producer=record.producer,
                epoch=record.epoch,
                sequence=record.sequence,
                payload=record.payload,
            )
            if self._observer:
                cursor.ack(record.offset)
        if batch.deliveries:
            await self._context.write(mq.ConsumeResponse(batch=batch))
        return True

    async def _bury(self, partition: int, record: Record, cursor: Cursor, reason: str) -> None:
        attempts = cursor.attempt(record.offset)
        cursor.in_progress(record.offset, self._clock.monotonic_ns())
        await self._dead_letters.store(
            self._state.topic.name, partition, self._state.name, record, reason, attempts
        )
        cursor.fresh = max(cursor.fresh, record.offset + 1)
        cursor.ack(record.offset)
