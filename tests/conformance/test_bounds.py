"""What a broker keeps, what it gives up, and what one bad client can't do to the others."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import grpc
import grpc.aio
import pytest

from conformance.conftest import Serving
from gputel import broker, limits
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker.server import BrokerServer
from support.wire import Consumer, Producer, ask, connected, groups, publish, until


async def partitions(channel: grpc.aio.Channel, topic: str = "t") -> list[mq.Partition]:
    listed = await ask(channel, "ListTopics", mq.ListTopicsRequest(), mq.ListTopicsResponse)
    return [of for found in listed.topics if found.name == topic for of in found.partitions]


async def test_what_is_too_much_goes_the_oldest_first(serving: Serving) -> None:
    body = 300_000
    async with (
        serving(partitions=1, retention_bytes=1 << 20, segment_bytes=1 << 20) as server,
        connected(server.address) as channel,
    ):
        producer = Producer(channel)
        await producer.open()
        for sequence in range(1, 31):
            await producer.send([(sequence, "k", bytes(body))])
            await producer.acked(sequence)
        observer = Consumer(channel)
        await observer.open(group="")  # who looks has the broker look

        async def small() -> bool:
            [of] = await partitions(channel)
            return of.first_offset > 20 and of.size_bytes < 4 << 20

        await until(small, timeout_s=20)
        [of] = await partitions(channel)
        assert of.next_offset == 30
        # A group that comes too late begins with the oldest that is kept.
        consumer = Consumer(channel)
        await consumer.open()
        await consumer.credit(100)
        taken = await consumer.deliveries(of.next_offset - of.first_offset)
        assert [d.offset for d in taken] == list(range(of.first_offset, 30))
        # The producer is known beyond its messages.
        again = Producer(channel)
        await again.open()
        await again.send([(sequence, "k", bytes(body)) for sequence in (1,)])
        await again.acked(1)
        assert (await partitions(channel))[0].next_offset == 30


async def test_what_is_too_old_goes_and_no_offset_is_used_twice(serving: Serving) -> None:
    options = {"partitions": 1, "retention_seconds": 1, "segment_bytes": 1 << 20}
    async with serving(**options) as server, connected(server.address) as channel:
        await publish(channel, 1, 3)
        producer = Producer(channel)
        await producer.open(producer="q")
        for sequence in range(1, 9):
            await producer.send([(sequence, "k", bytes(300_000))])
            await producer.acked(sequence)
        observer = Consumer(channel)
        await observer.open(group="")

        async def gone() -> bool:
            return (await partitions(channel))[0].first_offset > 3

        await until(gone, timeout_s=20)
    async with serving(**options) as server, connected(server.address) as channel:
        await publish(channel, 4, 1)
        assert (await partitions(channel))[0].next_offset == 12


async def test_a_poison_message_is_given_up_and_its_partition_goes_on(serving: Serving) -> None:
    async with serving(partitions=1) as server, connected(server.address) as channel:
        await publish(channel, 1, 20)
        consumer, graves = Consumer(channel), Consumer(channel)
        await consumer.open(max_deliver=3, ack_timeout_ms=5000)
        await consumer.credit(1000)
        attempts = 0
        done: set[int] = set()
        while len(done) < 19 or attempts < 3:
            await consumer.step()
            for delivery in consumer.taken:
                if delivery.offset == 7:
                    attempts = delivery.attempt
                    nak = mq.Nak(partition=0, offset=7, delay_ms=1)
                    await consumer.write(nak=nak)
                else:
                    done.add(delivery.offset)
                    await consumer.ack([delivery])
            consumer.taken = []
        await graves.open(group="graves", topic="t.dlq")
        await graves.credit(10)
        letter = mq.DeadLetter.FromString((await graves.deliveries(1))[0].payload)
        assert (letter.offset, letter.attempts, letter.payload) == (7, 3, b"8")

        async def passed() -> bool:
            return [p.next_offset for p in (await groups(channel))["g"].positions] == [20]

        await until(passed)


async def test_credit_in_bytes_bounds_what_is_sent(server: BrokerServer) -> None:
    async with connected(server.address) as channel:
        producer = Producer(channel)
        await producer.open()
        await producer.send([(s, "k", bytes(1000)) for s in range(1, 21)])
        await producer.acked(20)
        consumer = Consumer(channel)
        await consumer.open()
        await consumer.credit(1000, 4500)
        assert len(await consumer.deliveries(5)) == 5  # overdrawn by one message, no more
        with pytest.raises(TimeoutError):
            await consumer.step(timeout_s=0.2)


async def test_unknown_topics_and_partitions_are_named(server: BrokerServer) -> None:
    async with connected(server.address) as channel:
        request = mq.FetchRequest(topic="nowhere", partition=0, offset=0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel, "Fetch", request, mq.FetchResponse)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert "no topic 'nowhere'" in str(caught.value.details())
        consumer = Consumer(channel)
        await consumer.open()
        await consumer.write(position=mq.Position(partition=300, generation=1))
        code, details = await consumer.ended()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "partition 300, the topic has 2" in details


async def test_a_request_that_is_too_large_ends_its_stream_only(server: BrokerServer) -> None:
    async with connected(server.address) as channel:
        good, bad = Producer(channel), Producer(channel)
        await good.open(producer="good")
        await bad.open(producer="bad")
        await bad.send([(1, "k", bytes(limits.GRPC_MESSAGE_BYTES_MAX + 1))])
        assert (await bad.ended())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        await good.send([(1, "k", b"x")])
        await good.acked(1)


async def test_hostile_bytes_end_their_streams_only(server: BrokerServer) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    async with connected(server.address) as channel:
        good = Producer(channel)
        await good.open(producer="good")
        for method in ("Publish", "Consume") * 5:
            call: Any = channel.stream_stream(f"/gputel.mq.v1.Broker/{method}")()
            await call.write(b"\xff" + draw.randbytes(draw.randint(1, 400)))
            async with asyncio.timeout(10):
                assert await call.code() is not grpc.StatusCode.OK
        await good.send([(1, "k", b"x")])
        await good.acked(1)


async def test_order_holds_for_each_key_over_reconnects(server: BrokerServer) -> None:
    """A producer that is cut off again and again, and sends all that is not acknowledged."""
    client = await broker.connect(server.address)
    try:
        sequence = 0
        for _ in range(5):
            publisher = await client.publisher("t", "p", 1)
            # From before where it stood: repeats.
            sequence = max(sequence - 20, 0)
            for _ in range(100):
                sequence += 1
                await publisher.publish(sequence, f"k{sequence % 5}", b"%d" % sequence)
                if sequence % 10 == 0:
                    await asyncio.sleep(0)
            await publisher.close()  # with what is on its way
        publisher = await client.publisher("t", "p", 1)
        for again in range(1, sequence + 1):
            await publisher.publish(again, f"k{again % 5}", b"%d" % again)
        assert await publisher.flush(20)
        await publisher.close()
        found = []
        for partition in range(2):
            fetched = (await client.fetch("t", partition, 0)).deliveries
            sequences = [d.sequence for d in fetched]
            assert sequences == sorted(set(sequences))
            found += sequences
        assert sorted(found) == list(range(1, sequence + 1))
    finally:
        await client.close()
