"""Processes and events through PostgreSQL: each once, in pages, and dropped when they are old."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gputel.clock import SYSTEM_CLOCK, ManualClock
from gputel.errors import QueryInvalid
from gputel.inventory import Event, EventKind, ProcessKind, ProcessSample
from gputel.store.claim import Claims
from gputel.store.ingest import Ingest
from gputel.store.maintain import Maintainer
from gputel.store.query import Query
from gputel.store.settings import StoreSettings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gputel.store import Store
    from gputel.store.claim import Claim
    from gputel.store.frames import Message
    from support.database import Producer

START_NS = 1_760_000_000_000_000_000
US = 1000
S = 1_000_000_000
END_NS = START_NS + 10**15


@pytest.fixture
async def claim(store: Store) -> AsyncGenerator[Claim]:
    held = Claims(store, SYSTEM_CLOCK)
    claim = await held.acquire("telemetry", 0)
    assert claim is not None
    yield claim
    await held.close()


@pytest.fixture
def ingest(store: Store) -> Ingest:
    return Ingest(store, StoreSettings())


def samples(uuid: str, sweeps: int) -> list[ProcessSample]:
    """Three processes a sweep, one of them listed as compute and as graphics."""
    known = ProcessSample(START_NS, uuid, 4711, ProcessKind.COMPUTE, 2**33, 97, 40, 0, 1, "python",
                          "/kubepods/x", "c0ffee")  # fmt: skip
    return [
        replace(sample, time_ns=START_NS + i * 30 * S)
        for i in range(sweeps)
        for sample in (
            known,
            replace(known, kind=ProcessKind.GRAPHICS, memory_used_bytes=0),
            ProcessSample(START_NS, uuid, 99, ProcessKind.MPS),
        )
    ]


def process_message(producer: Producer, ran: list[ProcessSample]) -> Message:
    """A frame that holds processes and nothing else, as the collector sends them."""
    frame = producer.frame([START_NS], inventory=False)
    return producer.message(replace(frame, gpus=(), processes=tuple(ran)))


async def all_pages(query: Query, gpu: str, limit: int) -> list[ProcessSample]:
    row = await query.gpu(gpu)
    found: list[ProcessSample] = []
    cursor = None
    for _ in range(1000):
        page = await query.processes(
            row, start_ns=START_NS, end_ns=END_NS, limit=limit, cursor=cursor
        )
        assert 0 < len(page.samples) <= limit
        found += page.samples
        cursor = page.next_cursor
        if cursor is None:
            return found
    raise AssertionError("the pages never end")


@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
async def test_processes_come_back_by_time_pid_and_kind(
    store: Store, claim: Claim, ingest: Ingest, producer: Producer, limit: int
) -> None:
    uuid, other = producer.gpu(0).uuid, producer.gpu(1).uuid
    ran = samples(uuid, sweeps=5)
    before = producer.publish([START_NS])
    message = process_message(producer, ran + samples(other, sweeps=1))
    done = await ingest.commit(claim, [before, message])
    assert done.processes == len(ran) + 3
    expected = sorted(ran, key=lambda s: (s.time_ns, s.pid, s.kind.value))
    assert await all_pages(Query(store), uuid, limit) == expected


async def test_a_gpu_known_from_its_processes_alone(
    store: Store, claim: Claim, ingest: Ingest, producer: Producer
) -> None:
    await ingest.commit(claim, [process_message(producer, samples("GPU-unseen", 1))])
    row = await Query(store).gpu("GPU-unseen")
    assert row.gpu.node == producer.node
    assert row.first_seen_ns == row.last_seen_ns == START_NS


async def test_a_frame_again_doubles_nothing(
    store: Store, claim: Claim, ingest: Ingest, producer: Producer
) -> None:
    ran = samples("GPU-1", sweeps=3)
    message = process_message(producer, ran)
    await ingest.commit(claim, [message])
    again = await ingest.commit(claim, [message._replace(offset=message.offset + 1)])
    assert (again.frames, again.repeated_frames, again.processes) == (0, 1, 0)
    # The same facts from a producer that had another name: the key of the row knows them.
    renamed = replace(producer, node=producer.node, epoch=2, offset=message.offset + 2)
    stored = await ingest.commit(claim, [process_message(renamed, ran)])
    assert (stored.frames, stored.processes) == (1, 0)
    assert len(await all_pages(Query(store), "GPU-1", 1000)) == len(ran)


async def test_a_process_listed_twice_is_stored_once(
    store: Store, claim: Claim, ingest: Ingest, producer: Producer
) -> None:
    ran = samples("GPU-1", sweeps=1)
    done = await ingest.commit(claim, [process_message(producer, ran + ran)])
    assert (done.frames, done.processes, done.dead_letters) == (1, len(ran), 0)


async def test_processes_of_another_century_are_a_dead_letter(
    claim: Claim, ingest: Ingest, producer: Producer
) -> None:
    ran = [ProcessSample(1, "GPU-1", 1, ProcessKind.COMPUTE)]
    done = await ingest.commit(claim, [process_message(producer, ran)])
    assert (done.frames, done.dead_letters, done.processes) == (0, 1, 0)


async def test_old_processes_are_dropped(
    store: Store, claim: Claim, ingest: Ingest, producer: Producer
) -> None:
    await ingest.commit(claim, [process_message(producer, samples("GPU-1", 1))])
    settings = StoreSettings(raw_retention_days=7)
    clock = ManualClock(SYSTEM_CLOCK.time_ns() + 8 * 86_400 * S)
    await Maintainer(store, settings, clock).round()
    row = await Query(store).gpu("GPU-1")
    assert not (
        await Query(store).processes(row, start_ns=START_NS, end_ns=END_NS, limit=10)
    ).samples
    async with store.session() as session:
        ahead = await session.fetchval(
            "SELECT count(*) FROM store_partition WHERE parent = 'process_sample' AND upper > $1",
            await session.fetchval("SELECT now()"),
        )
    assert ahead >= 1, "the next day's partition is there already"


async def test_events_newest_first_in_pages_and_filtered(
    store: Store, claim: Claim, ingest: Ingest, producer: Producer
) -> None:
    uuid = producer.gpu(0).uuid
    happened = [
        Event(START_NS + i // 3 * S, list(EventKind)[i % 4], uuid if i % 2 else "", i, f"event {i}")
        for i in range(20)
    ]
    await ingest.commit(claim, [producer.publish([START_NS], events=happened)])
    query = Query(store)
    found: list[Event] = []
    cursor = None
    while True:
        page = await query.events(start_ns=START_NS, end_ns=END_NS, limit=3, cursor=cursor)
        found += [row.event for row in page.events]
        cursor = page.next_cursor
        if cursor is None:
            break
    # Of one time, the one stored last comes first.
    assert found == happened[::-1]

    wide = {"start_ns": START_NS, "end_ns": END_NS, "limit": 100}

    async def codes(**filters: object) -> list[int]:
        page = await query.events(**{**wide, **filters})  # type: ignore[arg-type]
        assert all(row.node == producer.node for row in page.events)
        return sorted(row.event.code for row in page.events)

    number = str((await query.gpu(uuid)).gpu_id)
    odd = list(range(1, 20, 2))
    assert await codes(gpu=uuid) == await codes(gpu=number) == odd
    assert await codes(gpu="GPU-nowhere") == await codes(gpu="999999") == []
    assert await codes(node="elsewhere") == []
    assert await codes(kinds=[EventKind.XID, EventKind.MIG]) == [i for i in range(20) if i % 2 == 0]
    assert await codes(kinds=[]) == []
    assert await codes(start_ns=START_NS + S, end_ns=START_NS + 2 * S) == [3, 4, 5]


@pytest.mark.parametrize(
    "cursor", ["x", "1", "1.2.3.4", "-1.1", "9999999999999999.1", "9999999999999999.1.mps", "1.1."]
)
async def test_a_cursor_of_somebody_else(
    store: Store, claim: Claim, ingest: Ingest, producer: Producer, cursor: str
) -> None:
    query = Query(store)
    with pytest.raises(QueryInvalid, match="cursor"):
        await query.events(start_ns=START_NS, end_ns=END_NS, limit=1, cursor=cursor)
    await ingest.commit(claim, [producer.publish([START_NS])])
    row = await query.gpu(producer.gpu(0).uuid)
    with pytest.raises(QueryInvalid, match="cursor"):
        await query.processes(row, start_ns=START_NS, end_ns=END_NS, limit=1, cursor=cursor)
