"""The schema: complete after one migration, the same after ten, and with several at once."""

from __future__ import annotations

import asyncio

import msgspec
import numpy as np
import pytest

from gputel import store as store_package
from gputel.catalog import METRIC_SETS, METRICS
from gputel.clock import NS_PER_S
from gputel.errors import DatabaseUnavailable
from gputel.store import Store, schema
from gputel.store.partitions import Partitions
from gputel.store.settings import DatabaseSettings, StoreSettings


async def columns_of(store: Store, table: str) -> dict[str, str]:
    async with store.session() as session:
        rows = await session.fetch(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = $1",
            table,
        )
    return {row[0]: row[1] for row in rows}


async def test_every_metric_has_a_column_of_its_type(store: Store) -> None:
    columns = await columns_of(store, "gpu_latest")
    for metric in METRICS:
        assert columns[metric.name] == schema.SQL_TYPES[metric.storage].split("(")[0]


@pytest.mark.usefixtures("plain")
async def test_migration_is_idempotent_and_concurrent(store: Store) -> None:
    async with store.session() as session:
        await session.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await asyncio.gather(*(store.migrate(StoreSettings()) for _ in range(5)))
    await store.migrate(StoreSettings())
    async with store.session() as session:
        applied = await session.fetchval("SELECT count(*) FROM schema_migration")
        metrics = await session.fetchval("SELECT count(*) FROM metric")
    assert applied == len(schema.migrations())
    assert metrics == len(METRICS)


async def test_a_new_metric_becomes_a_column(store: Store) -> None:
    async with store.session() as session:
        await session.execute("DROP VIEW gpu_latest, gpu_minute, gpu_hour")
        await session.execute("DELETE FROM metric WHERE name = 'power_watts'")
        await session.execute("UPDATE schema_catalog SET digest = 'an older one'")
    await store.migrate(StoreSettings())
    assert "power_watts" in await columns_of(store, "gpu_latest")
    async with store.session() as session:
        place = await session.fetchrow(
            "SELECT storage, cell, cell_at FROM metric WHERE name = 'power_watts'"
        )
    assert place is not None
    assert tuple(place) == (1, 2, 24)


async def test_hot_rows_are_kept_in_the_table_alone(store: Store) -> None:
    """A partition has no table for large values, which would be made and dropped with it."""
    day_ns = np.array([1_759_968_000 * NS_PER_S])
    await Partitions(store, StoreSettings()).ensure({"sample_hot_fast": [day_ns]})
    async with store.session() as session:
        found = await session.fetch(
            "SELECT relname, reltoastrelid FROM pg_class WHERE relname LIKE 'sample_hot_fast_p%' "
            "AND relkind = 'r'"
        )
    assert [tuple(row) for row in found] == [("sample_hot_fast_p202510090000", 0)]


@pytest.mark.usefixtures("plain")
async def test_minutes_stored_a_row_a_metric_become_arrays(store: Store) -> None:
    _, _, first = schema.migrations()[0]
    day = "2025-10-09 00:00+00", "2025-10-10 00:00+00"
    one, two, slow = METRIC_SETS[0].metrics[0], METRIC_SETS[0].metrics[2], METRIC_SETS[2].metrics[0]
    async with store.session() as session:
        await session.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        await session.execute(first)
        await session.execute(
            "CREATE TABLE schema_migration (number integer PRIMARY KEY, name text NOT NULL, "
            "applied_at timestamptz NOT NULL DEFAULT now());"
            "INSERT INTO schema_migration (number, name) VALUES (1, 'tables');"
            "CREATE VIEW gpu_minute AS SELECT * FROM rollup_1m;"
            f"CREATE TABLE rollup_1m_p202510090000 PARTITION OF rollup_1m "
            f"FOR VALUES FROM ('{day[0]}') TO ('{day[1]}');"
            "INSERT INTO store_partition (name, parent, lower, upper) VALUES "
            f"('rollup_1m_p202510090000', 'rollup_1m', '{day[0]}', '{day[1]}');"
            "INSERT INTO gpu (uuid, node, gpu_index, first_seen, last_seen) VALUES "
            f"('GPU-x', 'n', 0, '{day[0]}', '{day[0]}');"
        )
        for metric, metric_set in ((one, 1), (two, 1), (slow, 3)):
            await session.execute(
                "INSERT INTO metric VALUES ($1, $2, $3, '', '', '')",
                metric.id,
                metric.name,
                metric_set,
            )
            await session.execute(
                f"INSERT INTO rollup_1m VALUES (1, {metric.id}, '{day[0]}', {metric.id}, "
                "-0.5, 'NaN', 2.5)"
            )
    await store.migrate(StoreSettings())
    async with store.session() as session:
        assert await session.fetchval("SELECT count(*) FROM rollup_1m") == 2
        found = await session.fetch("SELECT metric, n, min, max, sum FROM gpu_minute ORDER BY n")
        ids = await session.fetchval("SELECT metric_ids FROM gpu")
        hours = await session.fetch("SELECT metric, hour, n, min, sum FROM gpu_hour ORDER BY n")
        own = await session.fetchval(
            "SELECT count(*) FROM store_partition WHERE parent = 'rollup_1h' "
            "AND lower <= timestamptz '2025-10-09' AND upper > timestamptz '2025-10-09'"
        )
        indexed = await session.fetchval(
            "SELECT count(*) FROM pg_indexes WHERE tablename = 'rollup_1m_p202510090000'"
        )
    expected = [(m.name, m.id, -0.5, "nan", 2.5) for m in (one, two, slow)]
    assert [(r[0], r[1], r[2], str(r[3]), r[4]) for r in found] == expected
    assert ids == [one.id, two.id, slow.id]
    assert indexed == 1
    assert [(r[0], r[2], r[3], r[4]) for r in hours] == [
        (m, n, low, s) for m, n, low, _, s in expected
    ]
    assert own == 1


async def test_a_newer_schema_is_refused(store: Store) -> None:
    async with store.session() as session:
        await session.execute("INSERT INTO schema_migration (number, name) VALUES (999, 'later')")
    with pytest.raises(DatabaseUnavailable, match="newer"):
        await store.migrate(StoreSettings())


async def test_views_are_empty_not_broken(store: Store) -> None:
    async with store.session() as session:
        assert await session.fetch("SELECT * FROM gpu_latest") == []
        assert await session.fetch("SELECT * FROM gpu_minute") == []
        assert await session.fetch("SELECT * FROM gpu_hour") == []


async def test_wrong_password(postgres: DatabaseSettings) -> None:
    wrong = msgspec.structs.replace(postgres, password="wrong")
    with pytest.raises(DatabaseUnavailable, match=r"database\.password"):
        await store_package.connect(wrong)


async def test_no_such_database(postgres: DatabaseSettings) -> None:
    wrong = msgspec.structs.replace(postgres, dbname="nowhere")
    with pytest.raises(DatabaseUnavailable, match="createdb"):
        await store_package.connect(wrong)


async def test_nobody_listens(unused_tcp_port: int) -> None:
    wrong = DatabaseSettings(host="127.0.0.1", port=unused_tcp_port)
    with pytest.raises(DatabaseUnavailable, match="is PostgreSQL running"):
        await store_package.connect(wrong)


async def test_ssl_required_but_not_offered(postgres: DatabaseSettings) -> None:
    wrong = msgspec.structs.replace(postgres, sslmode="require")
    with pytest.raises(DatabaseUnavailable, match=r"sslmode|SSL"):
        await store_package.connect(wrong)


async def test_not_enough_rights(postgres: DatabaseSettings) -> None:
    # The owner role may not create tables in the maintenance database.
    other = msgspec.structs.replace(postgres, dbname="postgres")
    connected = await store_package.connect(other)
    try:
        with pytest.raises(DatabaseUnavailable, match="OWNER TO"):
            await connected.migrate(StoreSettings())
    finally:
        await connected.close()


async def test_every_key_of_a_distributed_table_holds_gpu_id(store: Store) -> None:
    """Citus refuses others, and a foreign key or a trigger would be checked by no node."""
    async with store.session() as session:
        without = await session.fetch(
            "SELECT t.relname, i.indexrelid::regclass::text FROM pg_index i "
            "JOIN pg_class t ON t.oid = i.indrelid WHERE t.relname = ANY($1) AND i.indisunique "
            "AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = t.oid "
            "AND a.attname = 'gpu_id' AND a.attnum = ANY(i.indkey::smallint[]))",
            list(schema.DISTRIBUTED_TABLES),
        )
        foreign = await session.fetch(
            "SELECT conname FROM pg_constraint WHERE contype = 'f' "
            "AND connamespace = 'public'::regnamespace"
        )
        triggers = await session.fetch(
            "SELECT tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid "
            "WHERE NOT tgisinternal AND relnamespace = 'public'::regnamespace"
        )
    assert without == []
    assert foreign == []
    assert triggers == []


async def test_every_table_of_a_gpu_is_distributed(store: Store) -> None:
    async with store.session() as session:
        found = await session.fetch(
            "SELECT relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
            "AND attname = 'gpu_id' AND atttypid = 'bigint'::regtype AND attnotnull "
            "WHERE relkind IN ('r', 'p') AND NOT relispartition "
            "AND relnamespace = 'public'::regnamespace"
        )
    assert {row[0] for row in found} - {"gpu"} == set(schema.DISTRIBUTED_TABLES)
