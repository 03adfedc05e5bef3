"""The API's ASGI application: REST, OpenAPI, Swagger UI, dashboard, status."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import falcon
import falcon.asgi

from gputel.api.openapi import openapi
from gputel.api.pages import add_pages
from gputel.api.params import parse_arguments
from gputel.api.routes import ROUTES, Request, Route
from gputel.api.views import encode
from gputel.clock import NS_PER_S, SYSTEM_CLOCK, Clock
from gputel.observe import Health, Telemetry, status_app
from gputel.observe.problems import App, install_problems

if TYPE_CHECKING:
    from gputel.store.query import Query

QUERY_STRING_BYTES_MAX: Final = 16 * 1024
BODY_BYTES_MAX: Final = 64 * 1024

_HOST = re.compile(r"(?:[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])", re.ASCII)
_HERE = frozenset({"127.0.0.1", "localhost", "::1", "0.0.0.0", "::", ""})  # noqa: S104


def stream_url_for(stream_url: str, host: str) -> str:
    """The stream's address for a client that reached the API as `host`.

    A streamer that listens on loopback or on all addresses is where the API is; one that
    was configured with a name keeps it.
    """
    parts = urlsplit(stream_url)
    if (parts.hostname or "") not in _HERE or not host:
        return stream_url
    name = f"[{host}]" if ":" in host and not host.startswith("[") else host
    if not _HOST.fullmatch(name):
        return stream_url
    port = f":{parts.port}" if parts.port else ""
    return parts._replace(netloc=f"{name}{port}").geturl()


class _Guard:
    """Bounds on what comes in, security headers on what goes out."""

    def __init__(self, stream_url: str, requests: dict[int, int]) -> None:
        self._stream_url = stream_url
        self._requests = requests

    async def process_request(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        if len(req.scope["query_string"]) > QUERY_STRING_BYTES_MAX:
            raise falcon.HTTPUriTooLong(
                description=f"The query string may have {QUERY_STRING_BYTES_MAX} bytes at most"
            )
        if (req.content_length or 0) > BODY_BYTES_MAX:
            raise falcon.HTTPContentTooLarge(
                description=f"A body may have {BODY_BYTES_MAX} bytes at most"
            )

    async def process_response(
        self,
        req: falcon.asgi.Request,
        resp: falcon.asgi.Response,
        resource: object,
        req_succeeded: bool,
    ) -> None:
        status = falcon.http_status_to_code(resp.status)
        self._requests[status] = self._requests.get(status, 0) + 1
        resp.set_headers(
            {
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Cross-Origin-Opener-Policy": "same-origin",
                "Content-Security-Policy": self._policy(req, resp),
            }
        )

    def _policy(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> str:
        if not (resp.content_type or "").startswith("text/html"):
            return "default-src 'none'; frame-ancestors 'none'"
        stream = urlsplit(stream_url_for(self._stream_url, _host(req)))
        # Swagger UI writes style elements; the dashboard needs none.
        style = "'self' 'unsafe-inline'" if req.path == "/docs" else "'self'"
        return (
            "default-src 'none'; script-src 'self'; img-src 'self' data:; font-src 'self'; "
            f"style-src {style}; connect-src 'self' {stream.scheme}://{stream.netloc}; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )


def _host(req: falcon.asgi.Request) -> str:
    try:
        return req.host
    except (falcon.HTTPError, ValueError):
        return ""


class _Resource:
    """One route of the table."""

    def __init__(
        self, route: Route, query: Query, health: Health, clock: Clock, stream_url: str
    ) -> None:
        self._route = route
        self._query = query
        self._health = health
        self._clock = clock
        self._stream_url = stream_url

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, **path: Any
    ) -> None:
        query_string = req.scope["query_string"].decode("latin-1")
        arguments = parse_arguments(
            self._route.parameters, query_string, path, self._clock.time_ns()
        )
        body = await self._route.handler(
            Request(
                arguments,
                self._query,
                self._health,
                self._clock,
                stream_url_for(self._stream_url, _host(req)),
            )
        )
        resp.data = encode(body)
        resp.content_type = falcon.MEDIA_JSON
        resp.cache_control = ["no-store"]

    on_head = on_get


class _Document:
    """The OpenAPI document; it does not change while the process lives."""

    def __init__(self) -> None:
        self._content = encode(openapi(ROUTES))

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.data = self._content
        resp.content_type = falcon.MEDIA_JSON
        resp.cache_control = ["no-cache"]

    on_head = on_get


class _Timing:
    """Seconds from request to answer, for the histogram."""

    def __init__(self, telemetry: Telemetry, clock: Clock) -> None:
        self._clock = clock
        self._record = telemetry.histogram(
            "gputel_api_request_seconds", "Time from request to answer"
        )

    async def process_request(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        req.context.started_ns = self._clock.monotonic_ns()

    async def process_response(
        self,
        req: falcon.asgi.Request,
        resp: falcon.asgi.Response,
        resource: object,
        req_succeeded: bool,
    ) -> None:
        self._record((self._clock.monotonic_ns() - req.context.started_ns) / NS_PER_S)


def create_app(
    query: Query,
    telemetry: Telemetry,
    health: Health,
    *,
    stream_url: str,
    clock: Clock = SYSTEM_CLOCK,
) -> App:
    """The application; `stream_url` is the streamer's `ws://host:port/ws`."""
    requests: dict[int, int] = {}
    telemetry.observe_counter(
        "gputel_api_requests",
        "Requests answered, by status",
        lambda: [(count, {"status": str(status)}) for status, count in requests.items()],
    )
    app: App = falcon.asgi.App(middleware=[_Timing(telemetry, clock), _Guard(stream_url, requests)])
    install_problems(app)
    for route in ROUTES:
        app.add_route(route.path, _Resource(route, query, health, clock, stream_url))
    app.add_route("/openapi.json", _Document())
    add_pages(app)
    return status_app(telemetry, health, app)
