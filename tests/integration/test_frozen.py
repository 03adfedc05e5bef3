"""Sealing of frozen partitions: who comes meanwhile, who is in the way, who was there before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import asyncpg
import numpy as np
import pytest

from gputel.catalog import SET_BY_CADENCE, Cadence
from gputel.clock import SYSTEM_CLOCK, ManualClock
from gputel.errors import DatabaseUnavailable
from gputel.store import Store, chunks, frozen, hot, late, schema, seal
from gputel.store.frozen import FrozenWalk
from gputel.store.maintain import Maintainer
from gputel.store.partitions import Partitions
from support.tiers import HOUR_NS, SETTINGS, START_NS, S, commit, count, hours, points

if TYPE_CHECKING:
    from support.database import Producer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("plain")]

ROWS = 6
#: A partition of SETTINGS has ten minutes; these times are in the first one.
SPAN_NS = 600 * S
FIRST_NS = START_NS // SPAN_NS * SPAN_NS
FAST, MEDIUM = SET_BY_CADENCE[Cadence.FAST], SET_BY_CADENCE[Cadence.MEDIUM]
HOT = schema.hot_table(FAST)


@pytest.fixture
def producer(make_producer: Callable[..., Producer]) -> Producer:
    return make_producer(gpus=3)


async def one_partition(store: Store, producer: Producer) -> str:
    """Rows of one partition of the fast set; its name."""
    await commit(store, [producer.publish([FIRST_NS + i * 20 * S]) for i in range(ROWS)])
    async with store.session() as session:
        name: str = await session.fetchval(
            "SELECT name FROM store_partition WHERE parent = $1", HOT
        )
    return name


def maintainer(store: Store) -> Maintainer:
    return Maintainer(store, SETTINGS, ManualClock(SYSTEM_CLOCK.time_ns() + HOUR_NS))


async def open_walk(store: Store, name: str) -> FrozenWalk | None:
    needs = {parent: [np.array([FIRST_NS])] for parent in ("sample_chunk", "rollup_1m")}
    await Partitions(store, SETTINGS).ensure(needs)
    return await FrozenWalk.open(store, FAST, name)


async def opened(store: Store, name: str) -> FrozenWalk:
    walk = await open_walk(store, name)
    assert walk is not None
    return walk


async def test_late_rows_are_chunks_while_a_partition_is_sealed(
    store: Store, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await one_partition(store, producer)
    read_gpus = hot.read_gpus
    came = False

    async def meanwhile(*arguments: Any) -> Any:
        nonlocal came
        found = await read_gpus(*arguments)
        if not came:
            came = True
            both = [FIRST_NS + 7 * S, FIRST_NS + SPAN_NS + 7 * S]  # only the first of them is late
            await commit(store, [producer.publish(both), producer.publish([FIRST_NS + 9 * S])])
            assert await count(store, f"{name} WHERE time = to_timestamp({FIRST_NS // S + 7})") == 0
            # A chunk a GPU and frame; of what is being sealed none can be seen yet.
            assert await count(store, "sample_chunk") == 6
            await points(store, producer)
            await hours(store, producer)
        return found

    monkeypatch.setattr(hot, "read_gpus", meanwhile)
    one = maintainer(store)
    await one.round()
    assert came
    assert one.counts.sealed_rows == 3 * ROWS
    await points(store, producer)
    await hours(store, producer)
    await one.round()
    assert await count(store, HOT) == 0
    await points(store, producer)
    await hours(store, producer)


async def test_nobody_sees_a_row_twice_or_not_at_all(
    store: Store, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one_partition(store, producer)
    write, end = chunks.write, FrozenWalk.end
    looks = 0

    async def look() -> None:
        nonlocal looks
        looks += 1
        await points(store, producer)
        await hours(store, producer)

    async def written(*arguments: Any, **options: Any) -> Any:
        found = await write(*arguments, **options)
        await look()
        return found

    async def ended(walk: FrozenWalk, session: Any) -> None:
        await look()
        await end(walk, session)
        await look()

    monkeypatch.setattr(chunks, "write", written)
    monkeypatch.setattr(FrozenWalk, "end", ended)
    await maintainer(store).round()
    assert looks >= 3
    assert await count(store, HOT) == 0


async def test_rows_are_deleted_where_readers_would_wait_for_the_drop(
    store: Store, producer: Producer
) -> None:
    name = await one_partition(store, producer)
    one = maintainer(store)
    async with store.session() as session:
        async with session.transaction():
            await session.execute(f"LOCK TABLE ONLY {HOT} IN ACCESS SHARE MODE")
            await one.round()
            assert one.counts.sealed_rows == 3 * ROWS
            assert one.counts.sealed_partitions == 0
            assert one.counts.postponed == 1
            await points(store, producer)
        assert await count(store, name) == 0
    await hours(store, producer)
    await one.round()
    assert one.counts.sealed_partitions == 1
    assert await count(store, f"store_partition WHERE name = '{name}'") == 0
    await points(store, producer)


async def test_a_partition_in_use_is_sealed_by_steps_that_delete(
    store: Store, producer: Producer
) -> None:
    name = await one_partition(store, producer)
    one = maintainer(store)
    async with store.session() as session, session.transaction():
        await session.execute(f"LOCK TABLE {name} IN ROW EXCLUSIVE MODE")  # as an insert has it
        assert await open_walk(store, name) is None
        await one.round()
        assert one.counts.sealed_rows == 3 * ROWS
        assert one.counts.postponed == 1
        await points(store, producer)
    await one.round()
    assert one.counts.sealed_partitions == 1
    await points(store, producer)
    await hours(store, producer)


async def test_a_server_without_another_session_seals_in_steps(
    store: Store, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one_partition(store, producer)

    async def full(_: Store) -> Any:
        raise DatabaseUnavailable("sorry, too many clients already")

    monkeypatch.setattr(Store, "dedicated", full)
    one = maintainer(store)
    await one.round()
    assert one.counts.sealed_rows == 3 * ROWS
    assert one.counts.sealed_partitions == 1
    await points(store, producer)


async def test_a_large_partition_is_sealed_by_steps_that_delete(
    store: Store, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "ROWS_MAX", 3 * ROWS - 1)
    name = await one_partition(store, producer)
    assert await open_walk(store, name) is None
    monkeypatch.setattr(frozen, "ROWS_MAX", 100 * ROWS)
    walk = await opened(store, name)
    await walk.close()


async def test_a_gpu_of_many_rows_is_read_piece_by_piece(
    store: Store, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal, "ROWS_A_STEP", 4)
    await one_partition(store, producer)
    one = maintainer(store)
    await one.round()
    assert one.counts.sealed_partitions == 1
    assert one.counts.sealed_rows == 3 * ROWS
    assert one.counts.sealed_chunks == 6
    await points(store, producer)
    await hours(store, producer)


async def test_who_has_the_line_is_left_alone(store: Store, producer: Producer) -> None:
    name = await one_partition(store, producer)
    walk = await opened(store, name)
    one = maintainer(store)
    await one.round()
    assert one.counts.sealed_rows == 0
    assert one.counts.postponed == 1
    assert await count(store, name) == 3 * ROWS
    await walk.close()
    await one.round()
    assert one.counts.sealed_partitions == 1
    await points(store, producer)


async def test_a_partition_that_was_made_anew_is_not_taken_for_the_frozen_one(
    store: Store, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await one_partition(store, producer)
    freeze = FrozenWalk._freeze

    async def overtaken(walk: FrozenWalk) -> bool:
        done = await freeze(walk)
        monkeypatch.setattr(FrozenWalk, "_freeze", freeze)
        one = maintainer(store)
        await one.round()
        assert one.counts.sealed_partitions == 1
        await commit(store, [producer.publish([FIRST_NS + 7 * S])])
        return done

    monkeypatch.setattr(FrozenWalk, "_freeze", overtaken)
    assert await open_walk(store, name) is None
    assert await count(store, name) == 3
    await points(store, producer)


async def test_who_gives_up_thaws_and_goes_on_in_steps(
    store: Store, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal, "ROWS_A_STEP", 2 * ROWS)  # one GPU's
    name = await one_partition(store, producer)
    async with store.session() as session:
        await session.execute(f"UPDATE {name} SET cells = '' WHERE gpu_id = 2 AND sequence = 1")
    one = maintainer(store)
    await one.round()
    assert one.counts.sealed_rows == 2 * ROWS
    assert one.counts.postponed == 1
    assert await count(store, f"{name} WHERE gpu_id = 2") == await count(store, name) == ROWS
    assert await count(store, "sample_chunk") == 2
    async with store.session() as session:
        assert not await late.frozen_ranges(session)
    await commit(store, [producer.publish([FIRST_NS + 7 * S])])
    assert await count(store, name) == ROWS + 3


async def test_a_row_that_the_index_does_not_know_is_not_dropped(
    store: Store,
    producer: Producer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = await one_partition(store, producer)
    read_gpus = hot.read_gpus

    async def passing_over(*arguments: Any) -> Any:
        monkeypatch.setattr(hot, "read_gpus", read_gpus)
        gpu_id, rows = await read_gpus(*arguments)
        return gpu_id[:-1], rows.take(slice(len(rows) - 1))

    monkeypatch.setattr(hot, "read_gpus", passing_over)
    one = maintainer(store)
    await one.round()
    (said,) = (r.getMessage() for r in caplog.records if r.levelname == "ERROR")
    assert said == f"{name}: 17 of 18 rows were found by the index: REINDEX TABLE {name}"
    assert one.counts.sealed_rows == 3 * ROWS
    await points(store, producer)
    await hours(store, producer)


async def test_who_dies_leaves_a_frozen_partition_to_the_next(
    store: Store, producer: Producer
) -> None:
    name = await one_partition(store, producer)
    walk = await opened(store, name)
    async with store.session() as session:
        assert await walk._step(session, [1, 2])
    walk._session.terminate()  # as the server sees a kill
    await commit(store, [producer.publish([FIRST_NS + 7 * S])])
    await points(store, producer)
    with pytest.raises(asyncpg.SerializationError, match="is being sealed"):
        async with store.session() as session:
            await session.execute(f"INSERT INTO {HOT} SELECT * FROM {name} LIMIT 1")
    one = maintainer(store)
    async with asyncio.timeout(20):
        while not one.counts.sealed_partitions:  # the server may hold the dead one's line a moment
            await one.round()
    assert one.counts.sealed_rows == 3 * ROWS
    await points(store, producer)
    await hours(store, producer)
