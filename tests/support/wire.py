"""The broker's protocol, spoken by hand: one object for each stream, none of the client's care."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from gputel import limits
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq

SERVICE = "/gputel.mq.v1.Broker/"
#: Of one answer. On a machine that others use up one test over three servers took 16 s;
#: an election among them alone takes up to 10 s.
DEADLINE_S = 45.0


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[grpc.aio.Channel]:
    options = (
        ("grpc.max_receive_message_length", limits.GRPC_MESSAGE_BYTES_MAX),
        ("grpc.use_local_subchannel_pool", 1),
    )
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield channel


class Stream:
    """A call whose responses are read in the background: cancelling a read would end it."""

    def __init__(self, channel: grpc.aio.Channel, method: str, request: Any, response: Any) -> None:
        self.call = channel.stream_stream(
            SERVICE + method,
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )()
        self.responses: asyncio.Queue[Any] = asyncio.Queue()
        self.end: tuple[grpc.StatusCode, str] | None = None
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            while (response := await self.call.read()) is not grpc.aio.EOF:
                self.responses.put_nowait(response)
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass
        self.end = await self.call.code(), await self.call.details() or ""
        self.responses.put_nowait(None)

    async def read(self, timeout_s: float = DEADLINE_S) -> Any:
        async with asyncio.timeout(timeout_s):
            response = await self.responses.get()
        assert response is not None, self.end
        return response

    async def ended(self) -> tuple[grpc.StatusCode, str]:
        async with asyncio.timeout(DEADLINE_S):
            await self._reader
        assert self.end is not None
        return self.end


class Producer(Stream):
    """A Publish stream."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel, "Publish", mq.PublishRequest, mq.PublishResponse)

    async def open(self, producer: str = "p", epoch: int = 1, topic: str = "t") -> int:
        opened = mq.PublishOpen(topic=topic, producer=producer, epoch=epoch)
        await self.call.write(mq.PublishRequest(open=opened))
        return int((await self.read()).opened.last_sequence)

    async def send(self, messages: Sequence[tuple[int, str, bytes]]) -> None:
        batch = mq.MessageBatch(
            messages=[mq.Message(sequence=s, key=k, payload=p) for s, k, p in messages]
        )
        await self.call.write(mq.PublishRequest(batch=batch))

    async def acked(self, sequence: int) -> None:
        while (await self.read()).ack.sequence < sequence:
            pass


class Consumer(Stream):
    """A Consume stream that starts all partitions it is given."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel, "Consume", mq.ConsumeRequest, mq.ConsumeResponse)
        self.held: frozenset[int] = frozenset()
        self.positions: dict[int, int] = {}
        self.taken: list[mq.Delivery] = []

    async def write(self, **request: Any) -> None:
        await self.call.write(mq.ConsumeRequest(**request))

    async def open(self, group: str = "g", topic: str = "t", **options: Any) -> None:
        await self.write(open=mq.ConsumeOpen(topic=topic, group=group, **options))
        assert (await self.read()).opened.partitions

    async def credit(self, messages: int, size_bytes: int = 1 << 30) -> None:
        await self.write(credit=mq.Credit(messages=messages, bytes=size_bytes))

    async def step(self, timeout_s: float = DEADLINE_S) -> None:
        """Take in one response."""
        response = await self.read(timeout_s)
        self.taken += response.batch.deliveries
        if response.HasField("assignment"):
            generation = response.assignment.generation
            held = frozenset(response.assignment.partitions)
            for partition in held - self.held:
                position = mq.Position(
                    partition=partition,
                    next_offset=self.positions.get(partition),
                    generation=generation,
                )
                await self.write(position=position)
            self.held = held

    async def assigned(self, count: int) -> None:
        while len(self.held) != count:
            await self.step()

    async def deliveries(self, count: int) -> list[mq.Delivery]:
        while len(self.taken) < count:
            await self.step()
        taken, self.taken = self.taken, []
        return taken

    async def ack(self, deliveries: Sequence[mq.Delivery]) -> None:
        offsets = [mq.Offsets(partition=d.partition, offsets=[d.offset]) for d in deliveries]
        await self.write(ack=mq.Ack(offsets=offsets))


async def publish(channel: grpc.aio.Channel, first: int, count: int, **options: Any) -> None:
    producer = Producer(channel)
    await producer.open(**options)
    await producer.send([(s, f"node-{s % 7}", b"%d" % s) for s in range(first, first + count)])
    await producer.acked(first + count - 1)
    await producer.call.done_writing()
    assert (await producer.ended())[0] is grpc.StatusCode.OK


async def ask(channel: grpc.aio.Channel, method: str, request: Any, response: Any) -> Any:
    return await channel.unary_unary(
        SERVICE + method,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response.FromString,
    )(request, timeout=DEADLINE_S)


async def until(condition: Callable[[], Any], timeout_s: float = DEADLINE_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - the broker does not tell
            await asyncio.sleep(0.01)


async def groups(channel: grpc.aio.Channel) -> dict[str, mq.Group]:
    listed = await ask(channel, "ListGroups", mq.ListGroupsRequest(), mq.ListGroupsResponse)
    return {group.group: group for group in listed.groups}
