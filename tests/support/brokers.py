"""A broker in this process and a client of one, for as long as a test needs them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gputel import broker
from gputel.broker import BrokerClient, BrokerSettings
from gputel.broker.engines import make_engine
from gputel.broker.server import BrokerServer
from gputel.clock import SYSTEM_CLOCK, Clock
from gputel.observe import Health, Telemetry


@asynccontextmanager
async def serving(
    directory: Path, *, health: Health | None = None, clock: Clock = SYSTEM_CLOCK, **settings: Any
) -> AsyncIterator[BrokerServer]:
    """A broker that keeps its files in `directory`: one partition, unless `settings` say more."""
    fixed: dict[str, Any] = {"listen": "127.0.0.1:0", "partitions": 1, "disk_reserve_bytes": 0}
    options = BrokerSettings(**fixed | settings)
    telemetry = Telemetry("broker")
    engine = make_engine(options, directory, clock=clock)
    server = BrokerServer(options, engine, telemetry, health or Health("broker"), clock)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()
        telemetry.close()


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[BrokerClient]:
    """A client, closed at the end."""
    client = await broker.connect(address)
    try:
        yield client
    finally:
        await client.close()
