"""What a broker promises, spoken to in its own protocol over real sockets."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2

from conformance.conftest import Serving
from gputel import limits
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker.server import BrokerServer
from gputel.errors import PortInUse
from support.wire import Consumer, Producer, ask, connected, groups, publish, until


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


async def test_everything_survives_a_restart(serving: Serving) -> None:
    async with serving() as server, connected(server.address) as channel:
        await publish(channel, 1, 20)
        consumer = Consumer(channel)
        await consumer.open()
        await consumer.credit(10)
        taken = await consumer.deliveries(10)
        await consumer.ack(taken)

        async def arrived() -> bool:
            return sum(p.in_flight for p in (await groups(channel))["g"].positions) == 0

        await until(arrived)
    async with serving() as server, connected(server.address) as channel:
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


async def test_nak_and_timeout_deliver_again_and_then_bury(serving: Serving) -> None:
    async with serving(partitions=1) as server, connected(server.address) as channel:
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


async def test_term_buries_with_the_reason(serving: Serving) -> None:
    async with serving(partitions=1) as server, connected(server.address) as channel:
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


async def test_in_progress_holds_the_redelivery_off(serving: Serving) -> None:
    async with serving(partitions=1) as server, connected(server.address) as channel:
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


async def test_a_port_in_use_is_said(serving: Serving) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(PortInUse, match=listen):
            async with serving(listen=listen):
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


async def test_stopping_ends_streams_with_a_word(serving: Serving) -> None:
    async with serving() as server, connected(server.address) as channel:
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
