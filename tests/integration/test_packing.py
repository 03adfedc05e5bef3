"""A store whose hot rows have a column a metric becomes one of packed rows, and no row is lost."""

from __future__ import annotations

import asyncpg
import pytest

from gputel.catalog import METRIC_SETS
from gputel.store import Store, schema
from gputel.store.query import Query
from gputel.store.settings import StoreSettings
from gputel.store.times import to_ns
from support import columns
from support.columns import START_NS, bits, check, names_of, newest_of, rows_of
from support.tiers import count, seal

pytestmark = pytest.mark.usefixtures("plain")


@pytest.fixture
async def old(store: Store) -> Store:
    """`store` as version 5 of the schema had it, with rows in every set, sealed ones, too."""
    async with store.session() as session:
        await session.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        await columns.make(session)
        for metric_set in METRIC_SETS:
            await columns.fill(session, metric_set)
    return store


async def test_every_row_is_packed(old: Store) -> None:
    async with old.session() as session:
        before = await session.fetch("SELECT * FROM store_partition ORDER BY name")
    await old.migrate(StoreSettings())
    await old.migrate(StoreSettings())
    for metric_set in METRIC_SETS:
        rows = rows_of(metric_set)
        await check(old, schema.hot_table(metric_set), metric_set, rows)
        await check(old, schema.newest_table(metric_set), metric_set, newest_of(rows))
    async with old.session() as session:
        assert await session.fetch("SELECT * FROM store_partition ORDER BY name") == before
        left = await session.fetch(
            "SELECT relname FROM pg_class WHERE relname ~ '^sample_.*_columns'"
        )
        keys = await session.fetchval(
            "SELECT count(*) FROM pg_class t JOIN pg_class i ON i.relname = t.relname || '_pkey' "
            "WHERE t.relname ~ '^sample_(hot|newest)_' AND t.relkind IN ('r', 'p')"
        )
    assert left == []
    assert keys == len(METRIC_SETS) * (2 + columns.PARTITIONS)


async def test_queries_and_sealing_find_every_row(old: Store) -> None:
    await old.migrate(StoreSettings())
    query = Query(old)
    for _ in range(2):
        for row in await query.gpus():
            for metric_set in METRIC_SETS:
                page = await query.telemetry(
                    row,
                    start_ns=0,
                    end_ns=2 * START_NS,
                    metrics=metric_set.metrics,
                    limit=1_000_000,
                )
                mine = [one for one in rows_of(metric_set) if one[0] == row.gpu_id]
                for j, series in enumerate(page.series):
                    expected = [one for one in mine if one[4 + j] is not None]
                    assert series.time_ns.tolist() == [to_ns(one[1]) for one in expected]
                    values = [one[4 + j] for one in expected]
                    assert series.values.tobytes() == bits(values, series.metric.storage.value)
        await seal(old)
        assert await count(old, "sample_hot_fast") == 0


async def test_a_metric_that_the_old_catalog_lacked_has_no_value(old: Store) -> None:
    fast = METRIC_SETS[0]
    gone = 3, 17
    async with old.session() as session:
        await session.execute("DROP VIEW gpu_latest, gpu_minute")
        for j in gone:
            await session.execute(f"ALTER TABLE sample_hot_fast DROP COLUMN {fast.metrics[j].name}")
    await old.migrate(StoreSettings())
    expected = [
        tuple(None if j - 4 in gone else value for j, value in enumerate(row))
        for row in rows_of(fast)
    ]
    await check(old, schema.hot_table(fast), fast, expected)


async def test_who_writes_columns_is_refused_and_nothing_changes(old: Store) -> None:
    """A sink or maintainer of the old version that still runs: both name the columns."""
    await old.migrate(StoreSettings())
    fast = METRIC_SETS[0]
    row = rows_of(fast)[0]
    before = await count(old, "sample_hot_fast")
    async with old.session() as session:
        with pytest.raises(asyncpg.UndefinedColumnError, match="gpu_utilization_percent"):
            await session.copy_records_to_table(
                "sample_hot_fast", records=[(*row[:3], 10**6, *row[4:])], columns=names_of(fast)
            )
        with pytest.raises(asyncpg.UndefinedColumnError, match="power_watts"):
            await session.fetch("SELECT gpu_id, power_watts FROM sample_hot_fast")
    assert await count(old, "sample_hot_fast") == before


async def test_what_fails_half_way_leaves_the_old_tables(old: Store) -> None:
    async with old.session() as session:
        await session.execute("CREATE TABLE sample_newest_slow_columns ()")
    with pytest.raises(asyncpg.DuplicateTableError):
        await old.migrate(StoreSettings())
    async with old.session() as session:
        assert await session.fetchval("SELECT max(number) FROM schema_migration") == 5
        found = await session.fetchval("SELECT count(power_watts) FROM sample_hot_fast")
        assert found == sum(row[6] is not None for row in rows_of(METRIC_SETS[0]))
        await session.execute("DROP TABLE sample_newest_slow_columns")
    await old.migrate(StoreSettings())
    await check(old, "sample_hot_fast", METRIC_SETS[0], rows_of(METRIC_SETS[0]))
