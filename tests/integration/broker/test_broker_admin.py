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
from gputel.broker import BrokerClient, StartAt
from gputel.broker.engine.segment import SUFFIX
from gputel.broker.engine.verify import Verdict, verify
from gputel.broker.engines import make_engine
from gputel.broker.server import BrokerServer
from gputel.broker.settings import BrokerSettings
from gputel.clock import NS_PER_S, ManualClock
from gputel.errors import InputError
from gputel.observe import Health, Telemetry
from gputel.services.broker_admin import parse_target
from support.messages import publish


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
