"""The streamer's ASGI application: /ws and the status resources."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

import falcon
import falcon.asgi
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from gputel import limits
from gputel.clock import SYSTEM_CLOCK, Clock
from gputel.observe import Health, Telemetry, status_app
from gputel.observe.problems import App, install_problems
from gputel.stream.client import Client
from gputel.stream.hub import Hub
from gputel.stream.settings import StreamSettings

CLOSE_TRY_LATER: Final = 1013
RECEIVE_QUEUE: Final = 4
ABORT: Final = "gputel.abort"


class _Protocol(WebSocketsSansIOProtocol):
    """Lets the application drop a connection whose peer has stopped reading.

    ASGI can only close politely, and that waits for the peer.
    """

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if hasattr(self, "scope"):
            self.scope["extensions"][ABORT] = {"abort": self.transport.abort}


def server_options(settings: StreamSettings) -> dict[str, Any]:
    """Options for `observe.HttpServer`, so that it speaks WebSocket."""
    return {
        "ws": _Protocol,
        # Messages somewhat above our own bound get an answer that says so; the protocol
        # closes the connection (1009) only beyond.
        "ws_max_size": 2 * limits.WS_MESSAGE_BYTES_MAX,
        "ws_ping_interval": settings.heartbeat_seconds,
        "ws_ping_timeout": settings.heartbeat_seconds,
        # Deflate costs more CPU and memory a client than these small messages are worth.
        "ws_per_message_deflate": False,
    }


def origin_allowed(origin: str | None, host: str, origins: tuple[str, ...]) -> bool:
    """May a page of `origin` connect? Programs send no Origin and may."""
    if origin is None or origin in origins:
        return True
    try:
        page, own = urlsplit(origin), urlsplit(f"//{host}")
        return page.scheme in ("http", "https") and page.hostname == own.hostname is not None
    except ValueError:
        return False


class _Socket:
    def __init__(self, hub: Hub, clock: Clock) -> None:
        self._hub = hub
        self._clock = clock

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.set_header("Upgrade", "websocket")
        raise falcon.HTTPError(
            426,
            description="This is a WebSocket: connect with ws:// and send "
            '{"type":"subscribe","id":"all"}',
            headers={"Upgrade": "websocket", "Connection": "Upgrade"},
        )

    async def on_websocket(self, req: falcon.asgi.Request, ws: falcon.asgi.WebSocket) -> None:
        settings = self._hub.settings
        if not origin_allowed(
            req.get_header("Origin"), req.get_header("Host") or "", settings.origins
        ):
            self._hub.refuse("origin")
            await ws.close(1008)  # before accepting: the handshake is answered with 403
            return
        await ws.accept()
        if self._hub.full():
            self._hub.refuse("too_many")
            await ws.close(CLOSE_TRY_LATER, "too many clients, try again later")
            return
        extension = (req.scope.get("extensions") or {}).get(ABORT) or {}
        client = Client(
            self._hub, ws, extension.get("abort"), self._clock, settings.heartbeat_seconds
        )
        await self._hub.serve(client)


def create_app(
    hub: Hub, telemetry: Telemetry, health: Health, *, clock: Clock = SYSTEM_CLOCK
) -> App:
    """The application. Serve it with `server_options`."""
    app: App = falcon.asgi.App()
    app.ws_options.max_receive_queue = RECEIVE_QUEUE
    install_problems(app)
    app.add_route("/ws", _Socket(hub, clock))
    return status_app(telemetry, health, app)
