"""Brings a database to the present schema.

`migrations/*.sql` are applied once each, in the order of their numbers. What follows from
the catalog (a hot table a metric set, the `metric` table, the views) is made here, and made
again when the catalog has changed. `functions/*.sql`, which read hot rows and chunks in SQL, are
made again with them when their text has changed.

    sample_hot_<set>   gpu_id, time, epoch, sequence, cells: all values; partitioned by time
    sample_newest_<set>  the newest row of each GPU that was sealed, for gpu_latest
    gpu_latest         the newest sample of each GPU and set, by name, sealed or not
    gpu_minute         n, min, max, avg, sum by GPU, metric and minute, sealed or not
    gpu_hour           the same by hour
    gpu_samples        (gpu, metric, start_time, end_time): raw samples, sealed or not
    gpu_samples_exact  the same as numeric, gpu_all_samples those of all metrics

Where the database has Citus, the tables are then distributed (see gputel.store.citus).
"""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from gputel.catalog import METRIC_SETS, METRICS, SET_OF, MetricSet, Storage
from gputel.errors import DatabaseUnavailable
from gputel.store import cells, citus

if TYPE_CHECKING:
    from gputel.store.connection import Connection

SERVER_VERSION_MIN: Final = 14

# Advisory locks: (class, number). Topic partitions use the one-number form, another space.
LOCK_CLASS: Final = 0x6770
LOCK_MIGRATE: Final = 1
LOCK_PARTITIONS: Final = 2
LOCK_MAINTAIN: Final = 3

#: The constraint of a hot partition that takes no rows any more, and what its refusal names.
FROZEN: Final = "frozen"
#: What is to be said behind FROM for those partitions.
FROZEN_PARTITIONS: Final = (
    f"store_partition JOIN pg_constraint ON conrelid = to_regclass(name) AND conname = '{FROZEN}'"
)

#: Of the columns of gpu_latest.
SQL_TYPES: Final = {
    Storage.F32: "real",
    Storage.F64: "double precision",
    Storage.I64: "bigint",
    Storage.U64: "numeric(20,0)",
}

# Bumped when what is made here changes its form.
_GENERATION: Final = 5
#: A migration may have to go through all that is stored.
_MIGRATION_TIMEOUT_S: Final = 6 * 3600

#: Citus copies these to every node, ...
REFERENCE_TABLES: Final = ("gpu", "metric")


def hot_table(metric_set: MetricSet) -> str:
    """The name of the hot table of a metric set."""
    return f"sample_hot_{metric_set.name}"


def newest_table(metric_set: MetricSet) -> str:
    """The name of the table with the newest sealed row of each GPU."""
    return f"sample_newest_{metric_set.name}"


#: ... and distributes these by gpu_id, which must be part of each of their keys.
DISTRIBUTED_TABLES: Final = (
    "gpu_seen",
    *(hot_table(metric_set) for metric_set in METRIC_SETS),
    *(newest_table(metric_set) for metric_set in METRIC_SETS),
    "sample_chunk",
    "rollup_1m",
    "rollup_1h",
    "rollup_1h_part",
    "process_sample",
    "event",
)


async def migrate(connection: Connection) -> None:
    """Apply what is missing. Processes that come at the same time wait for the first."""
    version = connection.get_server_version()
    if version.major < SERVER_VERSION_MIN:
        raise DatabaseUnavailable(
            f"PostgreSQL {version.major}.{version.minor} is too old",
            hint=f"gputel needs PostgreSQL {SERVER_VERSION_MIN} or later",
        )
    await connection.execute("SELECT pg_advisory_lock($1, $2)", LOCK_CLASS, LOCK_MIGRATE)
    try:
        await _apply_files(connection)
        await _sync_catalog(connection)
        await citus.distribute(
            connection,
            REFERENCE_TABLES,
            DISTRIBUTED_TABLES,
            partial(_thaw, connection),
            partial(_make_functions, connection),
            _MIGRATION_TIMEOUT_S,
        )
    finally:
        if not connection.is_closed():
            await connection.execute("SELECT pg_advisory_unlock($1, $2)", LOCK_CLASS, LOCK_MIGRATE)


async def _thaw(connection: Connection) -> None:
    for (name,) in await connection.fetch(f"SELECT name FROM {FROZEN_PARTITIONS}"):
        await connection.execute(f"ALTER TABLE {name} DROP CONSTRAINT {FROZEN}")


def migrations() -> list[tuple[int, str, str]]:
    """The packaged files as (number, name, SQL), ascending."""
    return _files("migrations")


def functions() -> str:
    """The SQL that makes all functions, or makes them anew."""
    made = [_hot_table_function(), *(sql for _, _, sql in _files("functions"))]
    return "\n".join(made)


def _files(folder_name: str) -> list[tuple[int, str, str]]:
    folder = importlib.resources.files("gputel.store") / folder_name
    found = []
    for file in folder.iterdir():
        if file.name.endswith(".sql"):
            number, _, name = file.name.removesuffix(".sql").partition("_")
            found.append((int(number), name, file.read_text("utf-8")))
    return sorted(found)


async def _apply_files(connection: Connection) -> None:
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_migration (number integer PRIMARY KEY, "
        "name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    applied = {row[0] for row in await connection.fetch("SELECT number FROM schema_migration")}
    known = migrations()
    if applied and max(applied) > known[-1][0]:
        raise DatabaseUnavailable(
            f"the database has schema {max(applied)}, this gputel knows {known[-1][0]}",
            hint="use the gputel that migrated it, or a newer one",
        )
    for number, name, sql in known:
        if number not in applied:
            async with connection.transaction():
                await connection.execute(sql, timeout=_MIGRATION_TIMEOUT_S)
                await connection.execute(
                    "INSERT INTO schema_migration (number, name) VALUES ($1, $2)", number, name
                )


def catalog_digest() -> str:
    """Changes when the catalog or the form of what is made from it changes."""
    facts = [
        (m.id, m.name, m.unit.value, m.kind.value, m.storage.value, SET_OF[m].id, m.help)
        for m in METRICS
    ]
    return hashlib.sha256(repr((_GENERATION, facts, functions())).encode()).hexdigest()


async def _sync_catalog(connection: Connection) -> None:
    digest = catalog_digest()
    if await connection.fetchval("SELECT digest FROM schema_catalog") == digest:
        return
    async with connection.transaction():
        await connection.execute("DROP VIEW IF EXISTS gpu_latest, gpu_minute, gpu_hour")
        for metric_set in METRIC_SETS:
            await _sync_hot_table(connection, metric_set)
        await _sync_metrics(connection)
        await _make_functions(connection)
        await connection.execute(_latest_view())
        await connection.execute(_rollup_view("gpu_minute", "minute", ("rollup_1m",)))
        await connection.execute(_rollup_view("gpu_hour", "hour", ("rollup_1h", "rollup_1h_part")))
        await connection.execute(
            "INSERT INTO schema_catalog (digest) VALUES ($1) "
            "ON CONFLICT (one) DO UPDATE SET digest = excluded.digest",
            digest,
        )


async def _make_functions(connection: Connection) -> None:
    # They keep this path: whoever calls them, with whatever tables of his own, gets ours.
    await connection.execute(
        "SELECT set_config('search_path', format('%I, pg_temp', current_schema()), true)"
    )
    await connection.execute(functions())


async def _sync_metrics(connection: Connection) -> None:
    rows = []
    for metric in METRICS:
        cell, at, _ = cells.PLACES[metric]
        texts = metric.unit.value, metric.kind.value, metric.help
        place = cells.STORAGES[metric.storage], cell, at
        rows.append((metric.id, metric.name, SET_OF[metric].id, *texts, *place))
    await connection.executemany(
        "INSERT INTO metric (metric_id, name, set_id, unit, kind, help, storage, cell, cell_at) "
        "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (metric_id) DO UPDATE SET "
        "name = excluded.name, set_id = excluded.set_id, unit = excluded.unit, "
        "kind = excluded.kind, help = excluded.help, storage = excluded.storage, "
        "cell = excluded.cell, cell_at = excluded.cell_at",
        rows,
    )


async def _sync_hot_table(connection: Connection, metric_set: MetricSet) -> None:
    fields = (
        "gpu_id bigint NOT NULL, time timestamptz NOT NULL, epoch bigint NOT NULL, "
        "sequence bigint NOT NULL, cells bytea NOT NULL"
    )
    await connection.execute(
        f"CREATE TABLE IF NOT EXISTS {hot_table(metric_set)} ({fields}, "
        "PRIMARY KEY (gpu_id, time, epoch, sequence)) PARTITION BY RANGE (time)"
    )
    await connection.execute(
        f"CREATE TABLE IF NOT EXISTS {newest_table(metric_set)} ({fields}, "
        "PRIMARY KEY (gpu_id)) WITH (fillfactor = 50)"
    )
    # Never compressed, nor put elsewhere: a partition needs no table for that, to be made and
    # dropped with it.
    for table in (hot_table(metric_set), newest_table(metric_set)):
        storage = await connection.fetchval(
            "SELECT attstorage FROM pg_attribute WHERE attrelid = $1::text::regclass "
            "AND attname = 'cells'",
            table,
        )
        # Citus knows no such command for a table that it has already.
        if storage != b"p":
            await connection.execute(f"ALTER TABLE {table} ALTER COLUMN cells SET STORAGE PLAIN")


def _hot_table_function() -> str:
    names = " ".join(f"WHEN {s.id} THEN '{hot_table(s)}'" for s in METRIC_SETS)
    return (
        "CREATE OR REPLACE FUNCTION gputel_hot_table(set_id integer) RETURNS text "
        f"LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT CASE set_id {names} END $$;"
    )


def _latest_view() -> str:
    columns, joins = [], []
    for metric_set in METRIC_SETS:
        name = metric_set.name
        shown = {f"{name}_time": (f"{name}.time", f"{name}_chunk.time")}
        for metric in metric_set.metrics:
            in_row = f"{cells.exact_in_sql(metric, name)}::{SQL_TYPES[metric.storage]}"
            shown[metric.name] = (in_row, f"{name}_chunk.{metric.name}")
        columns += [
            f"CASE WHEN {name}_chunk.time IS NULL THEN {in_row} ELSE {in_chunk} END AS {column}"
            for column, (in_row, in_chunk) in shown.items()
        ]
        fields = "time, epoch, sequence, cells"
        by_age = "ORDER BY time DESC, epoch DESC, sequence DESC LIMIT 1"
        joins.append(
            f"LEFT JOIN LATERAL ((SELECT {fields} FROM {hot_table(metric_set)} "
            f"WHERE gpu_id = s.gpu_id {by_age}) UNION ALL "
            f"SELECT {fields} FROM {newest_table(metric_set)} WHERE gpu_id = s.gpu_id {by_age}"
            f") {name} ON true LEFT JOIN LATERAL ({_newest_chunk(metric_set)}) {name}_chunk ON true"
        )
    return (
        "CREATE VIEW gpu_latest AS SELECT g.gpu_id, g.node, g.gpu_index, g.uuid, g.model, "
        f"s.last_seen, {', '.join(columns)} "
        f"FROM gpu_seen s JOIN gpu g USING (gpu_id) {' '.join(joins)}"
    )


def _newest_chunk(metric_set: MetricSet) -> str:
    """The newest sample of GPU `s` in chunks, where that is newer than its rows."""
    columns = []
    for metric in metric_set.metrics:
        value = "value" if metric.storage in (Storage.F32, Storage.F64) else "exact"
        columns.append(
            f"(max({value}) FILTER (WHERE metric_id = {metric.id}))"
            f"::{SQL_TYPES[metric.storage]} AS {metric.name}"
        )
    ids = ", ".join(str(metric.id) for metric in metric_set.metrics)
    # A chunk spans less than a day: where none began in the day before, none reaches further.
    return (
        f"SELECT max(n.time) AS time, {', '.join(columns)} FROM (SELECT c.payload, c.t0 "
        f"FROM sample_chunk c WHERE c.gpu_id = s.gpu_id AND c.set_id = {metric_set.id} "
        f"AND c.t0 > coalesce({metric_set.name}.time, (SELECT max(t0) FROM sample_chunk f "
        f"WHERE f.gpu_id = s.gpu_id AND f.set_id = {metric_set.id})) - interval '24 hours' "
        f"AND c.t1 > coalesce({metric_set.name}.time, '-infinity') "
        "ORDER BY c.t1 DESC, c.epoch DESC, c.first_sequence DESC LIMIT 1) AS c "
        "CROSS JOIN LATERAL gputel_newest("
        f"c.payload, ARRAY[{ids}], s.gpu_id, {metric_set.id}, c.t0) AS n"
    )


def _rollup_view(name: str, unit: str, tables: Sequence[str]) -> str:
    """Statistics by `unit`, a column of `tables`: of what they hold, and of hot rows."""
    parts = [
        f"SELECT r.gpu_id, r.{unit}, v.metric_id, v.n, v.min, v.max, v.sum FROM {table} r "
        "CROSS JOIN LATERAL unnest(r.metric_ids, r.n, r.min, r.max, r.sum) "
        "AS v (metric_id, n, min, max, sum) WHERE v.n > 0"
        for table in tables
    ]
    for metric_set in METRIC_SETS:
        ids = ", ".join(str(metric.id) for metric in metric_set.metrics)
        values = ", ".join(cells.in_sql(metric, "h") for metric in metric_set.metrics)
        # Not date_trunc: where the session's zone is off by half an hour, so would be the hours.
        parts.append(
            f"SELECT h.gpu_id, date_bin('1 {unit}', h.time, timestamptz 'epoch') AS {unit}, "
            "v.metric_id, count(*) AS n, min(v.value) AS min, max(v.value) AS max, "
            f"sum(v.value) AS sum FROM {hot_table(metric_set)} h "
            f"CROSS JOIN LATERAL unnest(ARRAY[{ids}]::smallint[], ARRAY[{values}]) "
            "AS v (metric_id, value) "
            "WHERE v.value IS NOT NULL GROUP BY 1, 2, 3"
        )
    return (
        f"CREATE VIEW {name} AS SELECT g.gpu_id, g.node, g.gpu_index, g.uuid, s.{unit}, "
        "m.name AS metric, m.unit, s.n, s.min, s.max, s.sum / s.n AS avg, s.sum FROM ("
        f"SELECT gpu_id, {unit}, metric_id, sum(n)::bigint AS n, min(min) AS min, max(max) AS max, "
        f"sum(sum) AS sum FROM ({' UNION ALL '.join(parts)}) AS p GROUP BY 1, 2, 3"
        ") AS s JOIN gpu g USING (gpu_id) JOIN metric m USING (metric_id)"
    )
