"""Samples by SQL: gpu_samples and its kin say what the API says, whatever tier a sample is in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import asyncpg
import numpy as np
import pytest

from gputel import wire
from gputel.batch import DTYPES, Batch
from gputel.catalog import BY_NAME, METRIC_SETS, METRICS, SET_BY_CADENCE, Cadence, Metric
from gputel.clock import SYSTEM_CLOCK
from gputel.inventory import Gpu
from gputel.store import Store, schema
from gputel.store.claim import Claim, Claims
from gputel.store.frames import Message
from gputel.store.ingest import Ingest
from gputel.store.query import GpuRow, Query
from gputel.store.settings import StoreSettings
from gputel.store.times import to_datetime, to_ns
from support.database import START_NS
from support.tiers import seal

if TYPE_CHECKING:
    from support.database import Producer

S = 10**9
END_NS = START_NS + 86_400 * S
DAY = to_datetime(START_NS), to_datetime(END_NS)
FAST, SLOW = SET_BY_CADENCE[Cadence.FAST], SET_BY_CADENCE[Cadence.SLOW]
POWER = FAST.metrics[2]


@pytest.fixture
async def claim(store: Store) -> AsyncGenerator[Claim]:
    held = Claims(store, SYSTEM_CLOCK)
    taken = await held.acquire("telemetry", 0)
    assert taken is not None
    yield taken
    await held.close()


Points = list[tuple[int, float]]


async def all_by_api(
    store: Store, row: GpuRow, metrics: Sequence[Metric], start_ns: int, end_ns: int
) -> dict[Metric, Points]:
    page = await Query(store).telemetry(
        row, start_ns=start_ns, end_ns=end_ns, metrics=metrics, limit=10**7
    )
    return {
        series.metric: list(
            zip((series.time_ns // 1000).tolist(), series.values.tolist(), strict=True)
        )
        for series in page.series
    }


async def by_api(store: Store, row: GpuRow, metric: Metric, start_ns: int, end_ns: int) -> Points:
    return (await all_by_api(store, row, [metric], start_ns, end_ns))[metric]


async def by_sql(store: Store, gpu: str, metric: Metric, start_ns: int, end_ns: int) -> Points:
    async with store.session() as session:
        found = await session.fetch(
            "SELECT * FROM gpu_samples($1, $2, $3, $4)",
            gpu,
            metric.name,
            to_datetime(start_ns),
            to_datetime(end_ns),
        )
    return [(to_ns(time) // 1000, value) for time, value in found]


async def same(store: Store, start_ns: int = START_NS, end_ns: int = END_NS) -> int:
    """All that the API says of every GPU, SQL says in that order; returns how much it is."""
    total = 0
    for row in await Query(store).gpus():
        expected = await all_by_api(store, row, METRICS, start_ns, end_ns)
        found: dict[Metric, Points] = {metric: [] for metric in METRICS}
        async with store.session() as session:
            for time, name, value in await session.fetch(
                "SELECT * FROM gpu_all_samples($1, $2, $3)",
                str(row.gpu_id),
                to_datetime(start_ns),
                to_datetime(end_ns),
            ):
                found[BY_NAME[name]].append((to_ns(time) // 1000, value))
        assert found == expected
        total += sum(len(points) for points in expected.values())
        for metric in (POWER, SLOW.metrics[0]):
            assert await by_sql(store, row.gpu.uuid, metric, start_ns, end_ns) == expected[metric]
    return total


async def test_rows_and_chunks_of_several_epochs_and_late_ones(
    store: Store, claim: Claim, producer: Producer
) -> None:
    ingest = Ingest(store, StoreSettings())
    await ingest.commit(claim, [producer.publish([START_NS + i * 60 * S]) for i in range(90)])
    assert await same(store) > 1000
    await seal(store)
    # Direct chunks, the last of which reaches into the next hour; and a producer that begins anew.
    for start in (5, 65, 3_580):
        times = [START_NS + (start + i) * S + 7 for i in range(40)]
        await ingest.commit(claim, [producer.publish(times)])
    producer.epoch += 1
    producer.sequence = 0
    producer.next_row.clear()
    late = [START_NS + i * 60 * S for i in range(30, 60)]
    await ingest.commit(claim, [producer.publish([time_ns]) for time_ns in late])
    await ingest.commit(claim, [producer.publish(late[:5], cadence=Cadence.SLOW)])
    whole = await same(store)
    await seal(store)
    assert await same(store) == whole
    await ingest.commit(claim, [producer.publish([START_NS + 61 * S])])
    assert await same(store) > whole
    # Ranges whose ends are samples, or between them, or nowhere.
    us = 10**6
    for start, end in (
        (5 * us, 65 * us),
        (5 * us + 1, 3_619 * us),
        (0, 1),
        (3_600 * us, 7_200 * us),
        (90_000 * us, 99_000 * us),
    ):
        await same(store, START_NS + start * 1000, START_NS + end * 1000)


async def test_values_that_a_double_can_not_hold(store: Store, claim: Claim) -> None:
    """And NaN, infinities, -0: of a hot row and of a chunk alike."""
    energy = FAST.metrics[4]
    integers = [2**53 + 1, 2**63 - 1, -(2**63), 0]
    floats = [float("nan"), float("inf"), float("-inf"), -0.0, 5e-324, 0.1]
    n = 40
    columns, masks = [], []
    for metric, storage in zip(FAST.metrics, FAST.storages, strict=True):
        known: list[Any] = integers if storage in "qQ" else floats
        values = [known[i % len(known)] for i in range(n)]
        columns.append(np.array(values, DTYPES[storage]))
        masks.append(np.packbits(np.ones(n, bool), bitorder="little"))
        assert metric.storage.value == storage
    times = START_NS + np.arange(n, dtype=np.int64) * S
    batch = Batch(FAST, times, np.arange(n, dtype=np.int64), tuple(columns), np.array(masks))
    answers = []
    for uuid, pieces in (("GPU-rows", 10), ("GPU-chunk", 40)):
        for first in range(0, n, pieces):
            part = slice(first, first + pieces)
            valid = np.array([np.packbits(np.ones(pieces, bool), bitorder="little")] * len(columns))
            piece = Batch(
                FAST, times[part], batch.sequence[part], tuple(c[part] for c in columns), valid
            )
            chunk = wire.GpuChunks(uuid, (wire.encode_batch(piece),))
            frame = wire.Frame(uuid, 1, first + 1, "n", int(times[-1]), (chunk,), (), ())
            await Ingest(store, StoreSettings()).commit(
                claim, [Message(claim.next_offset, uuid, 1, first + 1, wire.encode_frame(frame))]
            )
        async with store.session() as session:
            answers.append(
                [
                    [
                        (r[0], str(r[1]))
                        for r in await session.fetch(
                            f"SELECT * FROM {function}($1, $2, $3, $4)", uuid, metric.name, *DAY
                        )
                    ]
                    for function in ("gpu_samples", "gpu_samples_exact")
                    for metric in (energy, POWER)
                ]
            )
    assert answers[0] == answers[1]
    rounded, power, exact, power_exact = answers[1]
    assert [int(text) for _, text in exact[:4]] == integers
    assert [float(text) for _, text in rounded[:4]] == [float(i) for i in integers]
    assert [text for _, text in power[:6]] == ["nan", "inf", "-inf", "-0.0", "5e-324", "0.1"]
    assert [text for _, text in power_exact[4:6]] == ["5E-324", "0.1"]
    assert [text for _, text in power_exact[:3]] == ["NaN", "Infinity", "-Infinity"]


async def test_how_a_gpu_is_named(
    store: Store, claim: Claim, make_producer: Callable[..., Producer]
) -> None:
    """As in the API: by number or UUID, of which the one seen last counts; and by node/index."""
    ingest = Ingest(store, StoreSettings())
    first = make_producer(node="rack/a", gpus=2)
    await ingest.commit(claim, [first.publish([START_NS + 5 * S])])
    # The same card in another node, before and after.
    for node, time_ns in (("b", START_NS), ("c", START_NS + 60 * S)):
        other = make_producer(node="rack/a", gpus=1, seed=7, offset=first.offset)
        frame = moved_frame(other, node, time_ns)
        await ingest.commit(claim, [other.message(frame)])
        first.offset = other.offset
    rows = {(row.gpu.node, row.gpu.index): row for row in await Query(store).gpus()}
    uuid = first.gpu(0).uuid
    latest = await Query(store).gpu(uuid)
    assert latest.gpu.node == "c"
    for row in rows.values():
        expected = await by_api(store, row, POWER, START_NS, END_NS)
        assert await by_sql(store, str(row.gpu_id), POWER, START_NS, END_NS) == expected
        name = f"{row.gpu.node}/{row.gpu.index}"
        assert await by_sql(store, name, POWER, START_NS, END_NS) == expected
        if row.gpu_id == latest.gpu_id:
            assert await by_sql(store, uuid, POWER, START_NS, END_NS) == expected


async def test_node_and_index_name_the_gpu_and_not_its_mig_instances(
    store: Store, claim: Claim, producer: Producer
) -> None:
    ingest = Ingest(store, StoreSettings())
    times = np.arange(START_NS, START_NS + 8 * S, S)
    await ingest.commit(claim, [producer.publish(times.tolist())])
    frame = producer.frame((times + 60 * S).tolist(), inventory=False)
    # Seen later than its GPU, whose index it has.
    chunks = (wire.GpuChunks("MIG-1", frame.gpus[0].chunks),)
    instance = Gpu("MIG-1", producer.node, 0, model=f"{producer.gpu(0).model} MIG 3g.40gb")
    name = f"collector:{producer.node}"
    alone = wire.Frame(name, 1, 2, producer.node, START_NS, chunks, (instance,))
    await ingest.commit(claim, [producer.message(alone)])
    rows = {row.gpu.uuid: row for row in await Query(store).gpus()}
    assert rows["MIG-1"].last_seen_ns > rows[producer.gpu(0).uuid].last_seen_ns
    for named, uuid in ((f"{producer.node}/0", producer.gpu(0).uuid), ("MIG-1", "MIG-1")):
        expected = await by_api(store, rows[uuid], POWER, START_NS, END_NS)
        assert expected
        assert await by_sql(store, named, POWER, START_NS, END_NS) == expected
    assert [(node.node, node.gpus) for node in await Query(store).nodes()] == [(producer.node, 2)]


def moved_frame(producer: Producer, node: str, time_ns: int) -> wire.Frame:
    """A frame of the producer's first GPU, but sent by another node."""
    frame = producer.frame([time_ns], inventory=False)
    gpu = producer.gpu(0)
    moved = Gpu(uuid=gpu.uuid, node=node, index=0, model=gpu.model)
    return wire.Frame(f"collector:{node}", 1, 1, node, time_ns, frame.gpus, (moved,), frame.events)


REFUSED = [
    ("gpu_samples('GPU-?', 'power_watts', 'epoch', now())", "no GPU 'GPU-?'", "FROM gpu"),
    ("gpu_samples('99', 'power_watts', 'epoch', now())", "no GPU '99'", "FROM gpu"),
    ("gpu_samples('node-a/7', 'power_watts', 'epoch', now())", "no GPU", "node/index"),
    ("gpu_samples('', 'power_watts', 'epoch', now())", "no GPU ''", "FROM gpu"),
    ("gpu_samples('1', 'watts', 'epoch', now())", "no metric 'watts'", "FROM metric"),
    ("gpu_samples_exact('1', '', 'epoch', now())", "no metric ''", "FROM metric"),
    ("gpu_samples('1', 'power_watts', now(), 'epoch')", "is not later than start", ""),
    ("gpu_all_samples('1', now(), now())", "is not later than start", ""),
    ("gpu_all_samples('2', 'epoch', now())", "no GPU '2'", "FROM gpu"),
]
NOTHING = [
    "gpu_samples(NULL, 'power_watts', 'epoch', now())",
    "gpu_samples('1', 'power_watts', '-infinity', 'infinity')",
    "gpu_all_samples('GPU-1', '4000-01-01 BC', '9999-01-01')",
]


async def test_what_can_not_be_asked(store: Store) -> None:
    async with store.session() as session:
        await session.execute(
            "WITH seen AS (INSERT INTO gpu (uuid, node, gpu_index, first_seen) "
            "VALUES ('GPU-1', 'node-a', 0, now()) RETURNING gpu_id) "
            "INSERT INTO gpu_seen (gpu_id, last_seen) SELECT gpu_id, now() FROM seen"
        )
        for call, text, hint in REFUSED:
            with pytest.raises(asyncpg.PostgresError) as refused:
                await session.fetch(f"SELECT * FROM {call}")
            assert text in str(refused.value)
            assert hint in str(refused.value.hint)
        for nothing in NOTHING:
            assert await session.fetch(f"SELECT * FROM {nothing}") == []


async def test_a_damaged_chunk_is_named(store: Store, claim: Claim, producer: Producer) -> None:
    await Ingest(store, StoreSettings()).commit(
        claim, [producer.publish([START_NS + i * S for i in range(40)])]
    )
    async with store.session() as session:
        await session.execute(
            "UPDATE sample_chunk SET payload = set_byte(payload, 60, get_byte(payload, 60) # 1) "
            "WHERE gpu_id = 1"
        )
        with pytest.raises(asyncpg.DataCorruptedError, match=r"^chunk of GPU 1, set 1, 2025-10-09"):
            await session.fetch("SELECT * FROM gpu_samples('1', 'power_watts', $1, $2)", *DAY)
        other = await session.fetch("SELECT * FROM gpu_samples('2', 'power_watts', $1, $2)", *DAY)
        latest = await session.fetch("SELECT gpu_id, fast_time FROM gpu_latest ORDER BY gpu_id")
    assert other
    assert [tuple(row) for row in latest] == [(1, None), (2, to_datetime(START_NS + 39 * S))]


async def test_sealing_meanwhile(store: Store, claim: Claim, producer: Producer) -> None:
    """Rows become chunks while a statement is under way: they are found, and once."""
    await Ingest(store, StoreSettings()).commit(
        claim, [producer.publish([START_NS + i * S]) for i in range(50)]
    )
    row = (await Query(store).gpus())[0]
    expected = await by_api(store, row, POWER, START_NS, END_NS)

    async def ask() -> Points:
        async with store.session() as session:
            found = await session.fetch(
                "SELECT s.* FROM (SELECT pg_advisory_lock(7)::text AS nothing OFFSET 0) AS w "
                "CROSS JOIN LATERAL gpu_samples('1', 'power_watts' || w.nothing, $1, $2) AS s",
                *DAY,
            )
        return [(to_ns(time) // 1000, value) for time, value in found]

    async with store.session() as holder:
        await holder.execute("SELECT pg_advisory_lock(7)")
        asking = asyncio.create_task(ask())
        async with asyncio.timeout(20):
            while not await holder.fetchval(  # noqa: ASYNC110
                "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            ):
                await asyncio.sleep(0.01)
        await seal(store)
        assert await holder.fetchval("SELECT count(*) FROM sample_hot_fast") == 0
        await holder.execute("SELECT pg_advisory_unlock(7)")
        assert await asking == expected


async def test_a_snapshot_older_than_sealing_is_refused(
    store: Store, claim: Claim, producer: Producer
) -> None:
    await Ingest(store, StoreSettings()).commit(claim, [producer.publish([START_NS])])
    async with store.session() as old, old.transaction(isolation="repeatable_read"):
        await old.fetch("SELECT 1")
        await seal(store)
        with pytest.raises(asyncpg.SerializationError, match="sealed since"):
            async with old.transaction():
                await old.fetch("SELECT * FROM gpu_samples('1', 'power_watts', $1, $2)", *DAY)
    async with store.session() as new, new.transaction(isolation="repeatable_read"):
        await new.fetch("SELECT 1")
        found = await new.fetch("SELECT * FROM gpu_all_samples('1', $1, $2)", *DAY)
    assert len(found) == sum(len(p) for (u, _), p in producer.points.items() if u.endswith("-0"))


async def newest(store: Store, producer: Producer) -> None:
    """gpu_latest shows the newest sample of each set, and NULL for what that lacks."""
    async with store.session() as session:
        rows = await session.fetch("SELECT * FROM gpu_latest ORDER BY gpu_id")
    assert len(rows) == producer.gpus
    for row in rows:
        for metric_set in METRIC_SETS:
            points = {m: producer.points.get((row["uuid"], m), []) for m in metric_set.metrics}
            last = max((time_ns for found in points.values() for time_ns, _ in found), default=None)
            shown = row[f"{metric_set.name}_time"]
            assert shown == (None if last is None else to_datetime(last))
            for metric, found in points.items():
                expected = [value for time_ns, value in found if time_ns == last]
                value = row[metric.name]
                assert ([] if value is None else [value]) == expected


async def test_the_latest_wherever_it_is(store: Store, claim: Claim, producer: Producer) -> None:
    ingest = Ingest(store, StoreSettings())
    await newest(store, make_none(producer))
    await ingest.commit(claim, [producer.publish([START_NS + i * S]) for i in range(3)])
    await ingest.commit(claim, [producer.publish([START_NS + S], cadence=Cadence.SLOW)])
    await newest(store, producer)
    await seal(store)
    await newest(store, producer)  # of kept rows
    async with store.session() as session:
        for metric_set in METRIC_SETS:
            await session.execute(f"TRUNCATE {schema.newest_table(metric_set)}")
    await newest(store, producer)  # of sealed chunks
    await ingest.commit(claim, [producer.publish([START_NS + (9 + i) * S for i in range(40)])])
    await newest(store, producer)  # of a chunk that came as it is
    await ingest.commit(claim, [producer.publish([START_NS + 20 * S + 1000])])
    await newest(store, producer)  # a late row does not count
    await ingest.commit(claim, [producer.publish([START_NS + 4000 * S])])
    await newest(store, producer)
    await seal(store)
    await ingest.commit(claim, [producer.publish([START_NS + 3000 * S])])
    await newest(store, producer)
    await seal(store)  # what is late does not replace what is kept
    await newest(store, producer)


def make_none(producer: Producer) -> Producer:
    """One of whom nothing is known."""
    return type(producer)(gpus=0)
