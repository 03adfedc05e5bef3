"""The embedded PostgreSQL under the supervisor: killed, it is back at the same address."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gputel import store
from gputel.services.postgres import PostgresPart
from gputel.services.supervisor import Plan, Supervisor

pytestmark = pytest.mark.integration


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with TemporaryDirectory(prefix="gputel-test-") as path:
        Path(path).chmod(0o711)  # root lends the database to a user who passes through
        yield Path(path)


async def test_a_killed_postmaster_is_back(data_dir: Path) -> None:
    part = PostgresPart(data_dir)
    supervisor = Supervisor([Plan(part, (), lambda _: b"", 120)], [["postgres"]])
    try:
        before = (await supervisor.start())["postgres"]
        keeper = supervisor.keepers["postgres"]
        os.kill(before.pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            while keeper.serves.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await keeper.serves.wait()
        after = supervisor.announcements["postgres"]
        assert after.addresses == before.addresses
        assert after.pid != before.pid
        assert keeper.restarts == 1
        assert part.settings is not None
        database = await store.connect(part.settings)
        await database.close()
    finally:
        await supervisor.stop()
    assert part.pid is None
