"""Frames on their way through a broker and a sink, and the look whether they have arrived."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from gputel import wire
from gputel.broker import BrokerClient
from gputel.catalog import SET_BY_CADENCE, Cadence
from gputel.store import Store
from gputel.store.query import Query

if TYPE_CHECKING:
    from support.database import Producer

START_NS = 1_760_000_000_000_000_000
MS = 1_000_000
FAST = SET_BY_CADENCE[Cadence.FAST].metrics
TOPIC = "telemetry"
#: Of a distributed store on a busy machine, too.
DEADLINE_S = 60


async def publish(client: BrokerClient, producer: Producer, first: int, n: int) -> None:
    publisher = await client.publisher(TOPIC, producer.name, producer.epoch)
    for i in range(first, first + n):
        frame = producer.frame([START_NS + i * 100 * MS])
        await publisher.publish(frame.sequence, producer.node, wire.encode_frame(frame))
    assert await publisher.flush(DEADLINE_S)
    await publisher.close()


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = DEADLINE_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def check(store: Store, producers: list[Producer]) -> None:
    """Everything published is found, once, with its value."""
    query = Query(store)
    for producer in producers:
        for index in range(producer.gpus):
            row = await query.gpu(producer.gpu(index).uuid)
            page = await query.telemetry(
                row, start_ns=0, end_ns=START_NS * 2, metrics=FAST, limit=1_000_000
            )
            for series in page.series:
                found = list(zip(series.time_ns.tolist(), series.values.tolist(), strict=True))
                assert found == producer.expected(row.gpu.uuid, series.metric, 0, START_NS * 2)
