"""The broker over real sockets, spoken to in its own protocol."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2

from gputel import limits
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker.engines import make_engine
from gputel.broker.server import BrokerServer
from gputel.broker.settings import BrokerSettings
from gputel.errors import PortInUse
from gputel.observe import Health, Telemetry

SERVICE = "/gputel.mq.v1.Broker/"


@asynccontextmanager
async def broker(path: Path, **settings: Any) -> AsyncIterator[BrokerServer]:
    telemetry = Telemetry("broker")
    options = BrokerSettings(**{"listen": "127.0.0.1:0", "partitions": 2, **settings})
    server = BrokerServer(options, make_engine(options, path), telemetry, Health("broker"))
    try:
        await server.start()
        yield server
    finally:
        await server.stop()
        telemetry.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[BrokerServer]:
    async with broker(tmp_path) as server:
        yield server


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

    async def read(self, timeout_s: float = 10) -> Any:
        async with asyncio.timeout(timeout_s):
            response = await self.responses.get()
        assert response is not None, self.end
        return response

    async def ended(self) -> tuple[grpc.StatusCode, str]:
        async with asyncio.timeout(10):
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

    async def step(self, timeout_s: float = 10) -> None:
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
    )(request, timeout=10)


async def until(condition: Callable[[], Any], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - the broker does not tell
            await asyncio.sleep(0.01)


async def groups(channel: grpc.aio.Channel) -> dict[str, mq.Group]:
    listed = await ask(channel, "ListGroups", mq.ListGroupsRequest(), mq.ListGroupsResponse)
    return {group.group: group for group in listed.groups}


async def test_what_is_published_is_delivered_once_and_in_order(server: BrokerServer) -> None:
    async with connected(server.address) as channel:
        await publish(channel, 1, 200)
        await publish(channel, 1, 250)  # 200 repeats
        consumer = Consumer(channel)
        await consumer.open()
        await consumer.credit(1000)
        taken = await consumer.deliveries(250)
        assert sorted(d.sequence for d in taken) == list(range(1, 251))
        assert all(d.payload == b"%d" % d.sequence and d.attempt == 1 for d in taken)
        for partition in (0, 1):
            offsets = [d.offset for d in taken if d.partition == partition]
            assert offsets == list(range(len(offsets)))
        await consumer.ack(taken)

        async def done() -> bool:
            group = (await groups(channel))["g"]
            assert group.members == 1
            return all(p.lag == 0 and p.in_flight == 0 for p in group.positions)

        await until(done)
        listed = await ask(channel, "ListTopics", mq.ListTopicsRequest(), mq.ListTopicsResponse)
        assert [t.name for t in listed.topics] == ["t"]
        assert sum(p.next_offset for p in listed.topics[0].partitions) == 250
        await consumer.call.done_writing()


async def test_everything_survives_a_restart(tmp_path: Path) -> None:
    async with broker(tmp_path) as server, connected(server.address) as channel:
        await publish(channel, 1, 20)
        consumer = Consumer(channel)
        await consumer.open()
        await consumer.credit(10)
        taken = await consumer.deliveries(10)
        await consumer.ack(taken)

        async def arrived() -> bool:
            return sum(p.in_flight for p in (await groups(channel))["g"].positions) == 0

        await until(arrived)
    async with broker(tmp_path) as server, connected(server.address) as channel:
        producer = Producer(channel)
        assert await producer.open() <= 20
        await producer.send([(s, f"node-{s % 7}", b"again") for s in range(1, 22)])
        await producer.acked(21)
        consumer = Consumer(channel)
        await consumer.open()
        await consumer.credit(100)
        rest = await consumer.deliveries(11)
        sequences = sorted(d.sequence for d in [*taken, *rest])
        assert sequences == list(range(1, 22))


async def test_a_newer_epoch_fences_the_older(server: BrokerServer) -> None:
    async with connected(server.address) as channel:
        old, new = Producer(channel), Producer(channel)
        await old.open(epoch=1)
        assert await new.open(epoch=2) == 0
        await old.send([(1, "k", b"x")])
        code, details = await old.ended()
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "epoch 1 is fenced by 2" in details
        assert dict(await old.call.trailing_metadata() or ())["newer-epoch"] == "2"


@pytest.mark.parametrize(
    ("open_", "messages", "text"),
    [
        ({"topic": "../x"}, [], "topic '../x'"),
        ({"producer": ""}, [], "producer: a name is needed"),
        ({"epoch": 0}, [], "epoch: it must be at least 1"),
        ({}, [(0, "k", b"")], "sequence 0 behind 0"),
        ({}, [(2, "k", b""), (1, "k", b"")], "sequence 1 behind 2"),
        ({}, [(1, "k" * 513, b"")], "key: 513 bytes"),
        ({}, [(1, "k", bytes(limits.FRAME_BYTES_MAX + 1))], "at most 524288 are allowed"),
    ],
)
async def test_bad_requests_are_refused_in_words(
    server: BrokerServer, open_: dict[str, Any], messages: list[Any], text: str
) -> None:
    async with connected(server.address) as channel:
        producer = Producer(channel)
        opened = mq.PublishOpen(**{"topic": "t", "producer": "p", "epoch": 1, **open_})
        await producer.call.write(mq.PublishRequest(open=opened))
        if messages:
            await producer.send(messages)
        code, details = await producer.ended()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert text in details


async def test_the_largest_payload_passes(server: BrokerServer) -> None:
    async with connected(server.address) as channel:
        producer = Producer(channel)
        await producer.open()
        await producer.send([(1, "k", bytes(limits.FRAME_BYTES_MAX))])
        await producer.acked(1)
        consumer = Consumer(channel)
        await consumer.open()
        await consumer.credit(1, 1)
        assert len((await consumer.deliveries(1))[0].payload) == limits.FRAME_BYTES_MAX


async def test_credit_bounds_what_is_sent(server: BrokerServer) -> None:
    async with connected(server.address) as channel:
        await publish(channel, 1, 50)
        consumer = Consumer(channel)
        await consumer.open()
        await consumer.credit(3)
        assert len(await consumer.deliveries(3)) == 3
        with pytest.raises(TimeoutError):
            await consumer.step(timeout_s=0.2)


async def test_an_observer_begins_at_the_end_and_waits_for_no_one(server: BrokerServer) -> None:
    async with connected(server.address) as channel:
        await publish(channel, 1, 5)
        observer, late = Consumer(channel), Consumer(channel)
        await observer.open(group="")
        await observer.credit(100)
        await observer.assigned(2)
        await late.open(group="", start_at=mq.START_AT_EARLIEST)
        await late.credit(100)
        assert sorted(d.sequence for d in await late.deliveries(5)) == [1, 2, 3, 4, 5]
        # The position is written before this, on the same connection.
        await publish(channel, 6, 3)
        assert sorted(d.sequence for d in await observer.deliveries(3)) == [6, 7, 8]
        assert "" not in await groups(channel)


async def test_partitions_move_with_members(server: BrokerServer) -> None:
    async with connected(server.address) as channel:
        await publish(channel, 1, 40)
        first, second = Consumer(channel), Consumer(channel)
        await first.open()
        await first.assigned(2)
        await second.open()
        await asyncio.gather(first.assigned(1), second.assigned(1))
        assert not first.held & second.held
        await asyncio.gather(first.credit(100), second.credit(100))
        second.call.cancel()
        await first.assigned(2)
        # The second has acknowledged nothing: the first gets it all.
        taken = {d.sequence for d in await first.deliveries(40)}
        assert taken == set(range(1, 41))


async def test_a_member_may_say_where_to_go_on(server: BrokerServer) -> None:
    async with connected(server.address) as channel:
        await publish(channel, 1, 40)
        consumer = Consumer(channel)
        consumer.positions = {0: 10, 1: 10}
        await consumer.open()
        await consumer.credit(100)
        taken = await consumer.deliveries(20)
        assert min(d.offset for d in taken) == 10


async def test_nak_and_timeout_deliver_again_and_then_bury(tmp_path: Path) -> None:
    async with broker(tmp_path, partitions=1) as server, connected(server.address) as channel:
        await publish(channel, 1, 3)
        consumer = Consumer(channel)
        await consumer.open(max_deliver=2, ack_timeout_ms=200)
        await consumer.credit(100)
        one, two, three = await consumer.deliveries(3)
        await consumer.ack([two])
        await consumer.write(nak=mq.Nak(partition=0, offset=one.offset, delay_ms=1))
        again = {d.offset: d.attempt for d in await consumer.deliveries(2)}
        assert again == {one.offset: 2, three.offset: 2}
        graves = Consumer(channel)
        await graves.open(group="graves", topic="t.dlq")
        await graves.credit(100)
        letters = [mq.DeadLetter.FromString(d.payload) for d in await graves.deliveries(2)]
        assert sorted(letter.offset for letter in letters) == [0, 2]
        letter = min(letters, key=lambda letter: letter.offset)
        assert (letter.topic, letter.group, letter.partition) == ("t", "g", 0)
        assert (letter.producer, letter.epoch, letter.sequence) == ("p", 1, 1)
        assert (letter.key, letter.payload, letter.attempts) == ("node-1", b"1", 2)
        assert letter.reason == "not acknowledged after 2 deliveries"

        async def done() -> bool:
            return [p.next_offset for p in (await groups(channel))["g"].positions] == [3]

        await until(done)


async def test_term_buries_with_the_reason(tmp_path: Path) -> None:
    async with broker(tmp_path, partitions=1) as server, connected(server.address) as channel:
        await publish(channel, 1, 1)
        consumer, graves = Consumer(channel), Consumer(channel)
        await consumer.open()
        await consumer.credit(1)
        await consumer.deliveries(1)
        await consumer.write(term=mq.Term(partition=0, offset=0, reason="no frame at all"))
        await graves.open(group="graves", topic="t.dlq")
        await graves.credit(1)
        letter = mq.DeadLetter.FromString((await graves.deliveries(1))[0].payload)
        assert letter.reason == "no frame at all"


async def test_in_progress_holds_the_redelivery_off(tmp_path: Path) -> None:
    async with broker(tmp_path, partitions=1) as server, connected(server.address) as channel:
        await publish(channel, 1, 1)
        consumer = Consumer(channel)
        await consumer.open(ack_timeout_ms=400)
        await consumer.credit(10)
        held = await consumer.deliveries(1)
        offsets = [mq.Offsets(partition=0, offsets=[0])]
        for _ in range(6):
            with pytest.raises(TimeoutError):
                await consumer.step(timeout_s=0.15)
            await consumer.write(in_progress=mq.InProgress(offsets=offsets))
        await consumer.ack(held)


async def test_a_slow_consumer_slows_nobody(server: BrokerServer) -> None:
    async with connected(server.address) as slow_channel, connected(server.address) as channel:
        slow = Consumer(slow_channel)
        await slow.open(group="slow")
        await slow.assigned(2)
        await slow.credit(1_000_000)  # and never reads again
        quick = Consumer(channel)
        await quick.open(group="quick")
        await quick.credit(1_000_000)
        producer = Producer(channel)
        await producer.open()
        payload = bytes(200_000)
        for sequence in range(1, 101):
            await producer.send([(sequence, str(sequence), payload)])
        await producer.acked(100)
        assert len(await quick.deliveries(100)) == 100


async def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(PortInUse, match=listen):
            async with broker(tmp_path, listen=listen):
                pass


async def test_grpc_health_answers(server: BrokerServer) -> None:
    async with connected(server.address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        answer = await check(health_pb2.HealthCheckRequest(service="gputel.mq.v1.Broker"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_stopping_ends_streams_with_a_word(tmp_path: Path) -> None:
    async with broker(tmp_path) as server, connected(server.address) as channel:
        producer, consumer = Producer(channel), Consumer(channel)
        await producer.open()
        await consumer.open()
        await producer.send([(1, "k", b"x")])
        await producer.acked(1)
        await server.stop()
        assert await producer.ended() == (
            grpc.StatusCode.UNAVAILABLE,
            "the broker is stopping",
        )
