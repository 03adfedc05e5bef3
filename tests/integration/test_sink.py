"""The sink against a broker that repeats itself, and a database that comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from gputel import store as store_package
from gputel.catalog import SET_BY_CADENCE, Cadence
from gputel.collector.settings import CollectorSettings
from gputel.observe import Health, Telemetry
from gputel.sink import Sink
from gputel.store import Store
from gputel.store.frames import Message
from gputel.store.query import Query
from gputel.store.settings import DatabaseSettings, StoreSettings

if TYPE_CHECKING:
    from conftest import Producer

START_NS = 1_760_000_000_000_000_000
MS = 1_000_000
FAST = SET_BY_CADENCE[Cadence.FAST].metrics


class Delivery(NamedTuple):
    partition: int
    offset: int
    stored_at_ns: int
    attempt: int
    producer: str
    epoch: int
    sequence: int
    payload: bytes


@dataclass
class FakeConsumer:
    """Delivers one partition from the offset that `on_assign` says, and may do so again."""

    broker: FakeBroker
    partition: int
    on_assign: Callable[[int], Awaitable[int | None]]
    on_revoke: Callable[[int], Awaitable[None]]
    connected: bool = False

    async def __aenter__(self) -> FakeConsumer:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.connected = False

    def __aiter__(self) -> AsyncIterator[Delivery]:
        return self._deliver()

    async def _deliver(self) -> AsyncGenerator[Delivery]:
        while True:
            generation = self.broker.generation
            offset = await self.on_assign(self.partition)
            assert offset is not None
            self.connected = True
            log = self.broker.log[self.partition]
            while generation == self.broker.generation:
                if offset >= len(log):
                    await self.broker.changed()
                    continue
                message = log[offset]
                yield Delivery(
                    self.partition,
                    message.offset,
                    0,
                    1,
                    message.producer,
                    message.epoch,
                    message.sequence,
                    message.payload,
                )
                offset += 1

    async def ack(self, partition: int, offsets: Sequence[int]) -> None:
        self.broker.acked.setdefault(partition, set()).update(offsets)

    async def in_progress(self, partition: int, offsets: Sequence[int]) -> None:
        self.broker.kept_alive += len(offsets)


class FakeBroker:
    """The seam that the sink sees of the broker; each consumer gets one partition."""

    def __init__(self, partitions: int) -> None:
        self.log: list[list[Message]] = [[] for _ in range(partitions)]
        self.acked: dict[int, set[int]] = {}
        self.kept_alive = 0
        self.generation = 0
        self._consumers = 0
        self._changed = asyncio.Event()

    def consumer(self, topic: str, **options: Any) -> FakeConsumer:
        assert topic == "telemetry"
        assert options["group"] == "store"
        self._consumers += 1
        return FakeConsumer(self, self._consumers - 1, options["on_assign"], options["on_revoke"])

    def append(self, partition: int, message: Message) -> None:
        log = self.log[partition]
        log.append(message._replace(offset=len(log)))
        self._wake()

    def reconnect(self) -> None:
        """All consumers begin again at the offset that the sink says."""
        self.generation += 1
        self._wake()

    async def changed(self) -> None:
        await self._changed.wait()

    def _wake(self) -> None:
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    def all_acked(self) -> bool:
        return all(
            len(self.acked.get(partition, ())) == len(log) for partition, log in enumerate(self.log)
        )


class Running:
    """A sink at work."""

    def __init__(self, store: Store, broker: FakeBroker, **settings: Any) -> None:
        self.telemetry = Telemetry("sink")
        self.health = Health("sink")
        self.stop = asyncio.Event()
        self.sink = Sink(
            CollectorSettings(worker_count=len(broker.log), **settings),
            store,
            StoreSettings(),
            broker,  # type: ignore[arg-type]
            "telemetry",
            self.telemetry,
            self.health,
        )
        self.task = asyncio.create_task(self.sink.run(self.stop))

    async def end(self) -> None:
        self.stop.set()
        await asyncio.wait_for(self.task, 15)
        self.telemetry.close()


async def eventually(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def check(store: Store, producer: Producer) -> None:
    query = Query(store)
    for index in range(producer.gpus):
        row = await query.gpu(producer.gpu(index).uuid)
        page = await query.telemetry(
            row, start_ns=0, end_ns=START_NS * 2, metrics=FAST, limit=1_000_000
        )
        for series in page.series:
            found = list(zip(series.time_ns.tolist(), series.values.tolist(), strict=True))
            assert found == producer.expected(row.gpu.uuid, series.metric, 0, START_NS * 2)


def publish(broker: FakeBroker, partition: int, producer: Producer, first: int, n: int) -> None:
    for i in range(first, first + n):
        broker.append(partition, producer.publish([START_NS + i * 100 * MS]))


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker(2)


@pytest.fixture
def producers(make_producer: Callable[..., Producer]) -> list[Producer]:
    return [make_producer(node=f"node-{i}", seed=i) for i in range(2)]


async def test_everything_is_stored_then_acknowledged(
    store: Store, broker: FakeBroker, producers: list[Producer]
) -> None:
    running = Running(store, broker, batch_size=7)
    for partition, producer in enumerate(producers):
        publish(broker, partition, producer, 0, 40)
    await eventually(broker.all_acked)
    assert not any(running.health.readiness().values())
    text = running.telemetry.exposition()[0].decode()
    assert "gputel_sink_frames_total 80.0" in text
    assert "gputel_sink_rows_total 160.0" in text
    assert "gputel_sink_latency_seconds_count 80.0" in text
    await running.end()
    for producer in producers:
        await check(store, producer)


async def test_repeated_deliveries_and_restarts_store_once(
    store: Store, broker: FakeBroker, producers: list[Producer]
) -> None:
    for part in range(6):
        running = Running(store, broker, batch_size=3)
        for partition, producer in enumerate(producers):
            publish(broker, partition, producer, part * 10, 10)
        await eventually(lambda: sum(len(a) for a in broker.acked.values()) > 20 * part)
        broker.reconnect()
        if part % 2:
            running.task.cancel()  # as when the process is killed between two statements
            await asyncio.gather(running.task, return_exceptions=True)
            running.telemetry.close()
        else:
            await running.end()
    running = Running(store, broker)
    async with store.session() as session:
        async with asyncio.timeout(20):
            while await session.fetchval("SELECT sum(next_offset) FROM sink_offset") < 120:
                await asyncio.sleep(0.01)
    await running.end()
    for producer in producers:
        await check(store, producer)


async def test_a_poison_message_does_not_stop_its_partition(
    store: Store, broker: FakeBroker, producers: list[Producer]
) -> None:
    publish(broker, 0, producers[0], 0, 2)
    broker.append(0, Message(0, "somebody", 1, 1, b"\xff" * 50))
    publish(broker, 0, producers[0], 2, 2)
    publish(broker, 1, producers[1], 0, 1)
    running = Running(store, broker)
    await eventually(broker.all_acked)
    await running.end()
    assert running.sink.done.dead_letters == 1
    await check(store, producers[0])


async def test_a_second_sink_takes_over(
    store: Store, database: DatabaseSettings, broker: FakeBroker, producers: list[Producer]
) -> None:
    publish(broker, 0, producers[0], 0, 5)
    publish(broker, 1, producers[1], 0, 5)
    first = Running(store, broker)
    await eventually(broker.all_acked)
    other_store = await store_package.connect(database)
    standby = FakeBroker(2)
    standby.log = broker.log
    second = Running(other_store, standby)
    first.task.cancel()
    await asyncio.gather(first.task, return_exceptions=True)
    publish(standby, 0, producers[0], 5, 5)
    publish(standby, 1, producers[1], 5, 5)
    await eventually(lambda: standby.acked == {0: set(range(5, 10)), 1: set(range(5, 10))}, 5)
    await second.end()
    first.telemetry.close()
    await other_store.close()
    for producer in producers:
        await check(store, producer)


async def test_a_database_that_goes_away_is_waited_for(
    database: DatabaseSettings,
    make_admin: Callable[..., Awaitable[None]],
    broker: FakeBroker,
    producers: list[Producer],
) -> None:
    store = await store_package.connect(database)
    running = Running(store, broker, ack_timeout_seconds=0.3)
    publish(broker, 0, producers[0], 0, 5)
    publish(broker, 1, producers[1], 0, 5)
    await eventually(broker.all_acked)
    await make_admin(
        f"ALTER DATABASE {database.dbname} ALLOW_CONNECTIONS false",
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database.dbname}'",
    )
    publish(broker, 0, producers[0], 5, 5)
    publish(broker, 1, producers[1], 5, 5)
    await eventually(lambda: bool(running.health.readiness()["database"]))
    await eventually(lambda: broker.kept_alive > 0)
    await make_admin(f"ALTER DATABASE {database.dbname} ALLOW_CONNECTIONS true")
    await eventually(broker.all_acked)
    assert running.health.readiness()["database"] is None
    await running.end()
    for producer in producers:
        await check(store, producer)
    await store.close()
