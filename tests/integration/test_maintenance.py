"""Sealing changes where samples are, never what a query finds; retention drops what is old."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gputel.catalog import METRICS, SET_BY_CADENCE, Cadence
from gputel.clock import SYSTEM_CLOCK, ManualClock
from gputel.store import Store
from gputel.store.claim import Claims
from gputel.store.frames import Message
from gputel.store.ingest import Ingest
from gputel.store.maintain import Maintainer
from gputel.store.query import Query
from gputel.store.settings import StoreSettings

if TYPE_CHECKING:
    from support.database import Producer

START_NS = 1_760_000_000_000_000_000
S = 1_000_000_000
HOUR_S = 3600
SETTINGS = StoreSettings(hot_partition_minutes=1, seal_after_minutes=1)
Found = dict[str, tuple[list[int], list[float]]]


async def everything(store: Store, limit: int = 1_000_000) -> dict[int, Found]:
    query = Query(store)
    answer: dict[int, Found] = {}
    for row in await query.gpus():
        found: Found = {metric.name: ([], []) for metric in METRICS}
        cursor = None
        while True:
            page = await query.telemetry(
                row, start_ns=0, end_ns=START_NS * 2, metrics=METRICS, limit=limit, cursor=cursor
            )
            for series in page.series:
                found[series.metric.name][0].extend(series.time_ns.tolist())
                found[series.metric.name][1].extend(series.values.tolist())
            cursor = page.next_cursor
            if cursor is None:
                break
        answer[row.gpu_id] = found
    return answer


async def minutes(store: Store) -> list[tuple[object, ...]]:
    async with store.session() as session:
        rows = await session.fetch(
            "SELECT gpu_id, metric, minute, n, min, max, sum FROM gpu_minute ORDER BY 1, 2, 3"
        )
    return [tuple(row) for row in rows]


async def same_minutes(before: list[tuple[object, ...]], after: list[tuple[object, ...]]) -> None:
    assert [row[:6] for row in after] == [row[:6] for row in before]
    assert np.allclose([row[6] for row in after], [row[6] for row in before], rtol=1e-12)  # type: ignore[arg-type]


async def commit(store: Store, ingest: Ingest, messages: list[Message]) -> None:
    claims = Claims(store, SYSTEM_CLOCK)
    claim = await claims.acquire("telemetry", 0)
    assert claim is not None
    await ingest.commit(claim, messages)
    await claims.close()


def five_minutes(producer: Producer) -> list[Message]:
    messages = [producer.publish([START_NS + i * S]) for i in range(0, 300, 3)]
    messages += [
        producer.publish([START_NS + i * S], cadence=Cadence.MEDIUM) for i in range(0, 300, 30)
    ]
    messages.append(producer.publish([START_NS + i * S for i in range(100, 140)]))
    return messages


async def seal_all(store: Store, clock: ManualClock) -> Maintainer:
    maintainer = Maintainer(store, SETTINGS, clock)
    await maintainer.round()
    return maintainer


@pytest.fixture
def later() -> ManualClock:
    """Long enough after now for everything to be sealed, not dropped."""
    return ManualClock(SYSTEM_CLOCK.time_ns() + HOUR_S * S)


async def test_queries_find_the_same_before_and_after_sealing(
    store: Store, producer: Producer, later: ManualClock
) -> None:
    ingest = Ingest(store, SETTINGS)
    await commit(store, ingest, five_minutes(producer))
    before, minutes_before = await everything(store), await minutes(store)
    maintainer = await seal_all(store, later)
    assert maintainer.counts.sealed_rows == 2 * 110
    async with store.session() as session:
        for cadence in Cadence:
            table = f"sample_hot_{SET_BY_CADENCE[cadence].name}"
            assert await session.fetchval(f"SELECT count(*) FROM {table}") == 0
    assert await everything(store) == before
    assert await everything(store, limit=777) == before
    await same_minutes(minutes_before, await minutes(store))


async def test_late_data_make_their_partition_again(
    store: Store, producer: Producer, later: ManualClock
) -> None:
    ingest = Ingest(store, SETTINGS)
    await commit(store, ingest, five_minutes(producer))
    await seal_all(store, later)
    late = [producer.publish([START_NS + i * S + S // 2]) for i in range(0, 300, 7)]
    await commit(store, ingest, late)
    before, minutes_before = await everything(store), await minutes(store)
    points = sum(len(times) for found in before.values() for times, _ in found.values())
    assert points == sum(len(p) for p in producer.points.values())
    await seal_all(store, later)
    assert await everything(store) == before
    await same_minutes(minutes_before, await minutes(store))


async def test_readers_and_writers_go_on_while_sealing(
    store: Store, make_producer: Callable[..., Producer], later: ManualClock
) -> None:
    producer = make_producer(gpus=1)
    ingest = Ingest(store, SETTINGS)
    await commit(store, ingest, five_minutes(producer))
    before = await everything(store)
    done = asyncio.Event()

    async def read() -> int:
        rounds = 0
        while not done.is_set() or rounds == 0:
            found = await everything(store)
            for gpu_id, series in before.items():
                for name, (times, _) in series.items():
                    assert set(times) <= set(found[gpu_id][name][0])
            rounds += 1
        return rounds

    async def write() -> None:
        claims = Claims(store, SYSTEM_CLOCK)
        claim = await claims.acquire("telemetry", 0)
        assert claim is not None
        for i in range(30):
            await ingest.commit(claim, [producer.publish([START_NS + i * 10 * S + S // 4])])
        await claims.close()

    async def seal() -> None:
        for _ in range(5):
            await seal_all(store, later)
        done.set()

    await asyncio.gather(read(), write(), seal())
    found = await everything(store)
    points = sum(len(times) for series in found.values() for times, _ in series.values())
    assert points == sum(len(p) for p in producer.points.values())


async def test_what_is_old_is_dropped_but_not_what_was_just_stored(
    store: Store, producer: Producer
) -> None:
    ingest = Ingest(store, SETTINGS)
    await commit(store, ingest, five_minutes(producer))  # months old, stored now
    clock = ManualClock(SYSTEM_CLOCK.time_ns())
    maintainer = Maintainer(store, SETTINGS, clock)
    clock.advance(6 * 24 * HOUR_S)
    await maintainer.round()
    assert maintainer.counts.dropped_partitions == 0
    clock.advance(3 * 24 * HOUR_S)
    await maintainer.round()
    assert maintainer.counts.dropped_partitions > 0
    found = await everything(store)
    assert not any(times for series in found.values() for times, _ in series.values())
    assert await minutes(store)  # kept longer
    clock.advance(90 * 24 * HOUR_S)
    await maintainer.round()
    assert not await minutes(store)
    async with store.session() as session:
        assert await session.fetchval("SELECT count(*) FROM gpu_hour") > 0
    clock.advance((730 + 30) * 24 * HOUR_S)
    await maintainer.round()
    async with store.session() as session:
        assert await session.fetchval("SELECT count(*) FROM gpu_hour") == 0


async def test_partitions_are_made_ahead(store: Store) -> None:
    await Maintainer(store, StoreSettings()).round()
    async with store.session() as session:
        parents = await session.fetch(
            "SELECT parent, count(*) FROM store_partition WHERE upper > now() GROUP BY parent"
        )
    assert {row[0]: row[1] for row in parents} == {
        **{f"sample_hot_{s.name}": 2 for s in SET_BY_CADENCE.values()},
        "sample_chunk": 2,
        "rollup_1m": 2,
        "rollup_1h": 2,
        "process_sample": 2,
    }


async def test_one_process_maintains(store: Store) -> None:
    both = [Maintainer(store, StoreSettings()) for _ in range(2)]
    tasks = [asyncio.create_task(maintainer.run()) for maintainer in both]
    async with asyncio.timeout(20):
        while sum(maintainer.counts.rounds for maintainer in both) == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(maintainer.counts.rounds for maintainer in both) == 1
