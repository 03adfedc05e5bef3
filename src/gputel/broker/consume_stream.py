"""One consumer's stream: requests in, deliveries out.

    reader     context.read -> credit, acks, positions -> the group
    deliverer  the group's cursors -> partition.read -> DeliveryBatch

Messages are read when there is credit for them and not before, so a slow consumer holds
little memory (`read_ahead.py` bounds it), and nobody waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import grpc.aio

from gputel import kernels, limits
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker.cursor import Cursor
from gputel.broker.engine import Chunk, PartitionLog, Record
from gputel.broker.groups import Group, Member
from gputel.broker.read_ahead import ReadAhead, Room
from gputel.broker.statuses import Context, LeaseLost
from gputel.clock import Clock
from gputel.errors import BrokerUnavailable, InputError

log = logging.getLogger(__name__)

_TURNS_AHEAD: Final = 8
_DELIVERY_BYTES: Final = 64  # what a delivery's fields take beside its names and payload


class ConsumeStream:
    """Serves one Consume call behind its `open`. `run` raises GputelError for an early end."""

    def __init__(
        self,
        context: Context,
        group: Group,
        logs: Sequence[PartitionLog],
        open_: mq.ConsumeOpen,
        name: str,
        max_deliver: int,
        clock: Clock,
        room: Room,
    ) -> None:
        self._context = context
        self._group = group
        self._logs = logs
        self._ahead = ReadAhead(logs, room)
        self._clock = clock
        self._wake = asyncio.Event()
        # One object: the partitions' watchers are told apart by it.
        self._changed: Callable[[], None] = self._wake.set
        self._watched: set[int] = set()
        self._announced = 0
        #: Partition -> since when the consumer was told to have it; see `Member.since`.
        self._told: dict[int, int] = {}
        self._first = 0
        self._draining = False
        self.member = Member(
            name,
            self._changed,
            ack_timeout_ns=open_.ack_timeout_ms * 1_000_000,
            max_deliver=max_deliver,
            start_at=open_.start_at,
        )

    def drain(self) -> None:
        """End the stream."""
        self._draining = True
        self._wake.set()

    async def run(self) -> None:
        """Serve until the consumer ends the stream."""
        opened = mq.ConsumeOpened(partitions=len(self._logs), member=self.member.name)
        await self._context.write(mq.ConsumeResponse(opened=opened))
        self._group.join(self.member, self._clock.monotonic_ns())
        reader = asyncio.create_task(self._read())
        deliverer = asyncio.create_task(self._deliver())
        left = False
        try:
            await asyncio.wait({reader, deliverer}, return_when=asyncio.FIRST_COMPLETED)
            left = (reader.done() and reader.exception() is None) or self._draining
            for task in (reader, deliverer):
                if task.done():
                    task.result()
        finally:
            self._group.leave(self.member, lost=not left)
            reader.cancel()
            deliverer.cancel()
            await asyncio.gather(reader, deliverer, return_exceptions=True)
            self._watch(frozenset())

    async def _read(self) -> None:
        while True:
            request = await self._context.read()
            if request is grpc.aio.EOF:
                return
            now_ns = self._clock.monotonic_ns()
            self.member.renew(now_ns)
            kind = request.WhichOneof("request")
            if kind == "credit":
                self.member.credit_messages += request.credit.messages
                self.member.credit_bytes += request.credit.bytes
                self._wake.set()
            elif kind == "position":
                await self._position(request.position)
            elif kind in ("ack", "nak", "in_progress", "term"):
                self._group.settle(self.member, request, now_ns)
            else:
                raise InputError("behind `open` a Consume stream carries other requests only")

    async def _position(self, position: mq.Position) -> None:
        if position.partition >= len(self._logs):
            raise InputError(
                f"position: partition {position.partition}, the topic has {len(self._logs)}"
            )
        of = self._logs[position.partition]
        # The member may know of messages that another broker has stored.
        await of.catch_up()
        self._group.position(
            self.member, position, first_offset=of.first_offset, end_offset=of.next_offset
        )

    async def _deliver(self) -> None:
        while True:
            self._wake.clear()
            if self._draining:
                raise BrokerUnavailable("the broker is stopping")
            if self.member.expired:
                raise LeaseLost(f"member {self.member.name} was silent for too long")
            await self._announce()
            busy = False
            # Each round begins with another partition: credit is shared fairly.
            partitions = sorted(self.member.partitions)
            self._first += 1
            for number in range(len(partitions)):
                if not self.member.has_credit:
                    break
                partition = partitions[(self._first + number) % len(partitions)]
                cursor = self._group.cursor(self.member, partition)
                if cursor is None:
                    continue
                run = cursor.run
                if cursor.has_ready:
                    busy |= await self._deliver_again(partition, cursor)
                # Meanwhile another member may have got the partition.
                if cursor.run == run and cursor.next_offset < self._logs[partition].next_offset:
                    following = self._following(partitions, number)
                    busy |= await self._deliver_next(partition, cursor, following)
            if not busy:
                await self._wake.wait()

    def _following(self, partitions: Sequence[int], number: int) -> Iterator[int]:
        """Whose turns come next, in this round and in the one behind it."""
        count = len(partitions)
        for turn in range(number + 1, number + 1 + min(count, _TURNS_AHEAD)):
            rounds, place = divmod(turn, count)
            yield partitions[(self._first + rounds + place) % count]

    async def _announce(self) -> None:
        if self._announced == self.member.generation:
            return
        self._announced = self.member.generation
        self._watch(self.member.partitions)
        told, self._told = self._told, dict(self.member.since)
        # What was lost and is back begins anew. A consumer that never saw it go would not say
        # where, and wait for ever.
        back = {p for p, since in self._told.items() if told.get(p, since) != since}
        generation, partitions = self._announced, sorted(self._told)
        if back:
            await self._assign([p for p in partitions if p not in back], generation)
        await self._assign(partitions, generation)

    async def _assign(self, partitions: Sequence[int], generation: int) -> None:
        assignment = mq.Assignment(partitions=partitions, generation=generation)
        await self._context.write(mq.ConsumeResponse(assignment=assignment))

    def _watch(self, partitions: frozenset[int]) -> None:
        for partition in self._watched - partitions:
            self._logs[partition].unwatch(self._changed)
        for partition in partitions - self._watched:
            self._logs[partition].watch(self._changed)
        self._watched = set(partitions)
        self._ahead.keep(partitions)

    async def _deliver_again(self, partition: int, cursor: Cursor) -> bool:
        """Deliver one message that is due again."""
        if not cursor.started or not cursor.has_ready or not self.member.has_credit:
            return False
        offset, run = cursor.pop_ready(), cursor.run
        try:
            chunk = await self._logs[partition].read(offset, 1, 1)
        except BaseException:
            if cursor.run == run:
                cursor.push_ready(offset)
            raise
        if cursor.run != run:
            return True
        if not chunk.records or chunk.records[0].offset != offset:
            log.warning("partition %d: offset %d is gone before its redelivery", partition, offset)
            cursor.gone(offset)
            return True
        attempt = cursor.retake(offset, self._clock.monotonic_ns())
        if attempt:
            await self._send(self._batches(partition, [(chunk.records[0], attempt)]))
        return True

    async def _deliver_next(self, partition: int, cursor: Cursor, following: Iterable[int]) -> bool:
        """Deliver some of what was never delivered, and begin to read for the `following`."""
        room = min(cursor.room, self.member.credit_messages)
        if room <= 0 or self.member.credit_bytes <= 0:
            return False
        run = cursor.run
        chunk = await self._ahead.read(
            partition, cursor.next_offset, run, room, self.member.credit_bytes
        )
        if cursor.run != run:
            return True
        batches = self._take(partition, cursor, chunk)
        del chunk  # a consumer that is slow keeps the batches only
        self._read_ahead(following)
        await self._send(batches)
        return True

    def _read_ahead(self, following: Iterable[int]) -> None:
        for partition in following:
            cursor = self._group.cursor(self.member, partition)
            if cursor is not None and cursor.next_offset < self._logs[partition].next_offset:
                self._ahead.begin(
                    partition,
                    cursor.next_offset,
                    cursor.run,
                    min(cursor.room, self.member.credit_messages),
                    self.member.credit_bytes,
                )

    def _take(self, partition: int, cursor: Cursor, chunk: Chunk) -> list[bytes]:
        """What of `chunk` is to be delivered, as batches."""
        now_ns = self._clock.monotonic_ns()
        taken: list[tuple[Record, int]] = []
        for record in chunk.records:
            attempt = cursor.take(record.offset, now_ns)
            if attempt:
                taken.append((record, attempt))
        cursor.skip_to(chunk.next_offset)
        return self._batches(partition, taken)

    def _batches(self, partition: int, taken: list[tuple[Record, int]]) -> list[bytes]:
        """Spend credit for these deliveries, and encode them."""
        self.member.credit_messages -= len(taken)
        self.member.credit_bytes -= sum(len(record.payload) for record, _ in taken)
        batches: list[bytes] = []
        batch: list[tuple[Record, int]] = []
        size_bytes = 0
        for record, attempt in taken:
            needed = _DELIVERY_BYTES + len(record.producer) * 4 + len(record.payload)
            if size_bytes and size_bytes + needed > limits.BATCH_BYTES_MAX:
                batches.append(kernels.encode_deliveries(partition, batch))
                batch, size_bytes = [], 0
            size_bytes += needed
            batch.append((record, attempt))
        if batch:
            batches.append(kernels.encode_deliveries(partition, batch))
        return batches

    async def _send(self, batches: list[bytes]) -> None:
        while batches:
            await self._context.write(batches.pop(0))
