"""Steps of sealing: as many at once as are allowed, and no more; and a row that nobody can read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from gputel.catalog import SET_BY_CADENCE, Cadence
from gputel.clock import SYSTEM_CLOCK, ManualClock
from gputel.store import Store, hot, schema, seal, sealing
from gputel.store.maintain import Maintainer
from support.tiers import HOUR_NS, SETTINGS, START_NS, S, commit, count, hours, points

if TYPE_CHECKING:
    from support.database import Producer

GPUS = 2 * sealing.STEPS_AT_ONCE
ROWS = 6
DEADLINE_S = 20
LOOKS = 20


async def test_as_many_steps_at_once_as_are_allowed(
    store: Store, make_producer: Callable[..., Producer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal, "ROWS_A_STEP", 2 * ROWS)  # one GPU's
    producer = make_producer(gpus=GPUS)
    messages = [producer.publish([START_NS + i * 20 * S]) for i in range(ROWS)]
    await commit(store, messages)
    maintainer = Maintainer(store, SETTINGS, ManualClock(SYSTEM_CLOCK.time_ns() + HOUR_NS))
    under_way = most = 0
    full = asyncio.Event()
    read_gpus = hot.read_gpus

    async def watched(connection: Any, *arguments: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            if under_way == sealing.STEPS_AT_ONCE:
                # As many as are allowed: another one would have begun by the end of this.
                for _ in range(LOOKS):
                    await connection.fetchval("SELECT 1")
                full.set()
            async with asyncio.timeout(DEADLINE_S):
                await full.wait()
            return await read_gpus(connection, *arguments)
        finally:
            under_way -= 1

    monkeypatch.setattr(hot, "read_gpus", watched)
    await maintainer.round()
    assert most == sealing.STEPS_AT_ONCE
    assert maintainer.counts.sealed_rows == GPUS * ROWS
    assert await count(store, schema.hot_table(SET_BY_CADENCE[Cadence.FAST])) == 0
    await points(store, producer)
    await hours(store, producer)


async def test_a_damaged_row_holds_up_its_own_partition_only(
    store: Store,
    make_producer: Callable[..., Producer],
    caplog: pytest.LogCaptureFixture,
) -> None:
    producer = make_producer(gpus=2)
    messages = [producer.publish([START_NS + i * 20 * S]) for i in range(ROWS)]
    messages.append(producer.publish([START_NS], cadence=Cadence.MEDIUM))
    await commit(store, messages)
    fast, medium = (schema.hot_table(SET_BY_CADENCE[c]) for c in (Cadence.FAST, Cadence.MEDIUM))
    damaged = "gpu_id = 1 AND sequence = 2"
    damage = f"UPDATE {fast} SET cells = $1 WHERE {damaged}"
    async with store.session() as session:
        cells = await session.fetchval(f"SELECT cells FROM {fast} WHERE {damaged}")
        await session.execute(damage, cells[:-1])
    maintainer = Maintainer(store, SETTINGS, ManualClock(SYSTEM_CLOCK.time_ns() + HOUR_NS))
    await maintainer.round()
    (said,) = (r.getMessage() for r in caplog.records if r.levelname == "ERROR")
    assert "cells of GPU 1, epoch 1, sequence 2: 167 bytes, where 168 hold" in said
    assert await count(store, medium) == 0
    assert await count(store, f"{fast} WHERE gpu_id = 1") > 0
    async with store.session() as session:
        await session.execute(damage, cells)
    await maintainer.round()
    assert await count(store, fast) == 0
    await points(store, producer)
    await hours(store, producer)
