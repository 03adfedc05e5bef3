"""A store as version 5 of the schema had it: hot rows with a column a metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gputel.batch import DTYPES
from gputel.catalog import MetricSet
from gputel.store import Store, hot, schema
from gputel.store.times import to_datetime, to_ns

COLUMNS = Path(__file__).parents[1] / "data" / "hot_rows" / "columns.sql"
MINUTE_NS = 60 * 10**9
START_NS = 1_760_000_040_000_000_000 // MINUTE_NS * MINUTE_NS
SPAN_NS = 2 * MINUTE_NS
PARTITIONS = 3
GPUS = 3
ROWS_A_GPU = 40
Row = tuple[Any, ...]
#: What is easily lost on the way.
FLOATS = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 5e-324, -1.7976931348623157e308]
INTEGERS = [0, -1, 2**63 - 1, -(2**63), 255, 256, 10**18]


def rows_of(metric_set: MetricSet) -> list[Row]:
    """Old rows as COPY takes them: every pattern of missing values comes, and every edge."""
    random = np.random.default_rng(metric_set.id)
    found = []
    for i in range(GPUS * ROWS_A_GPU):
        time_ns = START_NS + i * (PARTITIONS * SPAN_NS // (GPUS * ROWS_A_GPU)) // 1000 * 1000
        values = [
            None if random.integers(3) == 0 and i else random.choice(edges(metric.storage.value))
            for metric in metric_set.metrics
        ]
        cells = [None if value is None else value.item() for value in values]
        found.append((1 + i % GPUS, to_datetime(time_ns), 1 + i // 50, i, *cells))
    return found


def edges(storage: str) -> Any:
    return np.array(FLOATS if storage == "d" else INTEGERS, DTYPES[storage])


async def make(session: Any) -> None:
    """Version 5 in an empty database, with GPUs but no samples."""
    await session.execute(
        "CREATE TABLE schema_migration (number integer PRIMARY KEY, name text NOT NULL, "
        "applied_at timestamptz NOT NULL DEFAULT now())"
    )
    for number, name, sql in schema.migrations()[:5]:
        await session.execute(sql)
        await session.execute("INSERT INTO schema_migration VALUES ($1, $2)", number, name)
    await session.execute(COLUMNS.read_text())
    await session.execute(
        "CREATE VIEW gpu_latest AS SELECT * FROM sample_hot_fast;"
        "CREATE VIEW gpu_minute AS SELECT * FROM sample_hot_fast;"
        "CREATE VIEW gpu_hour AS SELECT * FROM sample_hot_slow"
    )
    for gpu in range(1, GPUS + 1):
        await session.execute(
            "INSERT INTO gpu (uuid, node, gpu_index, first_seen, metric_ids) "
            "VALUES ($1, 'n', $2, now(), (SELECT array_agg(i) FROM generate_series(1, 200) i))",
            f"GPU-{gpu}",
            gpu,
        )
        await session.execute("INSERT INTO gpu_seen VALUES ($1, now())", gpu)


async def fill(session: Any, metric_set: MetricSet) -> None:
    """Rows in each of some partitions, and some that were kept of sealed ones."""
    table = schema.hot_table(metric_set)
    for number in range(PARTITIONS):
        lower, upper = (to_datetime(START_NS + (number + step) * SPAN_NS) for step in (0, 1))
        name = f"{table}_p{lower:%Y%m%d%H%M}"
        await session.execute(f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL)")
        await session.execute(
            f"ALTER TABLE {table} ATTACH PARTITION {name} "
            f"FOR VALUES FROM ('{lower.isoformat()}') TO ('{upper.isoformat()}')"
        )
        await session.execute(
            "INSERT INTO store_partition (name, parent, lower, upper) VALUES ($1, $2, $3, $4)",
            name,
            table,
            lower,
            upper,
        )
    rows = rows_of(metric_set)
    await session.copy_records_to_table(table, records=rows, columns=names_of(metric_set))
    await session.copy_records_to_table(
        schema.newest_table(metric_set), records=newest_of(rows), columns=names_of(metric_set)
    )


def names_of(metric_set: MetricSet) -> list[str]:
    return ["gpu_id", "time", "epoch", "sequence", *(metric.name for metric in metric_set.metrics)]


def newest_of(rows: list[Row]) -> list[Row]:
    """Those that `fill` keeps as sealing does, one a GPU."""
    return [row for row in rows if row[3] < GPUS]


def bits(values: Any, storage: str) -> bytes:
    return np.array(values, DTYPES[storage]).tobytes()


async def check(store: Store, table: str, metric_set: MetricSet, expected: list[Row]) -> None:
    """The rows of `table` are the `expected` ones, bit by bit."""
    async with store.session() as session:
        gpu_id, rows = await hot.read_gpus(
            session, table, metric_set, metric_set.metrics, "true", [], "ORDER BY sequence"
        )
    assert gpu_id.tolist() == [row[0] for row in expected]
    assert rows.time_ns.tolist() == [to_ns(row[1]) for row in expected]
    assert rows.epoch.tolist() == [row[2] for row in expected]
    assert rows.sequence.tolist() == [row[3] for row in expected]
    for j, metric in enumerate(metric_set.metrics):
        given = [row[4 + j] for row in expected]
        assert rows.valid[j].tolist() == [value is not None for value in given]
        zeroed = [0 if value is None else value for value in given]
        assert rows.columns[j].tobytes() == bits(zeroed, metric.storage.value)
