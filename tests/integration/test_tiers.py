"""Chunks are merged and hours are summed up; what a query finds, and who waits, stays the same."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from gputel import store as store_package
from gputel.catalog import SET_BY_CADENCE, Cadence
from gputel.clock import SYSTEM_CLOCK, ManualClock
from gputel.errors import DatabaseUnavailable
from gputel.inventory import Event, EventKind
from gputel.observe import Telemetry
from gputel.store import Store, chunks, seal
from gputel.store.maintain import Maintainer, MaintenanceCounts
from gputel.store.rechunk import SMALL_BYTES, SMALL_SAMPLES
from gputel.store.settings import DatabaseSettings
from support.tiers import (
    HOUR_NS,
    SETTINGS,
    START_NS,
    S,
    commit,
    count,
    hours,
    mixed,
    points,
    settle,
)

if TYPE_CHECKING:
    from support.database import Producer


@pytest.fixture
def later() -> ManualClock:
    return ManualClock(SYSTEM_CLOCK.time_ns() + HOUR_NS)


async def no_two_small_chunks(store: Store) -> None:
    async with store.session() as session:
        crowds = await session.fetch(
            "SELECT gpu_id, set_id, epoch, count(*) FROM sample_chunk WHERE samples < $1 "
            "AND octet_length(payload) < $2 GROUP BY 1, 2, 3 HAVING count(*) > 1",
            SMALL_SAMPLES,
            SMALL_BYTES,
        )
    assert not crowds


async def test_small_chunks_are_merged_once(
    store: Store, producer: Producer, later: ManualClock
) -> None:
    await commit(store, mixed(producer))
    await points(store, producer)
    await hours(store, producer)
    maintainer = Maintainer(store, SETTINGS, later)
    before = 0
    for _ in range(2):
        await settle(maintainer, later)
        await points(store, producer)
        await hours(store, producer)
        done = maintainer.counts
        assert done.merged_chunks >= 400
        await no_two_small_chunks(store)
        assert await count(store, "rollup_1h_part") == 0
        assert await count(store, "rollup_1h") == 2 * 4
        assert before in (0, done.merged_chunks)  # the second time nothing is to be done
        before = done.merged_chunks
    late = [producer.publish([START_NS + i * 60 * S + S // 2]) for i in range(180)]
    await commit(store, late)
    await points(store, producer)
    await hours(store, producer)
    await settle(maintainer, later)
    await points(store, producer)
    await hours(store, producer)
    await no_two_small_chunks(store)
    assert await count(store, "rollup_1h") == 2 * 4


async def test_of_a_day_that_goes_on_whole_hours_are_merged(
    store: Store, producer: Producer
) -> None:
    clock = ManualClock(SYSTEM_CLOCK.time_ns())
    day_ns = SYSTEM_CLOCK.time_ns() // (24 * HOUR_NS) * 24 * HOUR_NS
    times = [day_ns - 24 * HOUR_NS + i * S for i in range(4 * 3600)]
    await commit(store, [producer.publish(times[i : i + 60]) for i in range(0, len(times), 60)])
    async with store.session() as session:  # as if it had been stored in time
        await session.execute("UPDATE store_partition SET created_at = lower")
    clock.step_wall((day_ns - 24 * HOUR_NS + 3 * HOUR_NS + 1800 * S - clock.time_ns()) / S)
    await Maintainer(store, SETTINGS, clock).round()
    # Three hours are over, of the fourth the chunks are as they came.
    async with store.session() as session:
        merged = await session.fetchval("SELECT sum(samples) FROM sample_chunk WHERE samples > 60")
        assert merged == 2 * 3 * 3600
    assert await count(store, "sample_chunk WHERE samples = 60") == 2 * 60


async def test_chunks_that_can_not_be_merged_are_left(
    store: Store, producer: Producer, later: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    await commit(
        store, [producer.publish([START_NS + (i + j) * S for j in range(50)]) for i in (0, 50, 100)]
    )
    async with store.session() as session:
        await session.execute(
            "UPDATE sample_chunk SET payload = set_byte(payload, 40, get_byte(payload, 40) # 1) "
            "WHERE gpu_id = 1 AND first_sequence = 50"
        )
    maintainer = Maintainer(store, SETTINGS, later)
    await maintainer.round()
    assert "a chunk of GPU 1" in caplog.text
    assert await count(store, "sample_chunk WHERE gpu_id = 1") == 2
    assert await count(store, "sample_chunk WHERE gpu_id = 2") == 1
    assert maintainer.counts.merged_chunks == 5


async def hot_name(store: Store) -> str:
    async with store.session() as session:
        name = await session.fetchval(
            "SELECT name FROM store_partition WHERE parent = 'sample_hot_fast' ORDER BY lower"
        )
    return str(name)


@pytest.mark.parametrize("merging", [False, True])
async def test_nobody_waits_for_a_step(
    store: Store,
    database: DatabaseSettings,
    producer: Producer,
    later: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    merging: bool,
) -> None:
    await commit(store, mixed(producer))
    written, go_on = asyncio.Event(), asyncio.Event()
    real = chunks.write

    async def write(*arguments: Any, **options: Any) -> chunks.Written:
        done = await real(*arguments, **options)
        if merging == options.get("counted", False):
            written.set()
            await go_on.wait()
        return done

    monkeypatch.setattr(chunks, "write", write)
    maintainer = Maintainer(store, SETTINGS, later)
    work = asyncio.create_task(maintainer.round())
    await asyncio.wait_for(written.wait(), 20)
    monkeypatch.setattr(chunks, "write", real)
    # The step's transaction is open now, with everything it locks.
    impatient = asyncpg.create_pool(
        host=database.host,
        port=database.port,
        user=database.user,
        password=database.password,
        database=database.dbname,
        server_settings={"lock_timeout": "1ms"},
    )
    async with impatient as pool:
        other = Store(database, pool)
        late = [producer.publish([START_NS + i * 60 * S + 3 * S // 10]) for i in range(180)]
        late.append(producer.publish([START_NS + i * S + S // 5 for i in range(50)]))
        await commit(other, late)
        await points(other, producer)
        await hours(other, producer)
    go_on.set()
    await work
    await points(store, producer)
    await hours(store, producer)
    later.advance(HOUR_NS // S)
    await settle(maintainer, later)
    await points(store, producer)
    await hours(store, producer)
    assert await count(store, "sample_hot_fast") == 0


async def test_a_partition_is_dropped_when_no_reader_is_in_the_way(
    store: Store, producer: Producer, later: ManualClock
) -> None:
    await commit(store, [producer.publish([START_NS])])
    name = await hot_name(store)
    maintainer = Maintainer(store, SETTINGS, later)
    async with store.session() as reader, reader.transaction():
        await reader.fetch("SELECT * FROM gpu_latest")
        await maintainer.round()
        assert (maintainer.counts.postponed, maintainer.counts.sealed_partitions) == (1, 0)
        assert maintainer.counts.sealed_rows == 2
    assert await count(store, f"{name} ") == 0
    for _ in range(20):  # a busy machine may need longer than a drop waits
        await maintainer.round()
        if maintainer.counts.sealed_partitions:
            break
    assert maintainer.counts.sealed_partitions == 1
    assert await count(store, f"store_partition WHERE name = '{name}'") == 0


async def test_killed_at_any_point(
    store: Store,
    producer: Producer,
    later: ManualClock,
    as_admin: Callable[..., Awaitable[None]],
    database: DatabaseSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(seal, "ROWS_A_STEP", 16)
    await commit(store, mixed(producer))
    maintainer = Maintainer(store, SETTINGS, later)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    killed = 0
    async with asyncio.timeout(60):
        for _ in range(100):
            work = asyncio.create_task(maintainer.round())
            await asyncio.wait([work], timeout=chance.uniform(0.005, 0.15))
            await as_admin(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                f"WHERE datname = '{database.dbname}'"
            )
            try:
                await work
            except (DatabaseUnavailable, asyncpg.PostgresError):
                killed += 1
            else:
                break
    assert killed
    fresh = await store_package.connect(database)  # whose sessions nobody has ended
    try:
        await points(fresh, producer)
        await hours(fresh, producer)
        await settle(Maintainer(fresh, SETTINGS, later), later)
        await points(fresh, producer)
        await hours(fresh, producer)
        assert await count(fresh, "sample_hot_fast") == 0
    finally:
        await fresh.close()


async def test_two_maintainers_at_once(
    store: Store, producer: Producer, later: ManualClock
) -> None:
    """The lock is gone with its session, and the first has not noticed."""
    await commit(store, mixed(producer))
    both = [Maintainer(store, SETTINGS, later) for _ in range(2)]
    for _ in range(3):
        await asyncio.gather(*(maintainer.round() for maintainer in both))
    await settle(both[0], later)
    await points(store, producer)
    await hours(store, producer)
    assert await count(store, f"sample_hot_{SET_BY_CADENCE[Cadence.FAST].name}") == 0


async def test_metrics_tell_all_of_maintenance(
    store: Store, producer: Producer, later: ManualClock
) -> None:
    event = Event(START_NS, EventKind.XID, producer.gpu(0).uuid, 79, "fell off the bus")
    await commit(store, [*mixed(producer), producer.publish([START_NS + S], events=[event])])
    maintainer = Maintainer(store, SETTINGS, later)
    telemetry = Telemetry("sink")
    maintainer.counts.describe(telemetry)
    await settle(maintainer, later)
    later.advance(8 * 24 * 3600)
    await maintainer.round()
    page = telemetry.exposition()[0].decode()
    telemetry.close()
    samples = {
        name: float(value)
        for name, value in re.findall(r"^gputel_store_(\w+)_total (\S+)$", page, re.MULTILINE)
    }
    done = maintainer.counts
    assert samples == {
        "maintenance_rounds": done.rounds,
        "sealed_partitions": done.sealed_partitions,
        "sealed_rows": done.sealed_rows,
        "sealed_chunks": done.sealed_chunks,
        "folded_parts": done.folded_parts,
        "merged_chunks": done.merged_chunks,
        "written_chunks": done.written_chunks,
        "dropped_partitions": done.dropped_partitions,
        "deleted_rows": done.deleted_rows,
        "postponed_steps": done.postponed,
    }
    assert len(samples) == len(fields(MaintenanceCounts))
    assert done.sealed_rows == 2 * (180 + 36 + 1)
    assert 0 < done.sealed_chunks < done.sealed_rows
    assert 0 < done.written_chunks < done.merged_chunks
    assert done.deleted_rows == 1
    assert done.sealed_partitions > 0
    assert done.dropped_partitions > 0
