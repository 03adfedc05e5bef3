"""The newest values: of rows, of chunks, of both, however far back they are."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gputel import wire
from gputel.catalog import METRICS, SET_BY_CADENCE, Cadence, Metric
from gputel.clock import SYSTEM_CLOCK
from gputel.store import Store
from gputel.store.claim import Claim, Claims
from gputel.store.ingest import Ingest
from gputel.store.query import Query
from gputel.store.settings import StoreSettings
from support.database import START_NS, batch_of
from support.tiers import seal

if TYPE_CHECKING:
    from support.database import Producer

S = 10**9
FAST = SET_BY_CADENCE[Cadence.FAST]


@pytest.fixture
async def claim(store: Store) -> AsyncGenerator[Claim]:
    held = Claims(store, SYSTEM_CLOCK)
    taken = await held.acquire("telemetry", 0)
    assert taken is not None
    yield taken
    await held.close()


async def check(store: Store, producers: list[Producer], gpu_ids: list[int] | None = None) -> None:
    """What is found is the newest that was published, of every metric of every GPU asked for."""
    query = Query(store)
    rows = {row.gpu.uuid: row.gpu_id for row in await query.gpus()}
    expected = {}
    for producer in producers:
        for (uuid, metric), points in producer.points.items():
            if points and (gpu_ids is None or rows[uuid] in gpu_ids):
                expected[rows[uuid], metric.name] = max(points)
    latest = await query.latest(METRICS, gpu_ids)
    found = {(x.gpu_id, x.metric.name): (x.time_ns, x.value) for x in latest}
    assert len(found) == len(latest)
    assert found == expected


def sparse(producer: Producer, metric: Metric, time_ns: list[int]) -> Any:
    """A message whose rows hold one metric only."""
    frame = producer.frame(time_ns)
    for index in range(producer.gpus):
        for other in FAST.metrics:
            # Taken back: what `frame` noted is not sent.
            points = producer.points[producer.gpu(index).uuid, other]
            points[:] = [point for point in points if point[0] not in time_ns]
    gpus = []
    for index in range(producer.gpus):
        uuid = producer.gpu(index).uuid
        batch = batch_of(
            producer.rng, FAST, time_ns, producer.next_row[uuid, FAST.id] - len(time_ns)
        )
        j = FAST.column(metric)
        batch.valid[:] = 0
        batch.valid[j] = np.packbits(np.ones(len(time_ns), np.uint8), bitorder="little")
        producer._account(uuid, batch)
        gpus.append(wire.GpuChunks(uuid, (wire.encode_batch(batch),)))
    return producer.message(
        wire.Frame(
            producer.name,
            producer.epoch,
            producer.sequence,
            producer.node,
            max(time_ns),
            tuple(gpus),
            frame.inventory,
        )
    )


async def test_however_many_rows_back(store: Store, claim: Claim, producer: Producer) -> None:
    ingest = Ingest(store, StoreSettings())
    await ingest.commit(claim, [producer.publish([START_NS])])
    clock, power = FAST.metrics[5], FAST.metrics[2]
    messages = [sparse(producer, clock, [START_NS + i * S]) for i in range(1, 60)]
    messages.append(sparse(producer, power, [START_NS + 30 * S + 1000]))
    await ingest.commit(claim, messages)
    await check(store, [producer])
    await check(store, [producer], [2])
    await check(store, [producer], [])
    await seal(store)
    await check(store, [producer])


async def test_rows_after_chunks_and_chunks_after_rows(
    store: Store, claim: Claim, make_producer: Callable[..., Producer]
) -> None:
    ingest = Ingest(store, StoreSettings())
    producers = [make_producer(node=f"node-{i}", gpus=1, seed=i) for i in range(4)]
    before = [START_NS + i * S for i in range(40)]
    middle = [START_NS + (i + 10) * S for i in range(3)]
    after = [START_NS + (i + 300) * S for i in range(3)]
    offset = 0
    for producer, spans in zip(
        producers, ([before, after], [before, middle], [after, before], [middle]), strict=True
    ):
        producer.offset = offset
        for span in spans:
            await ingest.commit(claim, [producer.publish(span)])
        await ingest.commit(claim, [producer.publish(span[:1], cadence=Cadence.SLOW)])
        offset = producer.offset
    await check(store, producers)
    await seal(store)
    await check(store, producers)
    late = [START_NS + i * S for i in range(4, 6)]
    await ingest.commit(claim, [producers[3].publish(late)])
    await check(store, producers)


@pytest.mark.parametrize("seed", range(6))
async def test_any_order(
    store: Store, claim: Claim, make_producer: Callable[..., Producer], seed: int
) -> None:
    random = np.random.default_rng(seed)
    ingest = Ingest(store, StoreSettings())
    producer = make_producer(seed=seed)
    for number in range(25):
        # Never the same time twice: which of two values is the later one is not published.
        first = START_NS + int(random.integers(0, 20_000)) * S // 10 + number * 1000
        time_ns = [first + i * S // 10 for i in range(int(random.choice([1, 2, 40])))]
        if random.integers(3) == 0:
            metric = FAST.metrics[int(random.integers(len(FAST.metrics)))]
            message = sparse(producer, metric, time_ns)
        else:
            message = producer.publish(time_ns)
        await ingest.commit(claim, [message])
        if random.integers(8) == 0:
            await seal(store)
    await check(store, [producer])
