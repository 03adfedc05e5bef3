"""Messages into PostgreSQL and back through queries: every value once, whatever happens."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import numpy as np
import pytest

from gputel import limits
from gputel.catalog import BY_NAME, METRICS, SET_BY_CADENCE, Cadence, Metric
from gputel.clock import SYSTEM_CLOCK
from gputel.errors import DatabaseUnavailable, NotFound, QueryInvalid
from gputel.inventory import Event, EventKind
from gputel.store import Store
from gputel.store import ingest as ingest_module
from gputel.store.claim import Claim, ClaimLost, Claims
from gputel.store.frames import Message
from gputel.store.ingest import Committed, Ingest
from gputel.store.query import GpuRow, Query
from gputel.store.settings import StoreSettings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from support.database import Producer

START_NS = 1_760_000_000_000_000_000
MS = 1_000_000
FAST = SET_BY_CADENCE[Cadence.FAST].metrics
HOUR_NS = 3600 * 1000 * MS


@pytest.fixture
async def claims(store: Store) -> AsyncGenerator[Claims]:
    held = Claims(store, SYSTEM_CLOCK)
    yield held
    await held.close()


async def take(claims: Claims, partition: int = 0) -> Claim:
    claim = await claims.acquire("telemetry", partition)
    assert claim is not None
    return claim


@pytest.fixture
async def claim(claims: Claims) -> Claim:
    return await take(claims)


@pytest.fixture
def ingest(store: Store) -> Ingest:
    return Ingest(store, StoreSettings())


def times(first: int, n: int, step_ms: int = 100) -> list[int]:
    return [START_NS + (first + i) * step_ms * MS for i in range(n)]


async def read_all(
    query: Query, row: GpuRow, start_ns: int, end_ns: int, metrics: list[Metric], limit: int
) -> dict[Metric, list[tuple[int, float]]]:
    found: dict[Metric, list[tuple[int, float]]] = {metric: [] for metric in metrics}
    cursor, pages = None, 0
    while True:
        page = await query.telemetry(
            row, start_ns=start_ns, end_ns=end_ns, metrics=metrics, limit=limit, cursor=cursor
        )
        points = sum(len(series.time_ns) for series in page.series)
        assert points <= limit
        assert points == limit or page.next_cursor is None
        for series in page.series:
            assert np.all(np.diff(series.time_ns) >= 0)
            found[series.metric] += zip(
                series.time_ns.tolist(), series.values.tolist(), strict=True
            )
        cursor, pages = page.next_cursor, pages + 1
        assert pages < 10_000
        if cursor is None:
            return found


async def check(store: Store, producer: Producer, *, limit: int = 1_000_000) -> None:
    """Everything published is found, once, with its value."""
    query = Query(store)
    for index in range(producer.gpus):
        row = await query.gpu(producer.gpu(index).uuid)
        found = await read_all(query, row, 0, START_NS * 2, list(METRICS), limit)
        for metric in METRICS:
            expected = producer.expected(row.gpu.uuid, metric, 0, START_NS * 2)
            assert sorted(found[metric]) == expected, metric.name


async def test_hot_rows(store: Store, ingest: Ingest, claim: Claim, producer: Producer) -> None:
    messages = [producer.publish(times(i, 1)) for i in range(10)]
    messages.append(producer.publish(times(0, 2), cadence=Cadence.MEDIUM))
    messages.append(producer.publish(times(0, 1), cadence=Cadence.SLOW))
    done = await ingest.commit(claim, messages)
    assert (done.frames, done.rows, done.chunks) == (12, 2 * 13, 0)
    assert done.sealed_at_ns[0] == START_NS
    assert claim.next_offset == 12
    await check(store, producer)


async def test_chunks_stay_as_they_are(
    store: Store, ingest: Ingest, claim: Claim, producer: Producer
) -> None:
    message = producer.publish(times(0, 40))
    done = await ingest.commit(claim, [message])
    assert (done.rows, done.chunks) == (80, 2)
    async with store.session() as session:
        payloads = [row[0] for row in await session.fetch("SELECT payload FROM sample_chunk")]
        total = await session.fetchval("SELECT sum(each) FROM rollup_1m, unnest(n) AS each")
        view = await session.fetchrow(
            "SELECT sum(n) AS n, max(max) AS max FROM gpu_minute WHERE metric = 'power_watts'"
        )
    assert view is not None
    assert all(payload in message.payload for payload in payloads)
    assert total == sum(len(points) for points in producer.points.values())
    power = [v for (_, m), p in producer.points.items() if m.name == "power_watts" for _, v in p]
    assert (view["n"], view["max"]) == (len(power), max(power))
    await check(store, producer)


async def test_hot_rows_and_chunks_together_by_pages(
    store: Store, ingest: Ingest, claim: Claim, producer: Producer
) -> None:
    await ingest.commit(claim, [producer.publish(times(0, 50))])
    # Others in between, at equal times, and in several sets.
    await ingest.commit(claim, [producer.publish(times(10, 20, 100))])
    await ingest.commit(claim, [producer.publish(times(25, 40, 50))])
    await ingest.commit(claim, [producer.publish(times(0, 5, 1000), cadence=Cadence.MEDIUM)])
    for limit in (1_000_000, 997, 61):
        await check(store, producer, limit=limit)


async def test_one_point_a_page(
    store: Store, ingest: Ingest, claim: Claim, producer: Producer
) -> None:
    await ingest.commit(claim, [producer.publish(times(0, 3)), producer.publish(times(0, 34))])
    query = Query(store)
    row = await query.gpu("1")
    chosen = [BY_NAME["power_watts"], BY_NAME["energy_millijoules"]]
    found = await read_all(query, row, 0, START_NS * 2, chosen, 1)
    for metric in chosen:
        assert sorted(found[metric]) == producer.expected(row.gpu.uuid, metric, 0, START_NS * 2)


async def test_the_range_is_half_open(
    store: Store, ingest: Ingest, claim: Claim, producer: Producer
) -> None:
    await ingest.commit(claim, [producer.publish(times(0, 10)), producer.publish(times(10, 40))])
    query = Query(store)
    row = (await query.gpus(uuid=producer.gpu(0).uuid))[0]
    for low, high in ((0, 10), (3, 12), (12, 13), (9, 9)):
        start_ns, end_ns = START_NS + low * 100 * MS, START_NS + high * 100 * MS
        found = await read_all(query, row, start_ns, end_ns, list(FAST), 1000)
        for metric in FAST:
            assert found[metric] == producer.expected(row.gpu.uuid, metric, start_ns, end_ns)


async def test_repeats_are_dropped(
    store: Store, ingest: Ingest, claim: Claim, claims: Claims, producer: Producer
) -> None:
    messages = [producer.publish(times(i, 1)) for i in range(4)]
    await ingest.commit(claim, messages)
    again = [m._replace(offset=m.offset + 4) for m in messages]
    done = await ingest.commit(claim, again)
    assert (done.frames, done.repeated_frames, done.rows) == (0, 4, 0)
    # Another sink, which has to read the marks.
    claim = await take(claims)
    assert claim.next_offset == 8
    done = await ingest.commit(claim, [m._replace(offset=m.offset + 8) for m in messages])
    assert (done.frames, done.repeated_frames) == (0, 4)
    await check(store, producer)


async def test_the_same_rows_of_another_producer_are_stored_once(
    store: Store, ingest: Ingest, claim: Claim, producer: Producer
) -> None:
    messages = [producer.publish(times(0, 3)), producer.publish(times(3, 40))]
    await ingest.commit(claim, messages)
    other = [m._replace(offset=m.offset + 2, producer="another") for m in messages]
    extra = producer.publish(times(50, 3))
    done = await ingest.commit(claim, [*other, extra._replace(offset=4)])
    assert done.repeated_rows == 2 * 43
    assert (done.rows, done.dead_letters) == (6, 0)
    await check(store, producer)


async def test_poison_goes_to_dead_letter_and_the_rest_is_stored(
    store: Store, ingest: Ingest, claim: Claim, producer: Producer
) -> None:
    first = producer.publish(times(0, 2))
    garbage = Message(1, "collector:x", 1, 1, b"\xff\xff\xff")
    producer.offset = 2
    damaged = producer.publish(times(50, 2))
    producer.points.clear()
    damaged = damaged._replace(producer="collector:y", payload=_damage(damaged.payload))
    producer.sequence, producer.epoch, producer.next_row = 0, 2, {}
    early = producer.message(producer.frame([0]))._replace(producer="collector:z")
    late = producer.message(producer.frame([START_NS * 4]))._replace(producer="collector:w")
    producer.points.clear()
    last = producer.publish(times(100, 2))
    done = await ingest.commit(claim, [first, garbage, damaged, early, late, last])
    assert (done.frames, done.dead_letters) == (2, 4)
    async with store.session() as session:
        rows = await session.fetch('SELECT "offset", reason, payload FROM dead_letter ORDER BY 1')
    assert [row[0] for row in rows] == [1, 2, 3, 4]
    assert "ChunkCorrupt" in rows[1][1]
    assert "before 2000" in rows[2][1]
    assert "ahead" in rows[3][1]
    assert rows[0][2] == garbage.payload
    row = await Query(store).gpu(producer.gpu(0).uuid)
    found = await read_all(Query(store), row, times(100, 1)[0], START_NS * 2, list(FAST), 1000)
    assert any(found.values())


async def test_what_is_decoded_at_a_time_is_bounded(
    store: Store, claim: Claim, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "TRANSACTION_CELLS", 3 * len(FAST) * producer.gpus)
    ingest = Ingest(store, StoreSettings())
    done = await ingest.commit(claim, [producer.publish(times(i, 1)) for i in range(8)])
    assert (done.transactions, done.frames) == (3, 8)
    # An error in a later transaction does not hide the earlier ones.
    await claim_moved(store, claim, after=3)
    messages = [producer.publish(times(i, 1)) for i in range(8, 14)]
    done = Committed()
    with pytest.raises(ClaimLost):
        await ingest.commit(claim, messages, done)
    assert (done.transactions, done.frames, claim.next_offset) == (1, 3, 11)


async def claim_moved(store: Store, claim: Claim, after: int) -> None:
    """Take the claim away as soon as the offset has moved `after` further."""
    async with store.session() as session:
        await session.execute(
            "CREATE FUNCTION move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "NEW.owner_epoch := NEW.owner_epoch + 1; RETURN NEW; END $$;"
            "CREATE TRIGGER move BEFORE UPDATE ON sink_offset FOR EACH ROW "
            f"WHEN (NEW.next_offset = {claim.next_offset + after}) EXECUTE FUNCTION move()"
        )


async def test_a_frame_that_swells_is_poison(
    store: Store, ingest: Ingest, claim: Claim, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FRAME_CELLS_MAX", 2 * 50 * len(FAST) - 1)
    done = await ingest.commit(claim, [producer.publish(times(0, 50))])
    assert (done.frames, done.dead_letters) == (0, 1)
    async with store.session() as session:
        reason = await session.fetchval("SELECT reason FROM dead_letter")
    assert "when decoded" in reason


async def test_an_internal_error_of_the_server_is_no_fault_of_the_data(
    store: Store, ingest: Ingest, claim: Claim, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = producer.publish(times(0, 1))

    async def fail(*_: object, **__: object) -> None:
        raise asyncpg.DataCorruptedError("invalid page in block 7 of relation base/1/2")

    with monkeypatch.context() as patched:
        patched.setattr(asyncpg.Connection, "copy_to_table", fail)
        with pytest.raises(DatabaseUnavailable, match=r"invalid page.*server's log"):
            await ingest.commit(claim, [message])
    await ingest.commit(claim, [message])
    await check(store, producer)


def _damage(payload: bytes) -> bytes:
    # The middle of a frame of two chunks is inside one of them.
    at = len(payload) // 3
    return payload[:at] + bytes([payload[at] ^ 0x55]) + payload[at + 1 :]


async def test_a_second_owner_fences_the_first(
    store: Store, ingest: Ingest, claims: Claims, producer: Producer
) -> None:
    old = await take(claims)
    await ingest.commit(old, [producer.publish(times(0, 1))])
    new = await take(claims)
    message = producer.publish(times(1, 1))
    with pytest.raises(ClaimLost):
        await ingest.commit(old, [message])
    await ingest.commit(new, [message])
    await check(store, producer)


async def test_a_claim_waits_for_the_one_who_has_it(store: Store) -> None:
    first, second = Claims(store, SYSTEM_CLOCK), Claims(store, SYSTEM_CLOCK)
    try:
        await first.acquire("telemetry", 3)
        await second.acquire("telemetry", 4)
        waiting = asyncio.create_task(second.acquire("telemetry", 3))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.4)
        await first.close()
        claim = await asyncio.wait_for(waiting, 5)
        assert claim is not None
        assert claim.owner_epoch == 2
    finally:
        await first.close()
        await second.close()


async def test_many_partitions_are_made_by_several_at_once(
    store: Store, claims: Claims, make_producer: Callable[..., Producer]
) -> None:
    producers = [make_producer(node=f"node-{i}", gpus=1, seed=i) for i in range(4)]
    hours = [START_NS + hour * HOUR_NS for hour in range(40)]

    async def one(partition: int) -> None:
        claim = await take(claims, partition)
        worker = Ingest(store, StoreSettings())  # as in another process
        await worker.commit(claim, [producers[partition].publish([t]) for t in hours])

    await asyncio.gather(*(one(i) for i in range(4)))
    async with store.session() as session:
        made = await session.fetchval(
            "SELECT count(*) FROM store_partition WHERE parent = 'sample_hot_fast'"
        )
        attached = await session.fetchval(
            "SELECT count(*) FROM pg_inherits WHERE inhparent = 'sample_hot_fast'::regclass"
        )
    assert made == attached == 40
    for producer in producers:
        await check(store, producer)


async def test_a_partition_that_vanished_is_made_again(
    store: Store, ingest: Ingest, claim: Claim, producer: Producer
) -> None:
    await ingest.commit(claim, [producer.publish(times(0, 1))])
    async with store.session() as session:
        name = await session.fetchval("SELECT name FROM store_partition")
        await session.execute(f"DROP TABLE {name}; DELETE FROM store_partition")
    producer.points.clear()
    await ingest.commit(claim, [producer.publish(times(1, 1))])
    await check(store, producer)


async def test_another_span_fits_between_what_is_there(
    store: Store, claim: Claim, producer: Producer
) -> None:
    coarse = Ingest(store, StoreSettings(hot_partition_minutes=7))
    await coarse.commit(claim, [producer.publish([START_NS])])
    fine = Ingest(store, StoreSettings(hot_partition_minutes=60))
    await fine.commit(
        claim, [producer.publish([START_NS + m * 60_000 * MS for m in range(-60, 60, 3)])]
    )
    await check(store, producer)


async def test_inventory_and_last_seen(
    store: Store, ingest: Ingest, claim: Claim, producer: Producer
) -> None:
    query = Query(store)
    await ingest.commit(claim, [producer.publish(times(0, 1), inventory=False)])
    row = await query.gpu(producer.gpu(0).uuid)
    assert (row.gpu.index, row.gpu.model, row.first_seen_ns) == (-1, "", START_NS)
    await ingest.commit(claim, [producer.publish(times(1, 1))])
    row = await query.gpu(str(row.gpu_id))
    assert row.gpu == producer.gpu(0)
    await ingest.commit(claim, [producer.publish(times(200, 1), inventory=False)])
    row = await query.gpu(str(row.gpu_id))
    assert row.last_seen_ns == times(200, 1)[0]
    assert row.gpu == producer.gpu(0)
    assert [(n.node, n.gpus) for n in await query.nodes()] == [("node-a", 2)]
    assert len(await query.gpus(node="node-a", model=producer.gpu(0).model)) == 2
    assert await query.gpus(node="elsewhere") == []
    assert len(await query.gpus(limit=1)) == 1
    with pytest.raises(NotFound):
        await query.gpu("GPU-none")
    with pytest.raises(NotFound):
        await query.gpu("99999999999999999999")


async def test_events(store: Store, ingest: Ingest, claim: Claim, producer: Producer) -> None:
    event = Event(START_NS, EventKind.XID, producer.gpu(0).uuid, 79, "fallen off the bus")
    await ingest.commit(claim, [producer.publish(times(0, 1), events=[event])])
    async with store.session() as session:
        row = await session.fetchrow("SELECT node, gpu_uuid, kind, code, message FROM event")
    assert row is not None
    assert tuple(row) == ("node-a", event.gpu_uuid, "xid", 79, "fallen off the bus")


async def test_latest_from_rows_and_from_chunks(
    store: Store, ingest: Ingest, claim: Claim, make_producer: Callable[..., Producer]
) -> None:
    rows, chunks = make_producer(node="a", gpus=1), make_producer(node="b", gpus=1)
    await ingest.commit(claim, [rows.publish([t]) for t in times(0, 3)])
    chunks.offset = 3
    await ingest.commit(claim, [chunks.publish(times(0, 64))])
    latest = {(x.gpu_id, x.metric): x for x in await Query(store).latest(FAST)}
    for metric in FAST:
        expected = chunks.expected(chunks.gpu(0).uuid, metric, 0, START_NS * 2)[-1]
        found = latest[2, metric]
        assert (found.time_ns, found.value) == expected
        # A row need not hold every metric: the newest value may be of an earlier one.
        points = rows.expected(rows.gpu(0).uuid, metric, 0, START_NS * 2)
        newest = latest.get((1, metric))
        assert (newest and (newest.time_ns, newest.value)) == (points[-1] if points else None)


async def test_cursors_of_others_are_refused(
    store: Store, ingest: Ingest, claim: Claim, producer: Producer
) -> None:
    await ingest.commit(claim, [producer.publish(times(0, 40))])
    query = Query(store)
    one, two = await query.gpus()

    async def ask(row: GpuRow, cursor: str | None) -> str | None:
        page = await query.telemetry(
            row, start_ns=0, end_ns=START_NS * 2, metrics=FAST, limit=5, cursor=cursor
        )
        return page.next_cursor

    cursor = await ask(one, None)
    for bad in ("", "x", "%%%", "AAAA", cursor):
        if bad:
            with pytest.raises(QueryInvalid, match="cursor"):
                await ask(two, bad)
