"""The outward shapes: what a client sees, and the JSON schema of it, side by side.

Nothing else in gputel knows these shapes. Times are RFC 3339 in UTC, units are UCUM codes,
an unknown value is null.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson

from gputel.catalog import BY_NAME, METRICS, Cadence, Kind, Metric, Unit
from gputel.clock import NS_PER_S, rfc3339
from gputel.inventory import EventKind, ProcessKind
from gputel.store.buckets import Aggregate

if TYPE_CHECKING:
    from gputel.store.buckets import Grid
    from gputel.store.events import EventPage
    from gputel.store.latest import Latest
    from gputel.store.processes import ProcessPage
    from gputel.store.query import GpuRow, NodeRow, Series, TelemetryPage

Json = dict[str, Any]

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z


def encode(body: object) -> bytes:
    """JSON; numpy arrays become lists, datetime64 arrays RFC 3339 strings, NaN becomes null."""
    return orjson.dumps(body, option=_OPTIONS)


def gpu(row: GpuRow, latest: Sequence[Latest] | None = None) -> Json:
    """One GPU, with its latest values when they were asked for."""
    known = row.gpu
    shown: Json = {
        "id": row.gpu_id,
        "uuid": known.uuid,
        "node": known.node,
        "index": known.index,
        "device": known.device,
        "model": known.model,
        "pci_bus_id": known.pci_bus_id,
        "serial": known.serial,
        "brand": known.brand,
        "vbios_version": known.vbios_version,
        "driver_version": known.driver_version,
        "nvml_version": known.nvml_version,
        "memory_total_bytes": known.memory_total_bytes,
        "first_seen": rfc3339(row.first_seen_ns),
        "last_seen": rfc3339(row.last_seen_ns),
    }
    if latest is not None:
        shown["latest"] = {
            value.metric.name: {"time": rfc3339(value.time_ns), "value": value.value}
            for value in latest
        }
    return shown


def gpu_page(
    rows: Iterable[GpuRow],
    next_cursor: str | None,
    latest: Mapping[int, Sequence[Latest]] | None = None,
) -> Json:
    """A page of GPUs."""
    shown = [gpu(row, None if latest is None else latest.get(row.gpu_id, ())) for row in rows]
    return {"gpus": shown, "next_cursor": next_cursor}


def telemetry(row: GpuRow, page: TelemetryPage, start_ns: int, end_ns: int) -> Json:
    """The samples of one GPU as columns: `time[i]` belongs to `value[i]`."""
    return {
        "gpu": gpu(row),
        "start_time": rfc3339(start_ns),
        "end_time": rfc3339(end_ns),
        "series": [_series(series) for series in page.series],
        "next_cursor": page.next_cursor,
    }


def buckets(row: GpuRow, grid: Grid, aggregate: Aggregate, series: Sequence[Series]) -> Json:
    """Aggregates of one GPU: `time[i]` is the beginning of the bucket of `value[i]`."""
    return {
        "gpu": gpu(row),
        "start_time": rfc3339(grid.start_ns),
        "end_time": rfc3339(grid.end_ns),
        "step_s": grid.step_ns / NS_PER_S,
        "agg": aggregate.value,
        "series": [_series(one) for one in series],
        "next_cursor": None,
    }


def _series(series: Series) -> Json:
    return {
        "metric": series.metric.name,
        "unit": series.metric.unit.value,
        "kind": series.metric.kind.value,
        "time": np.ascontiguousarray(series.time_ns).astype("datetime64[ns]"),
        "value": np.ascontiguousarray(series.values),
    }


def processes(row: GpuRow, page: ProcessPage, start_ns: int, end_ns: int) -> Json:
    """What ran on one GPU."""
    return {
        "gpu": gpu(row),
        "start_time": rfc3339(start_ns),
        "end_time": rfc3339(end_ns),
        "processes": [
            {
                "time": rfc3339(sample.time_ns),
                "pid": sample.pid,
                "kind": sample.kind.value,
                "name": sample.name,
                "cgroup": sample.cgroup,
                "container_id": sample.container_id,
                "memory_used_bytes": sample.memory_used_bytes,
                "sm_utilization_percent": sample.sm_utilization_percent,
                "memory_utilization_percent": sample.memory_utilization_percent,
                "encoder_utilization_percent": sample.encoder_utilization_percent,
                "decoder_utilization_percent": sample.decoder_utilization_percent,
            }
            for sample in page.samples
        ],
        "next_cursor": page.next_cursor,
    }


def events(page: EventPage, start_ns: int, end_ns: int) -> Json:
    """What happened; `gpu_uuid` is empty when it happened to the collector itself."""
    return {
        "start_time": rfc3339(start_ns),
        "end_time": rfc3339(end_ns),
        "events": [
            {
                "id": row.event_id,
                "time": rfc3339(row.event.time_ns),
                "node": row.node,
                "gpu_uuid": row.event.gpu_uuid,
                "kind": row.event.kind.value,
                "code": row.event.code,
                "message": row.event.message,
            }
            for row in page.events
        ],
        "next_cursor": page.next_cursor,
    }


def metric(known: Metric) -> Json:
    """One row of the catalog."""
    return {
        "name": known.name,
        "unit": known.unit.value,
        "kind": known.kind.value,
        "cadence": known.cadence.value,
        "description": known.help,
        "dcgm": known.dcgm.name if known.dcgm else None,
        "opentelemetry": known.otel.name if known.otel else None,
        "prometheus": known.prometheus_name,
        "nvml": known.nvml,
    }


def catalog() -> Json:
    """Every metric gputel knows."""
    return {"metrics": [metric(known) for known in METRICS]}


def nodes(rows: Iterable[NodeRow]) -> Json:
    """The nodes, each with how many GPUs it has."""
    return {
        "nodes": [
            {"node": row.node, "gpus": row.gpus, "last_seen": rfc3339(row.last_seen_ns)}
            for row in rows
        ]
    }


def pipeline(
    version: str,
    stream_url: str,
    time_ns: int,
    checks: Mapping[str, str | None],
    stored: Sequence[NodeRow] | None,
) -> Json:
    """Where the stream is and how the pipeline does, as far as the API sees it."""
    newest = max((row.last_seen_ns for row in stored), default=None) if stored else None
    return {
        "version": version,
        "time": rfc3339(time_ns),
        "stream_url": stream_url,
        "status": "failing" if stored is None or any(checks.values()) else "ok",
        "checks": {name: problem or "ok" for name, problem in checks.items()},
        "database": "unavailable" if stored is None else "ok",
        "nodes": None if stored is None else len(stored),
        "gpus": None if stored is None else sum(row.gpus for row in stored),
        "newest_sample": None if newest is None else rfc3339(newest),
    }


def _object(properties: Mapping[str, object], *optional: str) -> Json:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": [name for name in properties if name not in optional],
    }


def _list(items: object) -> Json:
    return {"type": "array", "items": items}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


_TEXT: Final[Json] = {"type": "string"}
_COUNT: Final[Json] = {"type": "integer", "minimum": 0}
_TIME: Final[Json] = {"type": "string", "format": "date-time"}
_CURSOR: Final[Json] = {
    "type": ["string", "null"],
    "description": "Send it as `cursor` to get the next page; null on the last.",
}
_PERCENT: Final[Json] = {"type": ["integer", "null"], "minimum": 0, "maximum": 100}
_METRIC_NAME: Final[Json] = {"type": "string", "enum": list(BY_NAME)}
_UNIT: Final[Json] = {"type": "string", "enum": [unit.value for unit in Unit]}
_KIND: Final[Json] = {"type": "string", "enum": [kind.value for kind in Kind]}

#: JSON schemas (2020-12) of the shapes above, for the OpenAPI document.
SCHEMAS: Final[Mapping[str, Json]] = {
    "Gpu": _object(
        {
            "id": _COUNT,
            "uuid": _TEXT,
            "node": _TEXT,
            "index": _COUNT,
            "device": _TEXT,
            "model": _TEXT,
            "pci_bus_id": _TEXT,
            "serial": _TEXT,
            "brand": _TEXT,
            "vbios_version": _TEXT,
            "driver_version": _TEXT,
            "nvml_version": _TEXT,
            "memory_total_bytes": {"type": ["integer", "null"], "minimum": 0},
            "first_seen": _TIME,
            "last_seen": _TIME,
            "latest": {
                "type": "object",
                "description": "By metric; only with `latest=true`.",
                "propertyNames": _METRIC_NAME,
                "additionalProperties": _object({"time": _TIME, "value": {"type": "number"}}),
            },
        },
        "latest",
    ),
    "GpuPage": _object({"gpus": _list(_ref("Gpu")), "next_cursor": _CURSOR}),
    "Series": _object(
        {
            "metric": _METRIC_NAME,
            "unit": _UNIT,
            "kind": _KIND,
            "time": _list(_TIME),
            "value": _list({"type": ["number", "null"]}),
        }
    ),
    "Telemetry": _object(
        {
            "gpu": _ref("Gpu"),
            "start_time": _TIME,
            "end_time": _TIME,
            "step_s": {
                "type": "number",
                "exclusiveMinimum": 0,
                "description": "Length of a bucket; only with `step`, as `agg` is.",
            },
            "agg": {"type": "string", "enum": [one.value for one in Aggregate]},
            "series": _list(_ref("Series")),
            "next_cursor": _CURSOR,
        },
        "step_s",
        "agg",
    ),
    "Processes": _object(
        {
            "gpu": _ref("Gpu"),
            "start_time": _TIME,
            "end_time": _TIME,
            "processes": _list(
                _object(
                    {
                        "time": _TIME,
                        "pid": _COUNT,
                        "kind": {"type": "string", "enum": [kind.value for kind in ProcessKind]},
                        "name": _TEXT,
                        "cgroup": _TEXT,
                        "container_id": _TEXT,
                        "memory_used_bytes": {"type": ["integer", "null"], "minimum": 0},
                        "sm_utilization_percent": _PERCENT,
                        "memory_utilization_percent": _PERCENT,
                        "encoder_utilization_percent": _PERCENT,
                        "decoder_utilization_percent": _PERCENT,
                    }
                )
            ),
            "next_cursor": _CURSOR,
        }
    ),
    "Events": _object(
        {
            "start_time": _TIME,
            "end_time": _TIME,
            "events": _list(
                _object(
                    {
                        "id": _COUNT,
                        "time": _TIME,
                        "node": _TEXT,
                        "gpu_uuid": _TEXT,
                        "kind": {"type": "string", "enum": [kind.value for kind in EventKind]},
                        "code": {"type": "integer"},
                        "message": _TEXT,
                    }
                )
            ),
            "next_cursor": _CURSOR,
        }
    ),
    "Metric": _object(
        {
            "name": _METRIC_NAME,
            "unit": _UNIT,
            "kind": _KIND,
            "cadence": {"type": "string", "enum": [cadence.value for cadence in Cadence]},
            "description": _TEXT,
            "dcgm": {"type": ["string", "null"]},
            "opentelemetry": {"type": ["string", "null"]},
            "prometheus": _TEXT,
            "nvml": _TEXT,
        }
    ),
    "Catalog": _object({"metrics": _list(_ref("Metric"))}),
    "Nodes": _object(
        {"nodes": _list(_object({"node": _TEXT, "gpus": _COUNT, "last_seen": _TIME}))}
    ),
    "Pipeline": _object(
        {
            "version": _TEXT,
            "time": _TIME,
            "stream_url": {"type": "string", "format": "uri"},
            "status": {"type": "string", "enum": ["ok", "failing"]},
            "checks": {"type": "object", "additionalProperties": _TEXT},
            "database": {"type": "string", "enum": ["ok", "unavailable"]},
            "nodes": {"type": ["integer", "null"]},
            "gpus": {"type": ["integer", "null"]},
            "newest_sample": {"type": ["string", "null"], "format": "date-time"},
        }
    ),
    "Problem": _object(
        {
            "type": {"type": "string", "format": "uri"},
            "title": _TEXT,
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": _TEXT,
            "instance": _TEXT,
            "parameter": _TEXT,
            "allowed": _list(_TEXT),
        },
        "parameter",
        "allowed",
    ),
}
