"""The sink between a real broker and a real database, either of which may go away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from gputel import store as store_package
from gputel.broker import BrokerClient
from gputel.collector.settings import CollectorSettings
from gputel.observe import Health, Telemetry
from gputel.sink import Sink
from gputel.store import Store
from gputel.store.settings import DatabaseSettings, StoreSettings
from support.brokers import connected, serving
from support.sinking import DEADLINE_S, TOPIC, check, publish, until

if TYPE_CHECKING:
    from support.database import Producer


@pytest.fixture
async def client(tmp_path: Path) -> AsyncGenerator[BrokerClient]:
    """A client of a broker of this test's own, with two partitions."""
    async with (
        serving(tmp_path / "broker", partitions=2) as server,
        connected(server.address) as client,
    ):
        yield client


@pytest.fixture
def producers(make_producer: Callable[..., Producer]) -> list[Producer]:
    return [make_producer(node=f"node-{i}", seed=i) for i in range(5)]


class Running:
    """A sink at work."""

    def __init__(self, store: Store, client: BrokerClient, **settings: Any) -> None:
        self.telemetry = Telemetry("sink")
        self.health = Health("sink")
        self.stop = asyncio.Event()
        self.sink = Sink(
            CollectorSettings(**settings),
            store,
            StoreSettings(),
            client,
            TOPIC,
            self.telemetry,
            self.health,
        )
        self.task = asyncio.create_task(self.sink.run(self.stop))

    async def end(self) -> None:
        """As told by its service."""
        self.stop.set()
        await asyncio.wait_for(self.task, DEADLINE_S)
        self.telemetry.close()

    async def break_off(self) -> None:
        """In the middle of whatever it does."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.telemetry.close()


async def stored(store: Store, frames: int) -> None:
    """Wait until so many messages are behind the offsets."""

    async def reached() -> bool:
        async with store.session() as session:
            total = await session.fetchval("SELECT coalesce(sum(next_offset), 0) FROM sink_offset")
        return bool(total >= frames)

    await until(reached)


async def test_everything_is_stored_then_acknowledged(
    store: Store, client: BrokerClient, producers: list[Producer]
) -> None:
    running = Running(store, client, batch_size=7)
    for producer in producers:
        await publish(client, producer, 0, 20)
    await stored(store, 100)

    async def acknowledged() -> bool:
        return sum(p.lag for g in await client.groups() for p in g.positions) == 0

    await until(acknowledged)
    assert not any(running.health.readiness().values())
    text = running.telemetry.exposition()[0].decode()
    assert "gputel_sink_frames_total 100.0" in text
    assert "gputel_sink_rows_total 200.0" in text
    assert "gputel_sink_delay_seconds_count 100.0" in text
    assert "gputel_sink_missing_frames_total 0.0" in text
    await running.end()
    await check(store, producers)


async def test_sinks_that_break_off_anywhere_store_once(
    store: Store, client: BrokerClient, producers: list[Producer]
) -> None:
    for part in range(8):
        for producer in producers:
            await publish(client, producer, part * 6, 6)
        running = Running(store, client, batch_size=2)
        await stored(store, part * 30 + 1 + 3 * part)
        await running.break_off()
    running = Running(store, client)
    await stored(store, 240)
    await running.end()
    await check(store, producers)


async def test_a_poison_message_does_not_stop_its_partition(
    store: Store, client: BrokerClient, producers: list[Producer]
) -> None:
    producer = producers[0]
    await publish(client, producer, 0, 2)
    poison = await client.publisher(TOPIC, "somebody", 1)
    await poison.publish(1, producer.node, b"\xff" * 50)
    assert await poison.flush(20)
    await poison.close()
    await publish(client, producer, 2, 2)
    running = Running(store, client)
    await stored(store, 5)
    await running.end()
    assert running.sink.done.dead_letters == 1
    await check(store, [producer])


async def test_a_second_sink_takes_over(
    store: Store, database: DatabaseSettings, client: BrokerClient, producers: list[Producer]
) -> None:
    other_store = await store_package.connect(database)
    first, second = Running(store, client), Running(other_store, client)
    for producer in producers:
        await publish(client, producer, 0, 4)
    await stored(store, 20)
    await first.break_off()
    for producer in producers:
        await publish(client, producer, 4, 4)
    await stored(store, 40)
    await second.end()
    await other_store.close()
    await check(store, producers)


async def test_a_database_that_goes_away_is_waited_for(
    database: DatabaseSettings,
    as_admin: Callable[..., Awaitable[None]],
    client: BrokerClient,
    producers: list[Producer],
) -> None:
    store = await store_package.connect(database)
    running = Running(store, client, ack_timeout_seconds=0.2)
    for producer in producers:
        await publish(client, producer, 0, 4)
    await stored(store, 20)
    name = database.dbname
    await as_admin(
        f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
    )
    for producer in producers:
        await publish(client, producer, 4, 4)

    async def noticed() -> bool:
        return bool(running.health.readiness()["database"])

    await until(noticed)
    await as_admin(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    await stored(store, 40)
    assert running.health.readiness()["database"] is None
    await running.end()
    await check(store, producers)
    await store.close()


async def test_a_full_disk_is_reported_and_waited_out(
    store: Store,
    client: BrokerClient,
    producers: list[Producer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy_to_table = asyncpg.Connection.copy_to_table
    full = True

    async def copy(self: Any, table: str, **options: Any) -> str:
        if full:
            raise asyncpg.DiskFullError('could not extend file "base/1": No space left on device')
        return await copy_to_table(self, table, **options)

    monkeypatch.setattr(asyncpg.Connection, "copy_to_table", copy)
    running = Running(store, client)
    for producer in producers:
        await publish(client, producer, 0, 4)

    async def reported() -> bool:
        problem = running.health.readiness()["database"] or ""
        return "disk is full" in problem and "make room" in problem

    await until(reported)
    async with store.session() as session:
        assert await session.fetchval("SELECT sum(next_offset) FROM sink_offset") == 0
    full = False
    await stored(store, 20)
    assert running.health.readiness()["database"] is None
    assert running.sink.done.dead_letters == 0
    await running.end()
    await check(store, producers)
