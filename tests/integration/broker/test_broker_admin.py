"""Seeking, fetching, dead letters and verifying, through the client and the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gputel import broker
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker import BrokerClient, StartAt, letters
from gputel.broker.engine.segment import SUFFIX
from gputel.broker.engine.verify import Verdict, verify
from gputel.broker.engines import make_engine
from gputel.broker.server import BrokerServer
from gputel.broker.settings import BrokerSettings
from gputel.clock import NS_PER_S, ManualClock
from gputel.errors import InputError, NotFound
from gputel.observe import Health, Telemetry
from gputel.services.broker_admin import parse_target


@asynccontextmanager
async def serving(path: Path, **settings: Any) -> AsyncIterator[tuple[BrokerServer, BrokerClient]]:
    telemetry = Telemetry("broker")
    clock = settings.pop("clock", None)
    options = BrokerSettings(**{"listen": "127.0.0.1:0", "partitions": 1, **settings})
    extra = {"clock": clock} if clock else {}
    engine = make_engine(options, path, **extra)
    server = BrokerServer(options, engine, telemetry, Health("broker"), **extra)
    client = None
    try:
        await server.start()
        client = await broker.connect(server.address)
        yield server, client
    finally:
        if client is not None:
            await client.close()
        await server.stop()
        telemetry.close()


async def publish(client: BrokerClient, count: int, *, topic: str = "t", first: int = 1) -> None:
    publisher = await client.publisher(topic, "p", epoch=1)
    for sequence in range(first, first + count):
        await publisher.publish(sequence, f"k{sequence % 4}", f"m{sequence}".encode())
    assert await publisher.flush(10)
    await publisher.close()


async def take(client: BrokerClient, group: str, count: int, topic: str = "t") -> list[bytes]:
    async with client.consumer(topic, group=group) as consumer:
        taken = []
        async for delivery in consumer:
            taken.append(delivery.payload)
            await consumer.ack(delivery.partition, [delivery.offset])
            if len(taken) == count:
                return taken
    raise AssertionError("the consumer ended")


async def bury(client: BrokerClient, count: int) -> None:
    """Give up the first `count` messages of topic t, and wait until they lie in t.dlq."""
    async with client.consumer("t", group="g") as consumer:
        async for delivery in consumer:
            await consumer.term(delivery.partition, delivery.offset, f"bad {delivery.offset}")
            count -= 1
            if not count:
                break
    # Seeking buries first.
    await client.seek("t", "g", StartAt.LATEST)


async def test_a_group_is_moved_to_an_edge_an_offset_and_stays_there(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
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
    async with serving(tmp_path) as (_, client):
        assert await take(client, "new", 1) == [b"m5"]


async def test_a_group_is_moved_in_time_over_several_segments(tmp_path: Path) -> None:
    clock = ManualClock()
    start_ns = clock.time_ns()
    async with serving(tmp_path, clock=clock, segment_bytes=1 << 20) as (_, client):
        body = bytes(100_000)
        publisher = await client.publisher("t", "p", epoch=1)
        times = []
        for sequence in range(1, 31):
            await publisher.publish(sequence, "k", body)
            assert await publisher.flush(10)
            clock.advance(60)
        fetched = await client.fetch("t", 0, 0)
        offset = 0
        while offset < 30:
            fetched = await client.fetch("t", 0, offset)
            times += [delivery.stored_at_ns for delivery in fetched.deliveries]
            offset = fetched.next_offset
        await publisher.close()
        [topic] = await client.topics()
        assert topic.partitions[0].segments > 2
        for wanted, time_ns in enumerate(times):
            for early_us in (0, 1):
                time = datetime.fromtimestamp(time_ns // NS_PER_S, UTC) + timedelta(
                    microseconds=time_ns % NS_PER_S // 1000 - early_us
                )
                [position] = await client.seek("t", "g", time)
                assert position.next_offset == wanted
        far = datetime.fromtimestamp(start_ns / NS_PER_S, UTC) + timedelta(days=365)
        assert (await client.seek("t", "g", far))[0].next_offset == 30


async def test_what_makes_no_sense_is_refused_in_words(tmp_path: Path) -> None:
    async with serving(tmp_path, partitions=2) as (_, client):
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


async def test_fetching_reads_without_taking(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        await publish(client, 5)
        fetched = await client.fetch("t", 0, 2, 2)
        assert [d.payload for d in fetched.deliveries] == [b"m3", b"m4"]
        assert fetched.next_offset == 4
        assert (await client.fetch("t", 0, 5)).next_offset == 5
        assert not (await client.fetch("t", 0, 5)).deliveries
        assert await take(client, "g", 5)


async def test_dead_letters_are_listed_and_published_again_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
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


async def test_a_stranger_among_the_dead_letters_is_passed_by(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, client):
        await publish(client, 2)
        await bury(client, 1)
        await publish(client, 1, topic="t.dlq")
        assert await letters.replay(client, "t", told=lambda _: None) == (1, 1)


def whole(path: Path) -> Verdict:
    [verdict] = verify(path)
    return verdict


async def test_verify_tells_sound_torn_and_damaged_logs_apart(tmp_path: Path) -> None:
    async with serving(tmp_path, segment_bytes=1 << 20) as (_, client):
        publisher = await client.publisher("t", "p", epoch=1)
        for sequence in range(1, 31):
            await publisher.publish(sequence, "k", bytes(100_000))
            assert await publisher.flush(10)
        await publisher.close()
        while_running = whole(tmp_path)
    verdict = whole(tmp_path)
    assert while_running == verdict
    assert verdict.sound
    assert (verdict.messages, verdict.next_offset, verdict.missing_messages) == (30, 30, 0)
    segments = sorted((tmp_path / "topics" / "t" / "0").glob(f"*{SUFFIX}"))
    assert verdict.segments == len(segments) > 2

    last = segments[-1].read_bytes()
    segments[-1].write_bytes(last[:-10])
    verdict = whole(tmp_path)
    assert verdict.sound  # a torn tail: nothing of it was acknowledged, as far as one can tell
    assert verdict.tail_bytes > 0
    assert verdict.messages == 29
    segments[-1].write_bytes(last)

    first = bytearray(segments[0].read_bytes())
    first[200] ^= 1
    segments[0].write_bytes(first)
    verdict = whole(tmp_path)
    assert not verdict.sound
    assert (verdict.messages, verdict.missing_messages) == (29, 1)
    assert verdict.damaged_bytes > 100_000

    with pytest.raises(InputError, match="no broker's data directory"):
        whole(tmp_path / "topics")


def test_where_to_seek_is_read() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert parse_target("earliest", now) is StartAt.EARLIEST
    assert parse_target("17", now) == 17
    assert parse_target("90m", now) == now - timedelta(minutes=90)
    assert parse_target("2026-01-01T00:00:00Z", now) == now - timedelta(days=1)
    for bad in ("", "soon", "-5", "5y", "-5m", "2026-01-01", "2026-01-01T00:00:00", "9" * 30):
        with pytest.raises(InputError, match="allowed are"):
            parse_target(bad, now)


async def test_the_command_line_shows_and_moves(tmp_path: Path, run_gputel: Any) -> None:
    async with serving(tmp_path / "broker") as (server, client):
        await publish(client, 4)
        await bury(client, 1)
        config = tmp_path / "c.yaml"
        config.write_text(f"message_queue: {{address: '{server.address}'}}\n")

        async def ask(*arguments: str) -> Any:
            options = ("--config", str(config), "--data-dir", str(tmp_path))
            ended = await asyncio.to_thread(run_gputel, "broker", *options, *arguments)
            assert ended.returncode == 0, ended.stderr
            return json.loads(ended.stdout)["rows"] if "--json" in arguments else ended.stdout

        topics = await ask("topics", "--json")
        assert [(row["topic"], row["next_offset"]) for row in topics] == [("t", 4), ("t.dlq", 1)]
        assert "next_offset" in await ask("topics")
        assert (await ask("groups", "--json"))[0]["lag"] == 0
        assert (await ask("seek", "t", "g", "--to", "earliest", "--json"))[0]["lag"] == 4
        assert (await ask("lag", "g", "--json"))[0]["lag"] == 4
        assert (await ask("dlq", "list", "t", "--json"))[0]["reason"] == "bad 0"
        assert (await ask("dlq", "replay", "t", "--json"))[0]["published"] == 1
        assert await ask("dlq", "list", "t", "--json") == []
        assert all(row["sound"] for row in await ask("verify", "--json"))
