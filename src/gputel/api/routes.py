"""The route table: one declaration a resource, from which its Falcon route, the parsing of
its parameters and its part of the OpenAPI document come."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gputel import __version__, limits
from gputel.api import params, views
from gputel.clock import Clock
from gputel.errors import DatabaseUnavailable, QueryInvalid
from gputel.inventory import EventKind
from gputel.observe import Health
from gputel.store.buckets import Aggregate

if TYPE_CHECKING:
    from gputel.store.latest import Latest
    from gputel.store.query import NodeRow, Query

GPUS_PAGE_DEFAULT: Final = 1000


@dataclass(frozen=True, slots=True)
class Request:
    """What a handler gets: its parsed arguments and what it may ask."""

    arguments: Mapping[str, Any]
    query: Query
    health: Health
    clock: Clock
    stream_url: str  # as the client of this request reaches it


@dataclass(frozen=True, slots=True)
class Route:
    """One GET resource. `answer` names its schema in `views.SCHEMAS`."""

    path: str
    operation_id: str
    tag: str
    summary: str
    answer: str
    handler: Callable[[Request], Awaitable[views.Json]]
    parameters: tuple[params.Parameter, ...] = ()


async def _gpus(request: Request) -> views.Json:
    arguments = request.arguments
    limit: int = arguments["limit"]
    after: str | None = arguments["cursor"]
    if after is not None and not (after.isascii() and after.isdigit() and len(after) <= 18):
        raise QueryInvalid("cursor", "is not the next_cursor of an answer")
    rows = await request.query.gpus(
        node=arguments["node"],
        model=arguments["model"],
        uuid=arguments["uuid"],
        limit=limit + 1,  # one more tells whether there is another page
        after_gpu_id=int(after or 0),
    )
    more = len(rows) > limit
    rows = rows[:limit]
    latest: dict[int, list[Latest]] | None = None
    if arguments["latest"]:
        latest = {row.gpu_id: [] for row in rows}
        for value in await request.query.latest(arguments["metrics"], list(latest)):
            latest[value.gpu_id].append(value)
    return views.gpu_page(rows, str(rows[-1].gpu_id) if more else None, latest)


async def _gpu(request: Request) -> views.Json:
    return views.gpu(await request.query.gpu(request.arguments["id"]))


async def _telemetry(request: Request) -> views.Json:
    arguments = request.arguments
    start_ns, end_ns = _range(request)
    step_ns: int | None = arguments["step"]
    aggregate: Aggregate | None = arguments["agg"]
    if step_ns is None and aggregate is not None:
        raise QueryInvalid("agg", "needs a step")
    row = await request.query.gpu(arguments["id"])
    if step_ns is not None:
        if arguments["cursor"] is not None:
            raise QueryInvalid("cursor", "is not for a step: all buckets are on one page")
        aggregate = aggregate or Aggregate.AVG
        grid, series = await request.query.buckets(
            row,
            start_ns=start_ns,
            end_ns=end_ns,
            metrics=arguments["metrics"],
            step_ns=step_ns,
            aggregate=aggregate,
            limit=arguments["limit"],
        )
        return views.buckets(row, grid, aggregate, series)
    page = await request.query.telemetry(
        row,
        start_ns=start_ns,
        end_ns=end_ns,
        metrics=arguments["metrics"],
        limit=arguments["limit"],
        cursor=arguments["cursor"],
    )
    return views.telemetry(row, page, start_ns, end_ns)


def _range(request: Request) -> tuple[int, int]:
    start_ns: int = request.arguments["start_time"]
    end_ns: int = request.arguments["end_time"]
    if start_ns >= end_ns:
        raise QueryInvalid("end_time", "must be later than start_time")
    return start_ns, end_ns


async def _processes(request: Request) -> views.Json:
    arguments = request.arguments
    start_ns, end_ns = _range(request)
    row = await request.query.gpu(arguments["id"])
    page = await request.query.processes(
        row,
        start_ns=start_ns,
        end_ns=end_ns,
        limit=arguments["limit"],
        cursor=arguments["cursor"],
    )
    return views.processes(row, page, start_ns, end_ns)


async def _events(request: Request) -> views.Json:
    arguments = request.arguments
    start_ns, end_ns = _range(request)
    kinds: tuple[str, ...] | None = arguments["kind"]
    page = await request.query.events(
        start_ns=start_ns,
        end_ns=end_ns,
        kinds=None if kinds is None else [EventKind(kind) for kind in kinds],
        gpu=arguments["gpu"],
        node=arguments["node"],
        limit=arguments["limit"],
        cursor=arguments["cursor"],
    )
    return views.events(page, start_ns, end_ns)


async def _metrics(request: Request) -> views.Json:
    return views.catalog()


async def _nodes(request: Request) -> views.Json:
    return views.nodes(await request.query.nodes())


async def _pipeline(request: Request) -> views.Json:
    stored: list[NodeRow] | None
    try:
        stored = list(await request.query.nodes())
    except DatabaseUnavailable:
        stored = None
    return views.pipeline(
        __version__,
        request.stream_url,
        request.clock.time_ns(),
        request.health.readiness(),
        stored,
    )


_GPU_ID = params.text(
    "id", "The GPU's number in this store, or its UUID.", chars_max=128, where="path"
)
_RANGE = (
    params.time("start_time", "From here on, included.", default="-1h"),
    params.time("end_time", "Until here, excluded.", default="now"),
)
_ROWS_PAGE = (
    params.integer(
        "limit",
        "Rows on a page.",
        low=1,
        high=limits.QUERY_ROWS_MAX,
        default=limits.QUERY_ROWS_DEFAULT,
    ),
    params.cursor(),
)

ROUTES: Final = (
    Route(
        "/api/v1/gpus",
        "listGpus",
        "inventory",
        "GPUs, in the order in which they were first seen",
        "GpuPage",
        _gpus,
        (
            params.text("node", "Only GPUs of this node."),
            params.text("model", "Only GPUs of this model."),
            params.text("uuid", "Only the GPU with this UUID."),
            params.flag("latest", "Add the latest stored value of each metric."),
            params.metrics("metrics", "Metrics of `latest`; all when absent."),
            params.integer(
                "limit",
                "GPUs on a page.",
                low=1,
                high=limits.QUERY_GPUS_PAGE_MAX,
                default=GPUS_PAGE_DEFAULT,
            ),
            params.cursor(),
        ),
    ),
    Route(
        "/api/v1/gpus/{id}",
        "getGpu",
        "inventory",
        "One GPU",
        "Gpu",
        _gpu,
        (_GPU_ID,),
    ),
    Route(
        "/api/v1/gpus/{id}/telemetry",
        "getTelemetry",
        "telemetry",
        "Samples of one GPU, or aggregates of them by a step; columns by metric, oldest first",
        "Telemetry",
        _telemetry,
        (
            _GPU_ID,
            *_RANGE,
            params.metrics("metrics", "Only these; all when absent."),
            params.step(
                "step",
                "Aggregate the values in buckets of this length, which begin at its multiples "
                "since 1970; every bucket that the range touches is given whole.",
            ),
            params.choice("agg", "What becomes of a bucket; avg when absent.", Aggregate),
            params.integer(
                "limit",
                "Points on a page, of all series together.",
                low=1,
                high=limits.QUERY_POINTS_MAX,
                default=limits.QUERY_POINTS_DEFAULT,
            ),
            params.cursor(),
        ),
    ),
    Route(
        "/api/v1/gpus/{id}/processes",
        "listProcesses",
        "processes",
        "What ran on one GPU, oldest first",
        "Processes",
        _processes,
        (_GPU_ID, *_RANGE, *_ROWS_PAGE),
    ),
    Route(
        "/api/v1/events",
        "listEvents",
        "events",
        "What happened to the GPUs and their collectors, newest first",
        "Events",
        _events,
        (
            *_RANGE,
            params.choices("kind", "Only events of these kinds.", [k.value for k in EventKind]),
            params.text("gpu", "Only of the GPU with this number or UUID.", chars_max=128),
            params.text("node", "Only of this node."),
            *_ROWS_PAGE,
        ),
    ),
    Route(
        "/api/v1/metrics",
        "listMetrics",
        "catalog",
        "Every metric: name, unit, meaning, its names elsewhere",
        "Catalog",
        _metrics,
    ),
    Route("/api/v1/nodes", "listNodes", "inventory", "Nodes that have GPUs", "Nodes", _nodes),
    Route(
        "/api/v1/pipeline",
        "getPipeline",
        "pipeline",
        "Version, the live stream's address, and how the pipeline does",
        "Pipeline",
        _pipeline,
    ),
)
