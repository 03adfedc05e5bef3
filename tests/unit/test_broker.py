"""What is the embedded engine's own: a data directory that is gone, or in use."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from conformance.test_client import connected, publish, take
from gputel.broker import BrokerSettings, StartAt
from gputel.broker.engines import make_engine
from gputel.broker.server import BrokerServer
from gputel.errors import InputError, PortInUse
from gputel.observe import Health, Telemetry


@asynccontextmanager
async def serving(
    data_dir: Path, listen: str = "127.0.0.1:0", **settings
) -> AsyncIterator[BrokerServer]:
    telemetry = Telemetry("broker")
    fields = {"partitions": 4, "disk_reserve_bytes": 0} | settings
    options = BrokerSettings(listen=listen, **fields)
    server = BrokerServer(options, make_engine(options, data_dir), telemetry, Health("broker"))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
        telemetry.close()


async def test_saved_positions_of_a_log_that_is_gone_skip_nothing(tmp_path):
    async with serving(tmp_path, partitions=1) as server, connected(server.address) as client:
        await publish(client, 1, 5)
        consumer = client.consumer("t", group="g", start_at=StartAt.EARLIEST)
        async with consumer:
            await take(consumer, 5)
    shutil.rmtree(tmp_path / "topics")
    async with serving(tmp_path, partitions=1) as server, connected(server.address) as client:
        await publish(client, 1, 3)
        async with client.consumer("t", group="g") as consumer:
            assert [d.sequence for d in await take(consumer, 3)] == [1, 2, 3]


async def test_a_port_in_use_and_a_directory_in_use_are_named(tmp_path):
    async with serving(tmp_path) as server:
        with pytest.raises(PortInUse, match="broker"):
            async with serving(tmp_path / "other", server.address):
                pass
        with pytest.raises(InputError, match="in use by another broker"):
            async with serving(tmp_path):
                pass
