"""What tests of the store's tiers store, and how they look whether all of it is found, once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np

from gputel.catalog import BY_NAME, METRIC_SETS, Cadence
from gputel.clock import SYSTEM_CLOCK, ManualClock
from gputel.store import Store, schema
from gputel.store.claim import Claims
from gputel.store.frames import Message
from gputel.store.ingest import Ingest
from gputel.store.maintain import Maintainer
from gputel.store.partitions import Partitions
from gputel.store.query import Query
from gputel.store.sealing import Due, Sealing
from gputel.store.settings import StoreSettings
from gputel.store.times import to_ns

if TYPE_CHECKING:
    from support.database import Point, Producer

START_NS = 1_760_000_000_000_000_000
END_NS = START_NS + 86_400_000_000_000
S = 1_000_000_000
HOUR_NS = 3600 * S
SETTINGS = StoreSettings(hot_partition_minutes=10, seal_after_minutes=1)
POWER = BY_NAME["power_watts"]


async def commit(store: Store, messages: list[Message]) -> None:
    ingest = Ingest(store, SETTINGS)
    claims = Claims(store, SYSTEM_CLOCK)
    claim = await claims.acquire("telemetry", 0)
    assert claim is not None
    await ingest.commit(claim, messages)
    await claims.close()


def mixed(producer: Producer) -> list[Message]:
    """Three hours: rows, chunks, and rows that are late."""
    messages = [producer.publish([START_NS + i * 60 * S]) for i in range(180)]
    messages += [
        producer.publish([START_NS + (i + j) * S + S // 4 for j in range(50)])
        for i in range(0, 10_000, 50)
    ]
    messages += [
        producer.publish([START_NS + i * 300 * S], cadence=Cadence.SLOW) for i in range(36)
    ]
    return messages


async def points(store: Store, producer: Producer) -> None:
    """Every value that was published is found once, in two ways of asking."""
    query = Query(store)
    for row in await query.gpus():
        for limit in (1_000_000, 3333):
            found: list[Point] = []
            cursor = None
            while True:
                page = await query.telemetry(
                    row,
                    start_ns=START_NS,
                    end_ns=END_NS,
                    metrics=[POWER],
                    limit=limit,
                    cursor=cursor,
                )
                (series,) = page.series
                found += zip(series.time_ns.tolist(), series.values.tolist(), strict=True)
                cursor = page.next_cursor
                if cursor is None:
                    break
            assert [time_ns for time_ns, _ in found] == sorted(time_ns for time_ns, _ in found)
            assert sorted(found) == producer.expected(row.gpu.uuid, POWER, START_NS, END_NS)


async def hours(store: Store, producer: Producer) -> None:
    """gpu_hour says what was published, of every metric."""
    async with store.session() as session:
        found = {
            (r["uuid"], r["metric"], int(r["hour"].timestamp())): tuple(r)[4:]
            for r in await session.fetch(
                "SELECT uuid, metric, hour, unit, n, min, max, avg, sum FROM gpu_hour"
            )
        }
    expected = {}
    for (uuid, metric), published in producer.points.items():
        by_hour: dict[int, list[float]] = {}
        for time_ns, value in published:
            by_hour.setdefault(time_ns // HOUR_NS * 3600, []).append(float(value))
        for hour, of_hour in by_hour.items():
            expected[uuid, metric.name, hour] = of_hour
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        n, low, high, mean, total = found[key]
        assert (n, low, high) == (len(values), min(values), max(values))
        assert np.isclose(total, sum(values), rtol=1e-9)
        assert np.isclose(mean, sum(values) / n, rtol=1e-9)


async def count(store: Store, what: str) -> int:
    async with store.session() as session:
        return int(await session.fetchval(f"SELECT count(*) FROM {what}"))


async def settle(maintainer: Maintainer, clock: ManualClock) -> None:
    """Rounds until nothing is left to do; the next passes of merging are then a day away."""
    for _ in range(3):
        await maintainer.round()
    clock.advance(2 * 86_400)
    for _ in range(3):
        await maintainer.round()


async def seal(store: Store) -> None:
    """Everything that is in hot rows; the partitions are gone afterwards."""
    partitions = Partitions(store, StoreSettings())
    sets = {schema.hot_table(metric_set): metric_set for metric_set in METRIC_SETS}
    async with asyncio.timeout(60):  # a busy machine may not let go of one in time
        while True:
            async with store.session() as session:
                found = await session.fetch(
                    "SELECT parent, name, lower, upper FROM store_partition WHERE parent = ANY($1)",
                    list(sets),
                )
            if not found:
                return
            due = [Due(sets[parent], *rest) for parent, *rest in found]
            days = [np.array([to_ns(one.lower), to_ns(one.upper) - 1]) for one in due]
            needs = {"sample_chunk": days, "rollup_1m": days}
            await partitions.ensure(needs)
            sealing = Sealing(store, due, asyncio.create_task(asyncio.sleep(0)))
            await sealing.steps()
            for drop in sealing.drops():
                await drop()
