"""What a broker promises its clients: durable, in order, each message once."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
import pytest

from conformance.conftest import Serving
from gputel import broker, limits
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker import Consumer, Delivery, StartAt, groups
from gputel.errors import FrameTooLarge, InputError, ProducerFenced
from support.brokers import connected

DEADLINE_S = 20


async def publish(client, first: int, last: int, producer="p", epoch=1, topic="t", keys=1) -> None:
    publisher = await client.publisher(topic, producer, epoch)
    for i in range(first, last + 1):
        await publisher.publish(i, f"key{i % keys}", f"{producer}:{epoch}:{i}".encode())
    assert await publisher.flush(DEADLINE_S)
    await publisher.close()


async def take(consumer: Consumer, count: int, *, ack: bool = True) -> list[Delivery]:
    taken: list[Delivery] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(taken) < count:
            delivery = await anext(consumer)
            taken.append(delivery)
            if ack:
                await consumer.ack(delivery.partition, [delivery.offset])
    return taken


async def until(condition) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_what_is_published_arrives_once_and_in_order(serving: Serving):
    async with serving(partitions=4) as server, connected(server.address) as client:
        await publish(client, 1, 500, keys=7)
        async with client.consumer("t", group="g") as consumer:
            taken = await take(consumer, 500)
        assert sorted(d.sequence for d in taken) == list(range(1, 501))
        for partition in range(4):
            offsets = [d.offset for d in taken if d.partition == partition]
            assert offsets == list(range(len(offsets)))
            sequences = [d.sequence for d in taken if d.partition == partition]
            assert sequences == sorted(sequences)
        assert {d.payload for d in taken} == {f"p:1:{i}".encode() for i in range(1, 501)}


async def test_repeats_are_acknowledged_and_not_stored_also_after_a_restart(serving: Serving):
    async with serving(partitions=4) as server, connected(server.address) as client:
        await publish(client, 1, 50)
        await publish(client, 1, 60)
    async with serving(partitions=4) as server, connected(server.address) as client:
        await publish(client, 40, 70)
        (topic,) = await client.topics()
        assert sum(p.next_offset for p in topic.partitions) == 70


async def test_a_newer_epoch_fences_the_older(serving: Serving):
    async with serving(partitions=4) as server, connected(server.address) as client:
        old = await client.publisher("t", "p", 1)
        await old.publish(1, "k", b"one")
        assert await old.flush(DEADLINE_S)
        await publish(client, 1, 1, epoch=2)
        await old.publish(2, "k", b"two")
        with pytest.raises(ProducerFenced, match="epoch 1 is fenced by 2"):
            await old.flush(DEADLINE_S)
        assert old.fenced is not None
        await old.close()


async def test_a_group_goes_on_where_it_stopped_also_after_a_restart(serving: Serving):
    async with serving(partitions=1) as server, connected(server.address) as client:
        await publish(client, 1, 10)
        async with client.consumer("t", group="g") as consumer:
            assert [d.sequence for d in await take(consumer, 4)] == [1, 2, 3, 4]

            async def saved() -> bool:
                return (await client.groups())[0].positions[0].next_offset == 4

            await until(saved)
    async with (
        serving(partitions=4) as server,
        connected(server.address) as client,
        client.consumer("t", group="g") as consumer,
    ):
        assert [d.sequence for d in await take(consumer, 6)] == [5, 6, 7, 8, 9, 10]


async def test_partitions_are_shared_and_taken_over(serving: Serving):
    async with serving(partitions=4) as server, connected(server.address) as client:
        one = client.consumer("t", group="g")
        async with one:

            async def alone() -> bool:
                return len(one.assignment) == 4

            await until(alone)
            async with client.consumer("t", group="g") as two:

                async def shared() -> bool:
                    return len(one.assignment) == len(two.assignment) == 2

                await until(shared)
                assert not one.assignment & two.assignment
            await until(alone)


async def test_what_is_not_acknowledged_in_time_comes_again_then_is_given_up(serving: Serving):
    async with (
        serving(partitions=1, max_deliver=3) as server,
        connected(server.address) as client,
    ):
        await publish(client, 1, 2)
        async with client.consumer("t", group="g", ack_timeout_s=0.05) as consumer:
            seen: list[tuple[int, int]] = []
            async with asyncio.timeout(DEADLINE_S):
                while len([s for s, _ in seen if s == 1]) < 3:
                    delivery = await anext(consumer)
                    seen.append((delivery.sequence, delivery.attempt))
                    if delivery.sequence == 2:
                        await consumer.ack(0, [delivery.offset])
            assert [a for s, a in seen if s == 1] == [1, 2, 3]
        async with (
            client.consumer("t.dlq", start_at=StartAt.EARLIEST) as dead,
            client.consumer("t", group="g", ack_timeout_s=0.05),  # given up in its presence
        ):
            (delivery,) = await take(dead, 1, ack=False)
        letter = mq.DeadLetter.FromString(delivery.payload)
        assert (letter.topic, letter.offset, letter.payload) == ("t", 0, b"p:1:1")
        assert "3 deliveries" in letter.reason


async def test_what_is_acknowledged_before_the_end_is_done(serving: Serving):
    """Neither the acks are lost nor does the message that is left count as one that kills."""
    async with serving(partitions=1, max_deliver=1) as server, connected(server.address) as client:
        await publish(client, 1, 200)
        async with client.consumer("t", group="g") as consumer:
            taken = await take(consumer, 200, ack=False)
            await consumer.ack(0, [delivery.offset for delivery in taken[:-1]])
        async with client.consumer("t", group="g") as consumer:
            (again,) = await take(consumer, 1)
            assert (again.sequence, again.attempt) == (200, 1)


async def test_term_and_nak(serving: Serving):
    async with serving(partitions=1) as server, connected(server.address) as client:
        await publish(client, 1, 2)
        async with client.consumer("t", group="g") as consumer:
            first, second = await take(consumer, 2, ack=False)
            await consumer.term(0, first.offset, "poison")
            await consumer.nak(0, second.offset, 0.01)
            (again,) = await take(consumer, 1)
            assert (again.offset, again.attempt) == (second.offset, 2)
        async with client.consumer("t.dlq", start_at=StartAt.EARLIEST) as dead:
            (delivery,) = await take(dead, 1, ack=False)
        assert mq.DeadLetter.FromString(delivery.payload).reason == "poison"


async def test_credit_is_never_exceeded(serving: Serving):
    async with serving(partitions=1) as server, connected(server.address) as client:
        await publish(client, 1, 100)
        async with client.consumer("t", group="g", messages=10) as consumer:
            await take(consumer, 10, ack=False)
            await asyncio.wait_for(client.topics(), 5)
            assert consumer.waiting_messages == 0
            assert (await client.groups())[0].positions[0].in_flight == 10
            await consumer.ack(0, list(range(10)))
            assert [d.sequence for d in await take(consumer, 90)] == list(range(11, 101))


async def test_a_member_says_where_to_go_on(serving: Serving):
    async def at(partition: int) -> int | None:
        return 7

    async with serving(partitions=1) as server, connected(server.address) as client:
        await publish(client, 1, 10)
        async with client.consumer("t", group="g", on_assign=at) as consumer:
            assert [d.offset for d in await take(consumer, 3)] == [7, 8, 9]


async def test_a_position_beyond_the_log_goes_on_at_its_first_message(serving: Serving):
    """Waiting for the log to grow that far would skip what is published until then."""
    async with serving(partitions=1) as server, connected(server.address) as client:
        await publish(client, 1, 5)

        async def position(_: int) -> int:
            return 1000

        async with client.consumer("t", group="g", on_assign=position) as consumer:
            assert [d.offset for d in await take(consumer, 5)] == list(range(5))


async def test_an_observer_sees_what_is_new_and_goes_on_after_a_restart(serving: Serving):
    async with serving(partitions=1) as server:
        address = server.address
        client = await broker.connect(address)
        await publish(client, 1, 5)
        observer = client.consumer("t")
        await observer.__aenter__()

        async def watching() -> bool:
            return observer.assignment == {0} and observer.connected

        await until(watching)
        await client.topics()
        await publish(client, 6, 7)
        seen = [d.sequence for d in await take(observer, 1, ack=False)]
    async with serving(listen=address, partitions=4) as server:
        await publish(client, 8, 9)
        while seen[-1] < 9:
            seen += [d.sequence for d in await take(observer, 1, ack=False)]
        assert seen == list(range(seen[0], 10))
        await observer.close()
        await client.close()


async def test_a_publisher_survives_a_broker_that_restarts(serving: Serving):
    async with serving(partitions=4) as server:
        address = server.address
        client = await broker.connect(address)
        publisher = await client.publisher("t", "p", 1)
        for i in range(1, 11):
            await publisher.publish(i, "k", b"%d" % i)
        assert await publisher.flush(DEADLINE_S)
    for i in range(11, 21):
        await publisher.publish(i, "k", b"%d" % i)
    assert not await publisher.flush(0.05)
    async with serving(listen=address, partitions=4), client.consumer("t", group="g") as consumer:
        assert await publisher.flush(DEADLINE_S)
        assert [d.sequence for d in await take(consumer, 20)] == list(range(1, 21))
    await publisher.close()
    await client.close()


async def test_a_publisher_without_a_broker_is_bounded():
    async with connected("127.0.0.1:1") as client:
        publisher = await client.publisher("t", "p", 1, pending_bytes=1000)
        assert publisher.offer(1, "k", bytes(600))
        assert not publisher.offer(2, "k", bytes(600))
        assert publisher.pending_messages == 1
        with pytest.raises(FrameTooLarge):
            publisher.offer(3, "k", bytes(limits.FRAME_BYTES_MAX + 1))
        await publisher.close()


@pytest.mark.parametrize("topic", ["", "../etc", "a/b", "x" * 300])
async def test_bad_names_are_refused_for_good(serving: Serving, topic):
    async with serving(partitions=4) as server, connected(server.address) as client:
        publisher = await client.publisher(topic, "p", 1)
        await publisher.publish(1, "k", b"")
        with pytest.raises(InputError, match="topic"):
            await publisher.flush(DEADLINE_S)
        await publisher.close()
        async with client.consumer(topic, group="g") as consumer:
            with pytest.raises(InputError, match="topic"):
                await asyncio.wait_for(anext(consumer), DEADLINE_S)


async def test_garbage_on_the_wire_ends_that_stream_only(serving: Serving):
    async with serving(partitions=4) as server, connected(server.address) as client:
        async with grpc.aio.insecure_channel(server.address) as channel:
            call: Any = channel.stream_stream("/gputel.mq.v1.Broker/Publish")()
            await call.write(b"\xff\xff\xff garbage")
            with pytest.raises(grpc.aio.AioRpcError):
                async for _ in call:
                    pass
        await publish(client, 1, 3)


async def test_a_member_whose_lease_ends_is_told_and_comes_again(serving: Serving, monkeypatch):
    """Its connection is well, so without a status it would wait for deliveries for ever."""
    lease_ns = groups.LEASE_NS
    async with serving(partitions=4) as server, connected(server.address) as client:
        monkeypatch.setattr(groups, "LEASE_NS", 500_000_000)  # less than a client's heartbeat
        async with client.consumer("t", group="g", start_at=StartAt.EARLIEST) as consumer:

            async def evicted() -> bool:
                return consumer.reconnects > 0

            async def whole() -> bool:
                return len(consumer.assignment) == 4

            await until(evicted)
            monkeypatch.setattr(groups, "LEASE_NS", lease_ns)
            await until(whole)
            await publish(client, 1, 5)
            assert {d.sequence for d in await take(consumer, 5)} == {1, 2, 3, 4, 5}
