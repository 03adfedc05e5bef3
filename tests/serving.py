"""What the tests of API, stream and dashboard serve instead of a database and a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np

from gputel import wire
from gputel.batch import DTYPES, Batch
from gputel.broker import Delivery
from gputel.catalog import BY_NAME, SET_OF, Metric
from gputel.errors import NotFound
from gputel.inventory import EventKind, Gpu, ProcessSample
from gputel.store.buckets import Aggregate, Buckets, Grid
from gputel.store.events import EventPage, EventRow
from gputel.store.latest import Latest
from gputel.store.processes import ProcessPage
from gputel.store.query import GpuRow, NodeRow, Series, TelemetryPage


@dataclass
class MemoryQuery:
    """The store's queries over rows in memory. `fault` is raised by every question."""

    rows: list[GpuRow] = field(default_factory=list)
    #: (gpu_id, metric name) -> [(time_ns, value)]
    history: dict[tuple[int, str], list[tuple[int, float]]] = field(default_factory=dict)
    ran: list[ProcessSample] = field(default_factory=list)
    happened: list[EventRow] = field(default_factory=list)
    fault: Exception | None = None
    asked: list[dict[str, object]] = field(default_factory=list)

    def _check(self) -> None:
        if self.fault is not None:
            raise self.fault

    async def gpus(
        self,
        *,
        node: str | None = None,
        model: str | None = None,
        uuid: str | None = None,
        limit: int = 1000,
        after_gpu_id: int = 0,
    ) -> list[GpuRow]:
        self._check()
        return [
            row
            for row in self.rows
            if row.gpu_id > after_gpu_id
            and node in (None, row.gpu.node)
            and model in (None, row.gpu.model)
            and uuid in (None, row.gpu.uuid)
        ][:limit]

    async def gpu(self, id: str) -> GpuRow:
        self._check()
        for row in self.rows:
            if id in (str(row.gpu_id), row.gpu.uuid):
                return row
        raise NotFound(f"no GPU {id!r}")

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
        self._check()
        self.asked.append({"step_ns": step_ns, "aggregate": aggregate, "limit": limit})
        grid = Grid.around(start_ns, end_ns, step_ns)
        found = []
        for metric in metrics:
            of_metric = Buckets(grid)
            points = self.history.get((row.gpu_id, metric.name), [])
            inside = [p for p in points if grid.start_ns <= p[0] < grid.end_ns]
            of_metric.add_values(
                np.array([time_ns for time_ns, _ in inside], np.int64),
                np.array([value for _, value in inside]),
            )
            found.append(Series(metric, *of_metric.result(aggregate)))
        return grid, tuple(found)

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
        self._check()
        self.asked.append({"start_ns": start_ns, "end_ns": end_ns, "limit": limit})
        series = []
        for metric in metrics:
            points = [
                point
                for point in self.history.get((row.gpu_id, metric.name), [])
                if start_ns <= point[0] < end_ns
            ]
            series.append(
                Series(
                    metric,
                    np.array([time for time, _ in points], np.int64),
                    np.array([value for _, value in points], DTYPES[metric.storage.value]),
                )
            )
        return TelemetryPage(tuple(series), None)

    async def processes(
        self, row: GpuRow, *, start_ns: int, end_ns: int, limit: int, cursor: str | None = None
    ) -> ProcessPage:
        self._check()
        self.asked.append({"start_ns": start_ns, "limit": limit, "cursor": cursor})
        ran = [s for s in self.ran if s.gpu_uuid == row.gpu.uuid and start_ns <= s.time_ns < end_ns]
        return ProcessPage(tuple(ran[:limit]), None)

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
        self._check()
        self.asked.append({"kinds": kinds, "gpu": gpu, "node": node, "cursor": cursor})
        return EventPage(tuple(self.happened[:limit]), None)

    async def latest(
        self, metrics: Sequence[Metric], gpu_ids: Sequence[int] | None = None
    ) -> list[Latest]:
        self._check()
        return [
            Latest(gpu_id, BY_NAME[name], *points[-1])
            for (gpu_id, name), points in self.history.items()
            if BY_NAME[name] in metrics and (gpu_ids is None or gpu_id in gpu_ids)
        ]

    async def nodes(self) -> list[NodeRow]:
        self._check()
        found: dict[str, list[GpuRow]] = {}
        for row in self.rows:
            found.setdefault(row.gpu.node, []).append(row)
        return [
            NodeRow(name, len(rows), max(row.last_seen_ns for row in rows))
            for name, rows in found.items()
        ]


def gpu_row(number: int, node: str, time_ns: int, **facts: object) -> GpuRow:
    """GPU `number` of `node`, seen at `time_ns`."""
    gpu = Gpu(
        uuid=f"GPU-{number:04d}",
        node=node,
        index=number % 8,
        model="NVIDIA H100 80GB HBM3",
        memory_total_bytes=80 * 2**30,
    )
    for name, value in facts.items():
        object.__setattr__(gpu, name, value)
    return GpuRow(number, gpu, time_ns, time_ns)


@dataclass(frozen=True)
class Site:
    """Where a dashboard is, and what it must show."""

    url: str
    gpus: int
    nodes: int


class MemoryConsumer:
    """An observer's consumer that delivers what the test puts."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Delivery] = asyncio.Queue()
        self.connected = False

    async def __aenter__(self) -> Self:
        self.connected = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.connected = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        return await self.queue.get()


class MemoryBroker:
    """A broker client with one topic."""

    def __init__(self) -> None:
        self.observer = MemoryConsumer()
        self._offset = 0

    def consumer(self, topic: str) -> MemoryConsumer:
        assert topic == "telemetry"
        return self.observer

    def put(self, payload: bytes) -> None:
        """Deliver `payload`."""
        self._offset += 1
        self.observer.queue.put_nowait(
            Delivery(0, self._offset, 0, 1, "test", 1, self._offset, payload)
        )


def frame_bytes(
    node: str, readings: Iterable[tuple[str, dict[str, float]]], time_ns: int, sequence: int = 1
) -> bytes:
    """A frame with one sample for each (uuid, values by metric name)."""
    gpus = []
    for uuid, values in readings:
        chunks = []
        for metric_set in dict.fromkeys(SET_OF[BY_NAME[name]] for name in values):
            columns = []
            valid = np.zeros((len(metric_set.metrics), 1), np.uint8)
            for index, metric in enumerate(metric_set.metrics):
                valid[index, 0] = metric.name in values
                columns.append(np.array([values.get(metric.name, 0)], DTYPES[metric.storage.value]))
            batch = Batch(
                metric_set,
                np.array([time_ns // 1000 * 1000], np.int64),
                np.array([sequence], np.int64),
                tuple(columns),
                valid,
            )
            chunks.append(wire.encode_batch(batch))
        gpus.append(wire.GpuChunks(uuid, tuple(chunks)))
    return wire.encode_frame(
        wire.Frame(f"collector:{node}", 1, sequence, node, time_ns, tuple(gpus))
    )
