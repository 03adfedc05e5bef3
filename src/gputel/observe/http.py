"""The HTTP side of every service: /metrics, /healthz, /readyz, and a server that starts and stops.

The server is uvicorn with httptools; it binds before it starts, so that a port in use is
an error in our words, and it leaves signals to the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import Generator, Mapping
from email.utils import formatdate
from typing import Any

import falcon
import falcon.asgi
import orjson
import uvicorn
from uvicorn.server import ServerState

from gputel.clock import NS_PER_S, SYSTEM_CLOCK
from gputel.errors import InputError, PortInUse
from gputel.observe.at_once import AtOnceProtocol
from gputel.observe.health import Health
from gputel.observe.telemetry import Telemetry

SHUTDOWN_GRACE_S = 3


def bind(service: str, host: str, port: int) -> socket.socket:
    """A TCP socket bound to `host:port` (0: any free port); PortInUse or InputError."""
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        family = socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(service, f"{host}:{port}") from None
        raise InputError(f"{service}: can't listen on {host}:{port}: {error.strerror}") from None
    return sock


class _State(ServerState):
    """The Date header is made when an answer needs it, once a second at most."""

    def __init__(self) -> None:
        self._second = -1
        self._headers: list[tuple[bytes, bytes]] = []
        super().__init__()

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        second = SYSTEM_CLOCK.time_ns() // NS_PER_S
        if second != self._second:
            self._second = second
            self._headers = [(b"date", formatdate(second, usegmt=True).encode())]
        return self._headers

    @default_headers.setter
    def default_headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        """uvicorn begins with an empty list."""


class _Uvicorn(uvicorn.Server):
    """Signals belong to the service's main, not to its HTTP server.

    PERF(http): uvicorn's own loop wakes up ten times a second, to see whether it shall end and to
    renew the Date header; that was a fifth of what an idle collector costs.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.server_state = _State()
        self._told = asyncio.Event()

    def end(self) -> None:
        """Serve no more."""
        self.should_exit = True
        self._told.set()

    async def main_loop(self) -> None:
        await self._told.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class HttpServer:
    """Serves one ASGI application on a bound socket, inside the running event loop."""

    def __init__(self, service: str, app: Any, sock: socket.socket, **options: Any) -> None:
        self.service = service
        self.host, self.port = sock.getsockname()[:2]
        self._sock = sock
        self._server = _Uvicorn(
            uvicorn.Config(
                app,
                loop="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
                **{"http": AtOnceProtocol, "ws": "none", **options},
            )
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """`http://host:port`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Return once requests are served."""
        self._task = asyncio.create_task(
            self._server.serve(sockets=[self._sock]), name=f"http-{self.service}"
        )
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise InputError(f"{self.service}: the HTTP server stopped while starting")
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Finish the requests under way (a few seconds at most) and close the socket."""
        if self._task is not None:
            self._server.end()
            await self._task
            self._task = None
        self._sock.close()


class _Metrics:
    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        accept = req.get_header("Accept") or ""
        resp.data, resp.content_type = self._telemetry.exposition(accept)


class _Checks:
    def __init__(self, health: Health, *, readiness: bool) -> None:
        self._health = health
        self._readiness = readiness

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        checks: Mapping[str, str | None] = (
            self._health.readiness() if self._readiness else self._health.liveness()
        )
        well = not any(checks.values())
        resp.status = falcon.HTTP_200 if well else falcon.HTTP_503
        resp.content_type = falcon.MEDIA_JSON
        resp.data = orjson.dumps(
            {
                "service": self._health.service,
                "status": "ok" if well else "failing",
                "checks": {name: problem or "ok" for name, problem in checks.items()},
            }
        )


App = falcon.asgi.App[falcon.asgi.Request, falcon.asgi.Response]


def status_app(
    telemetry: Telemetry,
    health: Health,
    app: App | None = None,
    *,
    metrics_path: str = "/metrics",
) -> App:
    """Add /metrics, /healthz and /readyz to `app` (or to a new one)."""
    app = app or falcon.asgi.App()
    app.add_route(metrics_path, _Metrics(telemetry))
    app.add_route("/healthz", _Checks(health, readiness=False))
    app.add_route("/readyz", _Checks(health, readiness=True))
    return app
