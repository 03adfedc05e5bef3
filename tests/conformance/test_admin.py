"""Moving groups, looking into topics, dead letters: the unary calls, through the client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from conformance.conftest import Serving
from gputel import broker
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker import BrokerClient, StartAt, letters
from gputel.broker.server import BrokerServer
from gputel.clock import NS_PER_S, ManualClock
from gputel.errors import InputError, NotFound
from support.messages import publish, take
from support.wire import until


@asynccontextmanager
async def serving_client(
    serving: Serving, **settings: Any
) -> AsyncIterator[tuple[BrokerServer, BrokerClient]]:
    async with serving(**settings) as server:
        client = await broker.connect(server.address)
        try:
            yield server, client
        finally:
            await client.close()


async def bury(client: BrokerClient, count: int) -> None:
    """Give up the first `count` messages of topic t, and wait until they lie in t.dlq."""
    wanted = count

    async def buried() -> bool:
        dead = [
            of
            for topic in await client.topics()
            for of in topic.partitions
            if topic.name == "t.dlq"
        ]
        return sum(of.next_offset for of in dead) >= wanted

    async with client.consumer("t", group="g") as consumer:
        async for delivery in consumer:
            await consumer.term(delivery.partition, delivery.offset, f"bad {delivery.offset}")
            count -= 1
            if not count:
                break
        await until(buried, timeout_s=30)
    await client.seek("t", "g", StartAt.LATEST)


async def test_a_group_is_moved_to_an_edge_an_offset_and_stays_there(serving: Serving) -> None:
    async with serving_client(serving, partitions=1) as (_, client):
        await publish(client, 10)
        assert await take(client, "g", 10) == [b"m%d" % n for n in range(1, 11)]
        [position] = await client.seek("t", "g", StartAt.EARLIEST)
        assert (position.next_offset, position.lag) == (0, 10)
        assert (await take(client, "g", 3))[0] == b"m1"
        await client.seek("t", "g", 7)
        assert await take(client, "g", 3) == [b"m8", b"m9", b"m10"]
        [position] = await client.seek("t", "g", 10**12)  # clipped
        assert position.next_offset == 10
        await client.seek("t", "new", 4)  # a group that did not exist
    async with serving_client(serving, partitions=1) as (_, client):
        assert await take(client, "new", 1) == [b"m5"]


async def test_what_makes_no_sense_is_refused_in_words(serving: Serving) -> None:
    async with serving_client(serving, partitions=2) as (_, client):
        await publish(client, 4)
        with pytest.raises(NotFound, match="no topic 'x'"):
            await client.seek("x", "g", StartAt.LATEST)
        with pytest.raises(NotFound, match="no topic 'x'"):
            await client.fetch("x", 0, 0)
        with pytest.raises(InputError, match="0 to 1"):
            await client.fetch("t", 2, 0)
        with pytest.raises(InputError, match="0 to 1"):
            await client.seek("t", "g", 0, [0, 7])
        with pytest.raises(InputError, match="group"):
            await client.seek("t", "../g", 0)
        with pytest.raises(InputError, match="an edge"):
            await client._ask("Seek", mq.SeekRequest(topic="t", group="g"), mq.SeekResponse)
        async with client.consumer("t", group="g") as consumer:
            await anext(consumer)
            with pytest.raises(InputError, match="has 1 members"):
                await client.seek("t", "g", StartAt.EARLIEST)
        with pytest.raises(NotFound, match="no dead letters"):
            [_ async for _ in letters.letters(client, "t")]
        with pytest.raises(InputError, match="name the topic"):
            await letters.replay(client, "t.dlq", told=lambda _: None)


async def test_fetching_reads_without_taking(serving: Serving) -> None:
    async with serving_client(serving, partitions=1) as (_, client):
        await publish(client, 5)
        fetched = await client.fetch("t", 0, 2, 2)
        assert [d.payload for d in fetched.deliveries] == [b"m3", b"m4"]
        assert fetched.next_offset == 4
        assert (await client.fetch("t", 0, 5)).next_offset == 5
        assert not (await client.fetch("t", 0, 5)).deliveries
        assert await take(client, "g", 5)


async def test_dead_letters_are_listed_and_published_again_once(serving: Serving) -> None:
    async with serving_client(serving, partitions=1) as (_, client):
        await publish(client, 5)
        await bury(client, 3)
        listed = [found async for found in letters.letters(client, "t")]
        # Several are buried in any order.
        reasons = sorted((f.letter.payload, f.letter.reason) for f in listed if f.letter)
        assert reasons == [(b"m1", "bad 0"), (b"m2", "bad 1"), (b"m3", "bad 2")]
        assert not any(found.replayed for found in listed)

        told: list[int] = []
        assert await letters.replay(client, "t", limit=2, told=told.append) == (2, 0)
        assert await letters.replay(client, "t", told=told.append) == (1, 0)
        assert await letters.replay(client, "t", told=told.append) == (0, 0)
        assert told == [2, 1]
        assert all([found.replayed async for found in letters.letters(client, "t")])
        assert sorted(await take(client, "g", 3)) == [b"m1", b"m2", b"m3"]

        # Cut off after publishing and before it was noted: nothing is stored twice.
        await client.seek("t.dlq", letters.REPLAY, StartAt.EARLIEST)
        assert await letters.replay(client, "t", told=told.append) == (3, 0)
        [topic] = [t for t in await client.topics() if t.name == "t"]
        assert topic.partitions[0].next_offset == 8


async def test_a_stranger_among_the_dead_letters_is_passed_by(serving: Serving) -> None:
    async with serving_client(serving, partitions=1) as (_, client):
        await publish(client, 2)
        await bury(client, 1)
        await publish(client, 1, topic="t.dlq")
        assert await letters.replay(client, "t", told=lambda _: None) == (1, 1)


def _at(time_ns: int, early_us: int = 0) -> datetime:
    moment = datetime.fromtimestamp(time_ns // NS_PER_S, UTC)
    return moment + timedelta(microseconds=time_ns % NS_PER_S // 1000 - early_us)


async def test_a_group_is_moved_in_time(serving: Serving) -> None:
    clock = ManualClock()
    async with serving_client(serving, partitions=1, clock=clock) as (_, client):
        publisher = await client.publisher("t", "p", epoch=1)
        for sequence in range(1, 13):
            await publisher.publish(sequence, "k", bytes(1000))
            assert await publisher.flush(10)
            clock.advance(60)
        await publisher.close()
        times = [d.stored_at_ns for d in (await client.fetch("t", 0, 0)).deliveries]
        assert len(times) == 12
        for wanted, time_ns in enumerate(times):
            for early_us in (0, 1):
                [position] = await client.seek("t", "g", _at(time_ns, early_us))
                assert position.next_offset == wanted
        far = _at(clock.time_ns()) + timedelta(days=365)
        assert (await client.seek("t", "g", far))[0].next_offset == 12
