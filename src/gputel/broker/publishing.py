"""One Publish stream: messages in, cumulative acknowledgements out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc.aio

from gputel import limits
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker.engine import Engine, PartitionFailed, PartitionLog, TopicLog
from gputel.broker.names import check_producer, check_topic, encode_key, partition_of
from gputel.clock import Clock
from gputel.errors import FrameTooLarge, InputError, ProducerFenced

Context = grpc.aio.ServicerContext[mq.PublishRequest, mq.PublishResponse]
Requests = AsyncIterator[mq.PublishRequest]


@dataclass(slots=True)
class Counters:
    """What the broker counts over all streams."""

    published: int = 0
    published_bytes: int = 0
    throttles: int = 0
    refused: int = 0


class PublishStream:
    """Serves one producer until its stream ends."""

    def __init__(self, engine: Engine, clock: Clock, counters: Counters, context: Context) -> None:
        self._engine = engine
        self._clock = clock
        self._counters = counters
        self._context = context
        self._changed = asyncio.Event()
        self._unacked: deque[tuple[int, PartitionLog, int]] = deque()
        self._producer = ""
        self._epoch = 0
        self._ended = False

    async def serve(self, requests: Requests) -> None:
        """Return when the producer has closed; GputelError when it must be refused."""
        first = await anext(requests, None)
        if first is None:
            return
        if first.WhichOneof("request") != "open":
            raise InputError("the first request of a stream must be `open`")
        topic = await self._open(first.open)
        for log in topic.partitions:
            log.watch(self._changed.set)
        try:
            async with asyncio.TaskGroup() as both:
                acker = both.create_task(self._acknowledge(), name="publish-acker")
                await self._read(topic, requests)
                self._ended = True
                self._changed.set()
                await acker
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            for log in topic.partitions:
                log.unwatch(self._changed.set)

    async def _read(self, topic: TopicLog, requests: Requests) -> None:
        async for request in requests:
            if request.WhichOneof("request") != "batch":
                raise InputError("a stream is opened once; after that it carries batches")
            await self._accept(topic, request.batch)

    async def _open(self, request: mq.PublishOpen) -> TopicLog:
        self._producer = check_producer(request.producer)
        self._epoch = request.epoch
        topic = await self._engine.open_topic(check_topic(request.topic))
        last_sequence = topic.open_producer(self._producer, self._epoch)
        await self._context.write(
            mq.PublishResponse(
                opened=mq.PublishOpened(
                    last_sequence=last_sequence, partitions=len(topic.partitions)
                )
            )
        )
        return topic

    async def _accept(self, topic: TopicLog, batch: mq.MessageBatch) -> None:
        await self._wait_for_room()
        newest = topic.newest_epoch(self._producer)
        if newest > self._epoch:
            raise ProducerFenced(self._producer, self._epoch, newest)
        for message in batch.messages:
            if len(message.payload) > limits.FRAME_BYTES_MAX:
                raise FrameTooLarge(len(message.payload), limits.FRAME_BYTES_MAX)
            if message.sequence == 0:
                raise InputError("sequence: begins at 1")
            key = encode_key(message.key)
            log = topic.partitions[partition_of(key, len(topic.partitions))]
            ticket = log.append(self._producer, self._epoch, message.sequence, key, message.payload)
            self._unacked.append((message.sequence, log, ticket))
            self._counters.published += 1
            self._counters.published_bytes += len(message.payload)
        # A repeat is durable already, and no commit will say so.
        self._changed.set()

    async def _wait_for_room(self) -> None:
        """Not reading on is what holds a producer back; it is told why."""
        while delay_ms := self._engine.throttle_ms():
            self._counters.throttles += 1
            await self._context.write(mq.PublishResponse(throttle=mq.Throttle(delay_ms=delay_ms)))
            await self._clock.sleep(delay_ms / 1000)
        await self._engine.room()

    async def _acknowledge(self) -> None:
        while self._unacked or not self._ended:
            await self._changed.wait()
            self._changed.clear()
            sequence = 0
            while self._unacked:
                unacked, log, ticket = self._unacked[0]
                if not log.is_durable(ticket):
                    if log.failure:
                        raise PartitionFailed(f"partition {log.index}: {log.failure}")
                    break
                sequence = unacked
                self._unacked.popleft()
            if sequence:
                await self._context.write(mq.PublishResponse(ack=mq.PublishAck(sequence=sequence)))
