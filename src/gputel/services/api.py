"""The API process: queries, OpenAPI and the dashboard over PostgreSQL."""

from __future__ import annotations

from gputel import store
from gputel.api.app import create_app
from gputel.config import parse_address
from gputel.observe import HttpServer, bind
from gputel.services.process import Process
from gputel.store.query import Query
from gputel.store.settings import DatabaseSettings


async def serve(process: Process) -> None:
    """Serve HTTP until told to stop."""
    config = process.config
    address = parse_address(config.api.listen)
    sock = bind("api", address.host, address.port)
    database = await store.connect(config.database or DatabaseSettings())
    try:
        app = create_app(
            Query(database),
            process.telemetry,
            process.health,
            stream_url=f"ws://{config.stream.listen}/ws",
        )
        server = HttpServer("api", app, sock)
        await server.start()
        try:
            process.ready(api=server.url)
            await process.until_stopped()
        finally:
            await server.stop()
    finally:
        await database.close()
