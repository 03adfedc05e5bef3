"""The way out of the store: what the API asks for."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from gputel.catalog import SET_OF, Metric, MetricSet
from gputel.errors import NotFound, QueryInvalid
from gputel.inventory import EventKind, Gpu
from gputel.store import events, merge, processes, schema
from gputel.store.buckets import Aggregate, Grid, read_buckets
from gputel.store.events import EventPage
from gputel.store.latest import Latest, latest_values
from gputel.store.merge import Cursor, Loaded, RowKey
from gputel.store.processes import ProcessPage
from gputel.store.read import ceil_us, read_set
from gputel.store.times import RANGE_MIN_NS, TIME_MAX_NS, to_ns

if TYPE_CHECKING:
    import asyncpg

    from gputel.store.connection import Connection, Store

_GPU: Final = (
    "SELECT gpu_id, uuid, node, gpu_index, device, pci_bus_id, model, serial, brand, "
    "vbios_version, driver_version, nvml_version, memory_total_bytes, first_seen, last_seen "
    "FROM gpu_seen JOIN gpu USING (gpu_id)"
)


@dataclass(frozen=True, slots=True)
class GpuRow:
    """One GPU in one node, as the store knows it."""

    gpu_id: int
    gpu: Gpu
    first_seen_ns: int
    last_seen_ns: int


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One node."""

    node: str
    gpus: int
    last_seen_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """The values of one metric: time_ns int64[n] ascending, values[n] in the metric's type."""

    metric: Metric
    time_ns: npt.NDArray[np.int64]
    values: npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True, eq=False)
class TelemetryPage:
    """One series a metric asked for, in that order; `next_cursor` is None on the last page."""

    series: tuple[Series, ...]
    next_cursor: str | None


class Query:
    """Questions to one store. All of them raise DatabaseUnavailable when it is away."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def gpus(
        self,
        *,
        node: str | None = None,
        model: str | None = None,
        uuid: str | None = None,
        limit: int = 1000,
        after_gpu_id: int = 0,
    ) -> list[GpuRow]:
        """GPUs in the order of their ids, at most `limit`, those after `after_gpu_id`."""
        async with self._store.session() as session:
            found = await session.fetch(
                f"{_GPU} WHERE gpu_id > $1 AND ($2::text IS NULL OR node = $2) "
                "AND ($3::text IS NULL OR model = $3) AND ($4::text IS NULL OR uuid = $4) "
                "ORDER BY gpu_id LIMIT $5",
                after_gpu_id,
                node,
                model,
                uuid,
                limit,
            )
        return [_gpu_row(row) for row in found]

    async def gpu(self, id: str) -> GpuRow:
        """By number (`gpu_id`) or UUID; of a UUID in several nodes the one seen last. NotFound."""
        by_number = re.fullmatch(r"[0-9]{1,18}", id, re.ASCII) is not None
        where = "gpu_id = $1" if by_number else "uuid = $1"
        row = None
        if "\0" not in id:
            async with self._store.session() as session:
                row = await session.fetchrow(
                    f"{_GPU} WHERE {where} ORDER BY last_seen DESC LIMIT 1",
                    int(id) if by_number else id,
                )
        if row is None:
            raise NotFound(f"no GPU {id!r}", hint="GET /api/v1/gpus lists them")
        return _gpu_row(row)

    async def nodes(self) -> list[NodeRow]:
        """Every node, by name. MIG instances are parts of GPUs that count already."""
        async with self._store.session() as session:
            found = await session.fetch(
                "SELECT node, count(*) FILTER (WHERE uuid NOT LIKE 'MIG-%'), max(last_seen) "
                "FROM gpu_seen JOIN gpu USING (gpu_id) GROUP BY node ORDER BY node"
            )
        return [NodeRow(name, gpus, to_ns(seen)) for name, gpus, seen in found]

    async def telemetry(
        self,
        row: GpuRow,
        *,
        start_ns: int,
        end_ns: int,
        metrics: Sequence[Metric],
        limit: int,
        cursor: str | None = None,
    ) -> TelemetryPage:
        """The values in [start_ns, end_ns), each exactly once, at most `limit` of all metrics.

        The points of all metrics have one order, by time; a page is a stretch of it, and
        `next_cursor` continues right behind. QueryInvalid: a bad cursor or limit.
        """
        if limit < 1:
            raise QueryInvalid("limit", "at least 1")
        after = Cursor.decode(cursor, row.gpu_id) if cursor else None
        start_ns, end_ns = _range(start_ns, end_ns)
        groups = merge.by_set(metrics, SET_OF)
        parts: list[Loaded] = []
        async with _snapshot(self._store, [metric_set for metric_set, _ in groups]) as session:
            for metric_set, chosen in groups:
                first = RowKey(start_ns, merge.I64_MIN, merge.I64_MIN)
                if after is not None:
                    first = max(first, after.first_key(metric_set.id))
                # One point more than asked tells whether there is a next page; the
                # cursor's own row may give none of its points.
                wanted = limit + 1 + len(chosen)
                rows = await read_set(
                    session, row.gpu_id, metric_set, chosen, first, end_ns, wanted
                )
                part = Loaded(metric_set, chosen, rows)
                if after is not None and metric_set.id == after.set_id:
                    part = merge.without_returned(part, after)
                parts.append(part)
        kept, last = merge.cut(parts, limit, row.gpu_id)
        return TelemetryPage(_series(kept, metrics), last.encode() if last else None)

    async def buckets(
        self,
        row: GpuRow,
        *,
        start_ns: int,
        end_ns: int,
        metrics: Sequence[Metric],
        step_ns: int,
        aggregate: Aggregate,
        limit: int,
    ) -> tuple[Grid, tuple[Series, ...]]:
        """The whole buckets that [start_ns, end_ns) touches, and one series a metric.

        A time is a bucket's beginning; buckets without a value are left out. QueryInvalid: more
        than `limit` points, of all metrics, or too many samples to go through.
        """
        start_ns, end_ns = _range(start_ns, end_ns)
        grid = Grid.around(start_ns, max(end_ns, start_ns + 1), step_ns)
        points = grid.count * len(set(metrics))
        if points > limit:
            raise QueryInvalid(
                "step",
                f"{grid.count} buckets of {len(set(metrics))} metrics are more than {limit} points",
                allowed=("a longer step", "a shorter time", "fewer metrics", "a larger limit"),
            )
        groups = merge.by_set(metrics, SET_OF)
        async with _snapshot(self._store, [metric_set for metric_set, _ in groups]) as session:
            found = await read_buckets(session, row.gpu_id, groups, grid)
        return grid, tuple(
            Series(metric, *found[metric].result(aggregate)) for metric in dict.fromkeys(metrics)
        )

    async def processes(
        self, row: GpuRow, *, start_ns: int, end_ns: int, limit: int, cursor: str | None = None
    ) -> ProcessPage:
        """What ran on a GPU in [start_ns, end_ns), oldest first. QueryInvalid: a bad cursor."""
        async with self._store.session() as session:
            return await processes.read(
                session, row.gpu_id, row.gpu.uuid, *_range(start_ns, end_ns), limit, cursor
            )

    async def events(
        self,
        *,
        start_ns: int,
        end_ns: int,
        kinds: Sequence[EventKind] | None = None,
        gpu: str | None = None,
        node: str | None = None,
        limit: int,
        cursor: str | None = None,
    ) -> EventPage:
        """What happened in [start_ns, end_ns), newest first; `gpu` is a number or a UUID.
        QueryInvalid: a bad cursor."""
        async with self._store.session() as session:
            return await events.read(
                session, *_range(start_ns, end_ns), kinds, gpu, node, limit, cursor
            )

    async def latest(
        self, metrics: Sequence[Metric], gpu_ids: Sequence[int] | None = None
    ) -> list[Latest]:
        """The newest value of each metric of each GPU that has one, by GPU and metric id.

        `gpu_ids`: of these GPUs only.
        """
        groups = merge.by_set(metrics, SET_OF)
        found: list[Latest] = []
        async with _snapshot(self._store, [metric_set for metric_set, _ in groups]) as session:
            for metric_set, chosen in groups:
                found += await latest_values(session, metric_set, chosen, gpu_ids)
        return sorted(found, key=lambda item: (item.gpu_id, item.metric.id))


def _range(start_ns: int, end_ns: int) -> tuple[int, int]:
    """The range in whole microseconds, cut down to what can be."""
    return (
        ceil_us(min(max(start_ns, RANGE_MIN_NS), TIME_MAX_NS)),
        ceil_us(min(max(end_ns, RANGE_MIN_NS), TIME_MAX_NS)),
    )


@contextlib.asynccontextmanager
async def _snapshot(store: Store, sets: Sequence[MetricSet]) -> AsyncGenerator[Connection]:
    """A transaction that sees each row once, while sealing moves rows into chunks.

    The tables are locked before the snapshot is taken: otherwise a partition that is
    sealed in between would be gone from the plan, and its chunks not yet visible.
    """
    async with (
        store.session() as session,
        session.transaction(isolation="repeatable_read", readonly=True),
    ):
        if sets:
            tables = ", ".join(f"ONLY {schema.hot_table(metric_set)}" for metric_set in sets)
            await session.execute(f"LOCK TABLE {tables} IN ACCESS SHARE MODE")
        yield session


def _series(parts: Sequence[Loaded], metrics: Sequence[Metric]) -> tuple[Series, ...]:
    found: dict[Metric, Series] = {}
    for part in parts:
        for metric, column, mask in zip(
            part.metrics, part.rows.columns, part.rows.valid, strict=True
        ):
            found[metric] = Series(metric, part.rows.time_ns[mask], column[mask])
    return tuple(found[metric] for metric in dict.fromkeys(metrics))


def _gpu_row(row: asyncpg.Record) -> GpuRow:
    gpu_id, uuid, node, index, *texts, memory, first, last = row
    device, pci, model, serial, brand, vbios, driver, nvml = texts
    gpu = Gpu(
        uuid=uuid,
        node=node,
        index=index,
        device=device,
        pci_bus_id=pci,
        model=model,
        serial=serial,
        brand=brand,
        vbios_version=vbios,
        driver_version=driver,
        nvml_version=nvml,
        memory_total_bytes=memory,
    )
    return GpuRow(gpu_id, gpu, to_ns(first), to_ns(last))
