"""One producer's stream: messages in, cumulative acks out.

    reader  context.read -> check -> partition.extend          (waits while the backlog is full,
                                                               or acks are not taken)
    acker   partitions' commits -> the longest durable prefix -> PublishAck

The acker alone writes, because a stream takes one write at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

import grpc.aio

from gputel import limits
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker import names
from gputel.broker.engine import Engine, Message, PartitionFailed, PartitionLog, TopicLog
from gputel.broker.pace import ACKS_S, Pace
from gputel.broker.statuses import Context
from gputel.errors import BrokerUnavailable, FrameTooLarge, InputError, ProducerFenced
from gputel.kernels import MessageFields


class PublishStream:
    """Serves one Publish call. `run` raises GputelError for what ends it early."""

    def __init__(self, engine: Engine, context: Context) -> None:
        self._engine = engine
        self._context = context
        self._wake = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._is_fenced: Callable[[], ProducerFenced | None] = lambda: None
        self._unacked: deque[tuple[PartitionLog, int, int]] = deque()  # (log, ticket, sequence)
        self._acked = asyncio.Event()  # `_unacked` has become shorter
        self._watched: set[PartitionLog] = set()
        self._key = ""
        self._route: tuple[bytes, PartitionLog] | None = None  # where messages of `_key` go
        self._last_sequence = 0
        self._throttle_ms = 0
        self._ended = False
        self._draining = False

    def drain(self) -> None:
        """Take nothing more, acknowledge what was taken, and end."""
        self._draining = True
        if self._reader is not None:
            self._reader.cancel()

    async def run(self) -> None:
        """Serve until the producer ends the stream."""
        first = await self._context.read()
        if first is grpc.aio.EOF:
            return
        if isinstance(first, list) or first.WhichOneof("request") != "open":
            raise InputError("the first request of a Publish stream must be `open`")
        names.check_topic(first.open.topic)
        names.check_producer(first.open.producer)
        if not first.open.epoch:
            raise InputError("epoch: it must be at least 1")
        topic = await self._engine.open_topic(first.open.topic)
        last_sequence = await topic.open_producer(first.open.producer, first.open.epoch)
        opened = mq.PublishOpened(last_sequence=last_sequence, partitions=len(topic.partitions))
        await self._context.write(mq.PublishResponse(opened=opened))
        self._is_fenced = lambda: _fenced(topic, first.open)
        self._reader = asyncio.create_task(self._read(topic, first.open))
        acker = asyncio.create_task(self._acknowledge())
        if self._draining:
            self._reader.cancel()
        try:
            await asyncio.wait({self._reader, acker}, return_when=asyncio.FIRST_COMPLETED)
            if acker.done():
                acker.result()
            if not self._reader.cancelled():
                self._reader.result()
            self._ended = True
            self._wake.set()
            await acker
        finally:
            self._reader.cancel()
            acker.cancel()
            await asyncio.gather(self._reader, acker, return_exceptions=True)
            self._unwatch()
        if self._draining:
            raise BrokerUnavailable("the broker is stopping")

    async def _read(self, topic: TopicLog, opened: mq.PublishOpen) -> None:
        while True:
            request = await self._context.read()
            if request is grpc.aio.EOF:
                return
            if not isinstance(request, list):
                raise InputError("after `open` a Publish stream carries batches only")
            self._check_fence()
            await self._engine.room()
            while len(self._unacked) >= limits.UNACKED_RUNS_MAX:
                self._acked.clear()
                await self._acked.wait()
            self._accept(topic, opened, request)
            self._throttle_ms = self._engine.throttle_ms()
            if self._throttle_ms or self._ack_is_due():
                self._wake.set()

    def _accept(
        self, topic: TopicLog, opened: mq.PublishOpen, messages: Iterable[MessageFields]
    ) -> None:
        """Hand on each run of messages for one partition; what is refused ends its run."""
        run: list[Message] = []
        of: PartitionLog | None = None
        try:
            for sequence, text, payload in messages:
                if sequence <= self._last_sequence:
                    raise InputError(
                        f"sequence {sequence} behind {self._last_sequence}: "
                        "sequences begin with 1 and grow within a stream"
                    )
                if len(payload) > limits.FRAME_BYTES_MAX:
                    raise FrameTooLarge(len(payload), limits.FRAME_BYTES_MAX)
                key, log = self._find(topic, text)
                if log is not of and of is not None:
                    taken, run = run, []
                    self._extend(of, opened, taken)
                of = log
                run.append(Message(sequence, key, payload))
                self._last_sequence = sequence
        finally:
            if of is not None and run:
                self._extend(of, opened, run)

    def _find(self, topic: TopicLog, key: str) -> tuple[bytes, PartitionLog]:
        """A key's bytes and partition. A producer's messages mostly have one key."""
        if self._route is None or key != self._key:
            encoded = names.encode_key(key)
            index = names.partition_of(encoded, len(topic.partitions))
            self._key, self._route = key, (encoded, topic.partitions[index])
        return self._route

    def _extend(self, log: PartitionLog, opened: mq.PublishOpen, run: list[Message]) -> None:
        ticket = log.extend(opened.producer, opened.epoch, run)
        self._unacked.append((log, ticket, run[-1].sequence))
        if log not in self._watched:
            self._watched.add(log)
            log.watch(self._wake.set)

    def _ack_is_due(self) -> bool:
        """Whether an ack is due already: for repeats, of which no commit tells."""
        return bool(self._unacked) and self._unacked[0][0].is_durable(self._unacked[0][1])

    async def _acknowledge(self) -> None:
        pace = Pace(ACKS_S)
        while True:
            self._wake.clear()
            sequence = self._pop_durable()
            if sequence and self._unacked:
                await pace.wait()  # for the next ack, which says as much
                sequence = self._pop_durable() or sequence
            if sequence:
                await self._context.write(mq.PublishResponse(ack=mq.PublishAck(sequence=sequence)))
                pace.wrote()
            if self._throttle_ms:
                throttle = mq.Throttle(delay_ms=self._throttle_ms)
                self._throttle_ms = 0
                await self._context.write(mq.PublishResponse(throttle=throttle))
            if self._ended and not self._unacked:
                return
            await self._wake.wait()

    def _pop_durable(self) -> int:
        """The sequence up to which everything is durable now; 0 when there is nothing new."""
        sequence = 0
        unacked = self._unacked
        if unacked:
            # Before tickets are looked at: an engine remembers only so many that it has refused.
            self._check_fence()
        while unacked:
            log, ticket, of_message = unacked[0]
            if not log.is_durable(ticket):
                if log.failure:
                    raise PartitionFailed(f"partition {log.index}: {log.failure}")
                return sequence
            sequence = of_message
            unacked.popleft()
            self._acked.set()
        # An idle stream is not woken by the commits of others.
        self._unwatch()
        return sequence

    def _check_fence(self) -> None:
        """What waits for a commit may never become durable once a newer epoch is known."""
        fenced = self._is_fenced()
        if fenced is not None:
            raise fenced

    def _unwatch(self) -> None:
        for log in self._watched:
            log.unwatch(self._wake.set)
        self._watched.clear()


def _fenced(topic: TopicLog, opened: mq.PublishOpen) -> ProducerFenced | None:
    newest = topic.newest_epoch(opened.producer)
    if newest <= opened.epoch:
        return None
    return ProducerFenced(opened.producer, opened.epoch, newest)
