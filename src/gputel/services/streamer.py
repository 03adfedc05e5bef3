"""The streamer process: from the broker to WebSocket clients."""

from __future__ import annotations

from gputel import broker
from gputel.config import parse_address
from gputel.observe import HttpServer, bind
from gputel.services import heap
from gputel.services.process import Process
from gputel.stream.app import create_app, server_options
from gputel.stream.hub import Hub


async def serve(process: Process) -> None:
    """Serve `/ws` until told to stop."""
    heap.keep_freed()
    config = process.config
    address = parse_address(config.stream.listen)
    sock = bind("stream", address.host, address.port)
    client = await broker.connect(config.message_queue.address)
    hub = Hub(config.stream, client, config.message_queue.topic, process.telemetry, process.health)
    app = create_app(hub, process.telemetry, process.health)
    server = HttpServer("stream", app, sock, **server_options(config.stream))
    try:
        await hub.start()
        await server.start()
        process.ready(stream=f"{server.url.replace('http', 'ws', 1)}/ws", status=server.url)
        await process.until_stopped()
    finally:
        await hub.stop()
        await server.stop()
        await client.close()
