"""What a publish stream acknowledges, with an engine that tells it anything."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import grpc.aio
import pytest

from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker.publish_stream import PublishStream
from gputel.errors import ProducerFenced


class Log:
    """A partition whose messages become durable when told."""

    index = 0
    name = "t/0"
    failure = ""

    def __init__(self) -> None:
        self.durable = 0
        self._next_ticket = 0
        self._changed: Any = None

    def extend(self, producer: str, epoch: int, messages: Any) -> int:
        self._next_ticket += 1
        return self._next_ticket

    def is_durable(self, ticket: int) -> bool:
        return ticket <= self.durable

    def watch(self, changed: Any) -> None:
        self._changed = changed

    def unwatch(self, changed: Any) -> None:
        self._changed = None

    def commit(self, ticket: int) -> None:
        self.durable = ticket
        if self._changed is not None:
            self._changed()


class Topic:
    """One partition, and the newest epoch."""

    def __init__(self) -> None:
        self.partitions = (Log(),)
        self.newest = 0

    async def open_producer(self, producer: str, epoch: int) -> int:
        self.newest = epoch
        return 0

    def newest_epoch(self, producer: str) -> int:
        return self.newest


class Engine:
    """An engine with that topic."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic

    async def open_topic(self, name: str) -> Topic:
        return self._topic

    async def room(self) -> None: ...

    def throttle_ms(self) -> int:
        return 0


class Context:
    """A client's end of the stream."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[Any] = asyncio.Queue()
        self.responses: asyncio.Queue[mq.PublishResponse] = asyncio.Queue()

    async def read(self) -> Any:
        return await self.requests.get()

    async def write(self, response: mq.PublishResponse) -> None:
        self.responses.put_nowait(response)

    def send(self, *sequences: int) -> None:
        self.requests.put_nowait([(sequence, "k", b"") for sequence in sequences])


async def begun() -> tuple[Topic, Context, asyncio.Task[None]]:
    topic, context = Topic(), Context()
    stream = PublishStream(cast("Any", Engine(topic)), cast("Any", context))
    opened = mq.PublishOpen(topic="t", producer="p", epoch=1)
    context.requests.put_nowait(mq.PublishRequest(open=opened))
    running = asyncio.create_task(stream.run())
    assert (await context.responses.get()).HasField("opened")
    return topic, context, running


async def test_an_ack_says_up_to_where_all_is_durable() -> None:
    async with asyncio.timeout(10):
        topic, context, running = await begun()
        for sequence in (1, 2, 3):
            context.send(sequence)
        while not context.requests.empty():  # noqa: ASYNC110
            await asyncio.sleep(0)
        topic.partitions[0].commit(2)
        assert (await context.responses.get()).ack.sequence == 2
        topic.partitions[0].commit(3)
        assert (await context.responses.get()).ack.sequence == 3
        context.requests.put_nowait(grpc.aio.EOF)
        await running


async def test_a_fenced_stream_acknowledges_nothing_whatever_its_tickets_say() -> None:
    """An engine forgets at some time which of the tickets it has refused."""
    async with asyncio.timeout(10):
        topic, context, running = await begun()
        context.send(1)
        while not context.requests.empty():  # noqa: ASYNC110
            await asyncio.sleep(0)
        topic.newest = 2
        topic.partitions[0].commit(1)
        with pytest.raises(ProducerFenced):
            await running
        assert context.responses.empty()
