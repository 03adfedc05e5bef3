"""Aggregates do not depend on where the samples are: rows, chunks, merged, minutes, hours."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gputel.catalog import METRICS, Cadence, Metric
from gputel.clock import SYSTEM_CLOCK, ManualClock
from gputel.errors import QueryInvalid
from gputel.store import Store, buckets
from gputel.store.buckets import Aggregate
from gputel.store.claim import Claims
from gputel.store.frames import Message
from gputel.store.ingest import Ingest
from gputel.store.maintain import Maintainer
from gputel.store.query import Query
from gputel.store.settings import StoreSettings

if TYPE_CHECKING:
    from support.database import Producer

START_NS = 1_760_000_000_000_000_000
S = 1_000_000_000
HOUR_S = 3600
SETTINGS = StoreSettings(hot_partition_minutes=30, seal_after_minutes=1)
STEPS_S = (0.5, 7, 30, 60, 300, 3600, 7200, 86_400)


async def commit(store: Store, messages: list[Message]) -> None:
    claims = Claims(store, SYSTEM_CLOCK)
    claim = await claims.acquire("telemetry", 0)
    assert claim is not None
    await Ingest(store, SETTINGS).commit(claim, messages)
    await claims.close()


def some(producer: Producer, chance: random.Random) -> list[Message]:
    """Frames of one sample and of many, in any order of time, over three hours."""
    messages = []
    for _ in range(40):
        start_ns = START_NS + chance.randrange(3 * HOUR_S * 1000) * S // 1000
        n, step_ms = chance.choice([(1, 0), (1, 0), (5, 900), (40, 1500), (33, 90_000)])
        times = [start_ns + i * step_ms * S // 1000 for i in range(n)]
        messages.append(producer.publish(times, cadence=chance.choice(list(Cadence))))
    return messages


def expected(
    producer: Producer, uuid: str, metric: Metric, start_ns: int, end_ns: int, step_ns: int
) -> dict[int, list[float]]:
    low, high = start_ns // step_ns * step_ns, -(-end_ns // step_ns) * step_ns
    found: dict[int, list[float]] = {}
    for time_ns, value in producer.expected(uuid, metric, low, high):
        found.setdefault(time_ns // step_ns * step_ns, []).append(float(value))
    return found


async def check(store: Store, producer: Producer, chance: random.Random) -> None:
    query = Query(store)
    (row,) = await query.gpus(uuid=producer.gpu(0).uuid)
    for step_s in STEPS_S:
        step_ns = int(step_s * S)
        start_ns = START_NS + chance.randrange(HOUR_S) * S
        end_ns = START_NS + chance.randrange(2 * HOUR_S, 4 * HOUR_S) * S + 1
        for aggregate in Aggregate:
            _, found = await query.buckets(
                row,
                start_ns=start_ns,
                end_ns=end_ns,
                metrics=METRICS,
                step_ns=step_ns,
                aggregate=aggregate,
                limit=10_000_000,
            )
            for series in found:
                right = expected(producer, row.gpu.uuid, series.metric, start_ns, end_ns, step_ns)
                assert series.time_ns.tolist() == sorted(right)
                values = [right[time_ns] for time_ns in sorted(right)]
                if aggregate in (Aggregate.AVG, Aggregate.SUM):
                    function = np.mean if aggregate is Aggregate.AVG else np.sum
                    wanted = [function(of_bucket) for of_bucket in values]
                    assert np.allclose(series.values, wanted, rtol=1e-9)
                else:
                    exact: dict[Aggregate, Callable[[list[float]], float]] = {
                        Aggregate.MIN: min,
                        Aggregate.MAX: max,
                        Aggregate.COUNT: len,
                    }
                    assert series.values.tolist() == [exact[aggregate](v) for v in values]


async def test_the_answer_does_not_depend_on_the_tier(
    store: Store, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "POINTS_A_STEP", 500)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    clock = ManualClock(SYSTEM_CLOCK.time_ns() + HOUR_S * S)
    await commit(store, some(producer, chance))
    await check(store, producer, chance)
    maintainer = Maintainer(store, SETTINGS, clock)
    await maintainer.round()
    await check(store, producer, chance)
    await commit(store, some(producer, chance))  # late
    await check(store, producer, chance)
    clock.advance(2 * 24 * HOUR_S)
    await maintainer.round()
    await check(store, producer, chance)
    assert maintainer.counts.merged_chunks


async def test_too_much_is_refused(
    store: Store, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await commit(store, [producer.publish([START_NS + i * S for i in range(100)])])
    query = Query(store)
    row = await query.gpu("1")

    async def ask(step_ns: int, limit: int) -> None:
        await query.buckets(
            row,
            start_ns=START_NS,
            end_ns=START_NS + 100 * S,
            metrics=METRICS[:2],
            step_ns=step_ns,
            aggregate=Aggregate.AVG,
            limit=limit,
        )

    await ask(S, 200)
    with pytest.raises(QueryInvalid, match="100 buckets of 2 metrics are more than 199 points"):
        await ask(S, 199)
    monkeypatch.setattr(buckets, "POINTS_A_STEP", 10)
    monkeypatch.setattr(buckets, "RAW_ROWS_MAX", 20)
    with pytest.raises(QueryInvalid, match="more than 20 samples"):
        await ask(S, 200)
    await ask(60 * S, 200)  # minutes know it already
