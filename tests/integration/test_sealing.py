"""Steps of sealing: as many at once as are allowed, and no more; and a row that nobody can read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from gputel.catalog import METRIC_SETS, SET_BY_CADENCE, Cadence
from gputel.clock import SYSTEM_CLOCK, ManualClock
from gputel.errors import DatabaseUnavailable
from gputel.store import Store, frozen, hot, late, partitions, schema, seal, sealing
from gputel.store.maintain import Maintainer
from support.tiers import HOUR_NS, SETTINGS, START_NS, S, commit, count, hours, points

if TYPE_CHECKING:
    from support.database import Producer

GPUS = 2 * sealing.STEPS_AT_ONCE
ROWS = 6
DEADLINE_S = 20
LOOKS = 20


async def test_as_many_steps_at_once_as_are_allowed(
    store: Store, make_producer: Callable[..., Producer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal, "ROWS_A_STEP", 2 * ROWS)  # one GPU's
    producer = make_producer(gpus=GPUS)
    messages = [producer.publish([START_NS + i * 20 * S]) for i in range(ROWS)]
    await commit(store, messages)
    maintainer = Maintainer(store, SETTINGS, ManualClock(SYSTEM_CLOCK.time_ns() + HOUR_NS))
    under_way = most = 0
    full = asyncio.Event()
    read_gpus = hot.read_gpus

    async def watched(connection: Any, *arguments: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            if under_way == sealing.STEPS_AT_ONCE:
                # As many as are allowed: another one would have begun by the end of this.
                for _ in range(LOOKS):
                    await connection.fetchval("SELECT 1")
                full.set()
            async with asyncio.timeout(DEADLINE_S):
                await full.wait()
            return await read_gpus(connection, *arguments)
        finally:
            under_way -= 1

    monkeypatch.setattr(hot, "read_gpus", watched)
    await maintainer.round()
    assert most == sealing.STEPS_AT_ONCE
    assert maintainer.counts.sealed_rows == GPUS * ROWS
    assert await count(store, schema.hot_table(SET_BY_CADENCE[Cadence.FAST])) == 0
    await points(store, producer)
    await hours(store, producer)


async def test_a_damaged_row_holds_up_its_own_partition_only(
    store: Store,
    make_producer: Callable[..., Producer],
    caplog: pytest.LogCaptureFixture,
) -> None:
    producer = make_producer(gpus=2)
    messages = [producer.publish([START_NS + i * 20 * S]) for i in range(ROWS)]
    messages.append(producer.publish([START_NS], cadence=Cadence.MEDIUM))
    await commit(store, messages)
    fast, medium = (schema.hot_table(SET_BY_CADENCE[c]) for c in (Cadence.FAST, Cadence.MEDIUM))
    damaged = "gpu_id = 1 AND sequence = 2"
    damage = f"UPDATE {fast} SET cells = $1 WHERE {damaged}"
    async with store.session() as session:
        cells = await session.fetchval(f"SELECT cells FROM {fast} WHERE {damaged}")
        await session.execute(damage, cells[:-1])
    maintainer = Maintainer(store, SETTINGS, ManualClock(SYSTEM_CLOCK.time_ns() + HOUR_NS))
    await maintainer.round()
    (said,) = (r.getMessage() for r in caplog.records if r.levelname == "ERROR")
    assert "cells of GPU 1, epoch 1, sequence 2: 167 bytes, where 168 hold" in said
    assert await count(store, medium) == 0
    assert await count(store, f"{fast} WHERE gpu_id = 1") > 0
    async with store.session() as session:
        await session.execute(damage, cells)
    await maintainer.round()
    assert await count(store, fast) == 0
    await points(store, producer)
    await hours(store, producer)


async def test_a_worker_without_gpus_begins_the_next_partition(
    store: Store, make_producer: Callable[..., Producer], monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = make_producer(gpus=1)
    messages = [producer.publish([START_NS + i * 20 * S]) for i in range(ROWS)]
    messages.append(producer.publish([START_NS], cadence=Cadence.MEDIUM))
    await commit(store, messages)
    fast, medium = (schema.hot_table(SET_BY_CADENCE[c]) for c in (Cadence.FAST, Cadence.MEDIUM))
    begun = asyncio.Event()
    order = []
    read_gpus = hot.read_gpus

    async def watched(connection: Any, table: str, *arguments: Any) -> Any:
        order.append(table.rpartition("_p")[0])
        if order[-1] == medium:
            begun.set()
        async with asyncio.timeout(DEADLINE_S):
            await begun.wait()
        return await read_gpus(connection, table, *arguments)

    monkeypatch.setattr(hot, "read_gpus", watched)
    maintainer = Maintainer(store, SETTINGS, ManualClock(SYSTEM_CLOCK.time_ns() + HOUR_NS))
    await maintainer.round()
    assert order == [fast, medium]
    assert maintainer.counts.sealed_rows == ROWS + 1
    await points(store, producer)
    await hours(store, producer)


@pytest.mark.usefixtures("plain")  # the size of what is elsewhere is not known
async def test_steps_begin_with_what_makes_up_one_and_end_with_less(
    store: Store, make_producer: Callable[..., Producer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal, "ROWS_A_STEP", 16 * ROWS)
    producer = make_producer(gpus=24)
    await commit(store, [producer.publish([START_NS + i * 20 * S]) for i in range(ROWS)])
    maintainer = Maintainer(store, SETTINGS, ManualClock(SYSTEM_CLOCK.time_ns() + HOUR_NS))
    sizes = []
    read_gpus = hot.read_gpus

    async def watched(*arguments: Any) -> Any:
        gpu_id, rows = await read_gpus(*arguments)
        sizes.append(len(rows) // ROWS)
        return gpu_id, rows

    monkeypatch.setattr(hot, "read_gpus", watched)
    monkeypatch.setattr(sealing, "STEPS_AT_ONCE", 1)
    await maintainer.round()
    assert sum(sizes) == 24
    assert sizes[0] == max(sizes) == 8
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 8
    await points(store, producer)


async def test_nothing_is_sealed_before_the_partitions_it_goes_into_are_made(
    store: Store, make_producer: Callable[..., Producer], monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = make_producer(gpus=2)
    await commit(store, [producer.publish([START_NS + i * 20 * S]) for i in range(ROWS)])
    fast = schema.hot_table(SET_BY_CADENCE[Cadence.FAST])
    maintainer = Maintainer(store, SETTINGS, ManualClock(SYSTEM_CLOCK.time_ns() + HOUR_NS))
    make = partitions.Partitions._make

    async def refused(self: Any, wanted: Any) -> int:
        raise DatabaseUnavailable("no partition was made")

    monkeypatch.setattr(partitions.Partitions, "_make", refused)
    with pytest.raises(DatabaseUnavailable, match="no partition was made"):
        await maintainer.round()
    monkeypatch.setattr(partitions.Partitions, "_make", make)
    async with store.session() as session:
        assert not await late.frozen_ranges(session)
    assert await count(store, fast) == 2 * ROWS
    await points(store, producer)
    await maintainer.round()
    assert await count(store, fast) == 0
    await points(store, producer)
    await hours(store, producer)


async def test_a_look_that_took_too_long_is_tried_again_in_the_same_round(
    store: Store, make_producer: Callable[..., Producer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "ROWS_MAX", 0)  # by steps that delete
    producer = make_producer(gpus=1)
    await commit(store, [producer.publish([START_NS])])
    maintainer = Maintainer(store, SETTINGS, ManualClock(SYSTEM_CLOCK.time_ns() + HOUR_NS))
    dropping = partitions._drop
    looks = 0

    async def slow_at_first(session: Any, name: str, **options: Any) -> bool:
        nonlocal looks
        looks += 1
        if looks < partitions.DROP_LOOKS:
            await session.execute(
                "SET statement_timeout = 1; SELECT pg_sleep(60)"  # in one transaction, and undone
            )
        return await dropping(session, name, **options)

    monkeypatch.setattr(partitions, "_drop", slow_at_first)
    await maintainer.round()
    assert looks == partitions.DROP_LOOKS
    assert maintainer.counts.sealed_partitions == 1
    assert maintainer.counts.postponed == 0
    await points(store, producer)


async def test_autovacuum_leaves_hot_partitions_alone(
    store: Store, make_producer: Callable[..., Producer]
) -> None:
    """It would hold the lock that dropping them needs."""
    await commit(store, [make_producer(gpus=1).publish([START_NS])])
    maintainer = Maintainer(store, SETTINGS, ManualClock(SYSTEM_CLOCK.time_ns()))
    await maintainer.round()
    async with store.session() as session:
        found = await session.fetch(
            "SELECT parent, 'autovacuum_enabled=off' = ANY(reloptions) AS off "
            "FROM store_partition JOIN pg_class ON oid = name::regclass"
        )
    hot_tables = {schema.hot_table(metric_set) for metric_set in METRIC_SETS}
    assert {parent for parent, off in found if off} == hot_tables
    assert {parent for parent, off in found if not off}.isdisjoint(hot_tables)
