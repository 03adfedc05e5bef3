"""kill -9 of the server behind a step of sealing, for whose commit nobody waited.

The step is there, or its rows are hot again."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gputel import store as store_package
from gputel.catalog import METRIC_SETS, SET_BY_CADENCE, Cadence
from gputel.clock import SYSTEM_CLOCK, ManualClock
from gputel.store import Store, frozen, schema
from gputel.store.embedded import EmbeddedPostgres
from gputel.store.maintain import Maintainer
from gputel.store.partitions import Partitions
from gputel.store.sealing import Sealing
from gputel.store.settings import StoreSettings
from support.tiers import HOUR_NS, SETTINGS, START_NS, S, commit, count, hours, points

if TYPE_CHECKING:
    from support.database import Producer

pytestmark = [pytest.mark.integration, pytest.mark.fault, pytest.mark.usefixtures("plain")]

KILLS = 4
ROWS = 6
DEADLINE_S = 20


@pytest.fixture
async def server() -> AsyncGenerator[EmbeddedPostgres]:
    """One of this test's own."""
    with tempfile.TemporaryDirectory(prefix="gputel-test-") as name:
        root = Path(name)
        root.chmod(0o711)  # noqa: ASYNC240  # a server of root's has a user of its own
        one = EmbeddedPostgres(root / "data", fallback_root=root / "fallback" / "embedded")
        try:
            yield one
        finally:
            await one.stop()


async def killed(server: EmbeddedPostgres) -> None:
    """All of it: its backends go with the postmaster."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    async with asyncio.timeout(DEADLINE_S):
        while server.alive():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def steps(store: Store, maintainer: Maintainer) -> None:
    """The steps of a round, and nothing else."""
    due = await maintainer._due()
    await Partitions(store, StoreSettings()).ensure(maintainer._needs_of(due))
    await Sealing(store, due, asyncio.create_task(asyncio.sleep(0))).steps()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("rows_max", [frozen.ROWS_MAX, 0], ids=["whole", "steps"])
async def test_a_step_that_a_crash_undoes_is_taken_again(
    server: EmbeddedPostgres,
    make_producer: Callable[..., Producer],
    monkeypatch: pytest.MonkeyPatch,
    rows_max: int,
) -> None:
    monkeypatch.setattr(frozen, "ROWS_MAX", rows_max)
    producer = make_producer(gpus=3)
    fast = schema.hot_table(SET_BY_CADENCE[Cadence.FAST])

    for number in range(KILLS):
        settings = await server.start()
        store: Store = await store_package.connect(settings)
        await store.migrate(StoreSettings())
        messages = [producer.publish([START_NS + (number * ROWS + i) * S]) for i in range(ROWS)]
        await commit(store, messages)
        maintainer = Maintainer(store, SETTINGS, ManualClock(SYSTEM_CLOCK.time_ns() + HOUR_NS))
        # Dropping waits for the disk, and folding does; so nothing comes after the steps.
        await steps(store, maintainer)
        await killed(server)
        await store.close()
        store = await store_package.connect(await server.start())
        print(f"{await count(store, fast)} rows are hot again")
        await points(store, producer)
        await hours(store, producer)
        await store.close()
        await killed(server)
    store = await store_package.connect(await server.start())
    await Maintainer(store, SETTINGS, ManualClock(SYSTEM_CLOCK.time_ns() + HOUR_NS)).round()
    await points(store, producer)
    await hours(store, producer)
    for metric_set in METRIC_SETS:
        assert await count(store, schema.hot_table(metric_set)) == 0
    await store.close()
