"""What is the embedded engine's own: a data directory that is gone, or in use."""

from __future__ import annotations

import shutil

import pytest

from conformance.test_client import publish, take
from gputel.broker import StartAt
from gputel.errors import InputError, PortInUse
from support.brokers import connected, serving


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
            async with serving(tmp_path / "other", listen=server.address):
                pass
        with pytest.raises(InputError, match="in use by another broker"):
            async with serving(tmp_path):
                pass
