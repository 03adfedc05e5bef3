"""Two brokers before one cluster are one broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
import pytest

from conformance.conftest import Serving
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker.server import BrokerServer
from support.wire import DEADLINE_S, Consumer, Producer, ask, connected, groups, publish, until

pytestmark = pytest.mark.parametrize("settings", ["jetstream-r1", "jetstream-r3"], indirect=True)


@asynccontextmanager
async def two(
    serving: Serving, partitions: int = 4
) -> AsyncIterator[tuple[BrokerServer, grpc.aio.Channel, BrokerServer, grpc.aio.Channel]]:
    async with (
        serving(partitions=partitions) as a,
        serving(partitions=partitions) as b,
        connected(a.address) as to_a,
        connected(b.address) as to_b,
    ):
        yield a, to_a, b, to_b


async def test_what_one_stores_the_other_delivers(serving: Serving) -> None:
    async with two(serving) as (_, to_a, _, to_b):
        observer = Consumer(to_b)
        await observer.open(group="")
        await observer.credit(1000)
        await observer.assigned(4)
        await publish(to_a, 1, 50)
        assert sorted(d.sequence for d in await observer.deliveries(50)) == list(range(1, 51))
        await publish(to_b, 1, 60)  # 50 repeats
        assert sorted(d.sequence for d in await observer.deliveries(10)) == list(range(51, 61))


async def test_a_newer_epoch_fences_the_older_at_the_other_broker(serving: Serving) -> None:
    async with two(serving) as (_, to_a, _, to_b):
        old, new = Producer(to_a), Producer(to_b)
        await old.open(epoch=1)
        await new.open(epoch=2)
        await new.send([(1, "k", b"new")])
        await new.acked(1)
        await old.send([(1, "k", b"old")])
        code, details = await old.ended()
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "epoch 1 is fenced by 2" in details
        late = Producer(to_a)
        await late.call.write(
            mq.PublishRequest(open=mq.PublishOpen(topic="t", producer="p", epoch=1))
        )
        assert (await late.ended())[0] is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_group_shares_its_partitions_over_both(serving: Serving) -> None:
    async with two(serving) as (a, to_a, _, to_b):
        producer = Producer(to_a)
        await producer.open(producer="q")
        await producer.send([(s, str(s), b"") for s in range(1, 201)])
        await producer.acked(200)
        first, second = Consumer(to_a), Consumer(to_b)
        await first.open()
        await first.assigned(4)
        await second.open()
        await asyncio.gather(first.assigned(2), second.assigned(2))
        assert first.held | second.held == {0, 1, 2, 3}
        await asyncio.gather(first.credit(1000), second.credit(1000))

        async def both() -> list[mq.Delivery]:
            taken: list[mq.Delivery] = []
            while len({d.sequence for d in taken}) < 200:
                for consumer in (first, second):
                    if consumer.responses.qsize():
                        await consumer.step()
                        await consumer.ack(consumer.taken)
                        taken += consumer.taken
                        consumer.taken = []
                await asyncio.sleep(0)
            return taken

        async with asyncio.timeout(DEADLINE_S):
            taken = await both()
        for consumer in (first, second):
            assert consumer.held
        assert {d.partition for d in taken} == {0, 1, 2, 3}

        async def done() -> bool:
            found = (await groups(to_b))["g"]
            return found.members == 2 and sum(p.lag for p in found.positions) == 0

        await until(done)
        # One broker stops: its partitions move at once, and what was done stays done.
        await a.stop()
        await second.assigned(4)
        await publish(to_b, 1, 20)
        assert {d.producer for d in await second.deliveries(20)} == {"p"}


async def test_a_group_is_moved_at_either_broker_once_it_has_no_members(serving: Serving) -> None:
    async with two(serving, partitions=1) as (_, to_a, _, to_b):
        await publish(to_a, 1, 10)
        consumer = Consumer(to_a)
        await consumer.open()
        await consumer.credit(100)
        await consumer.ack(await consumer.deliveries(10))
        request = mq.SeekRequest(topic="t", group="g", offset=4)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(to_b, "Seek", request, mq.SeekResponse)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        consumer.call.cancel()

        async def empty() -> bool:
            return (await groups(to_b))["g"].members == 0

        await until(empty)
        moved = await ask(to_b, "Seek", request, mq.SeekResponse)
        assert [p.next_offset for p in moved.positions] == [4]
        again = Consumer(to_a)
        await again.open()
        await again.credit(100)
        assert [d.offset for d in await again.deliveries(6)] == list(range(4, 10))


async def test_a_position_beyond_what_this_broker_has_heard_of_is_believed(
    serving: Serving,
) -> None:
    """A sink that has stored what one broker delivered goes on at the other."""
    async with two(serving, partitions=1) as (_, to_a, _, to_b):
        await publish(to_a, 1, 10)
        consumer = Consumer(to_b)
        consumer.positions = {0: 10}
        await consumer.open()
        await consumer.credit(100)
        await consumer.assigned(1)
        await publish(to_a, 11, 1)
        assert [d.offset for d in await consumer.deliveries(1)] == [10]
