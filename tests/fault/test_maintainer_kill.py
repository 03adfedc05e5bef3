"""kill -9 of maintainers at any statement, alone and two at once: every value stays, once."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from gputel.catalog import METRIC_SETS
from gputel.clock import SYSTEM_CLOCK
from gputel.store import Store, frozen, schema
from gputel.store.settings import DatabaseSettings
from support.maintaining import Plan
from support.pipeline import environment
from support.tiers import HOUR_NS, START_NS, S, commit, count, hours, mixed, points

if TYPE_CHECKING:
    from support.database import Producer

pytestmark = [pytest.mark.integration, pytest.mark.fault]

KILLS = 24
#: Statements of a maintainer that has everything before it: some 1,500.
STATEMENT_MAX = 300
PLAN_DEADLINE_S = 60
TESTS = Path(__file__).parents[1]

Maintain = Callable[[Plan], Awaitable[int]]


@pytest.fixture
async def maintainers() -> AsyncGenerator[list[Maintain]]:
    """Two that can work at once: each takes plans, and tells how the process has ended."""
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "support.maintaining",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment() | {"PYTHONPATH": str(TESTS)},
        )
        for _ in range(2)
    ]

    def maintain(process: asyncio.subprocess.Process) -> Maintain:
        async def carry_out(plan: Plan) -> int:
            assert process.stdin
            assert process.stdout
            process.stdin.write(plan.line().encode())
            return int(await asyncio.wait_for(process.stdout.readline(), PLAN_DEADLINE_S))

        return carry_out

    yield [maintain(process) for process in processes]
    for process in processes:
        assert process.stdin
        process.stdin.close()
        await asyncio.wait_for(process.wait(), PLAN_DEADLINE_S)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("at_once", [1, 2])
async def test_maintainers_killed_at_any_statement(
    store: Store,
    database: DatabaseSettings,
    producer: Producer,
    maintainers: list[Maintain],
    at_once: int,
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    settings, time_ns = msgspec.to_builtins(database), SYSTEM_CLOCK.time_ns() + HOUR_NS

    def plan(statement: int) -> Plan:
        rows_max = chance.choice((0, frozen.ROWS_MAX))
        return Plan(settings, time_ns, chance.randrange(2**32), statement, rows_max)

    await commit(store, mixed(producer))
    killed = 0
    for number in range(KILLS // at_once):
        plans = [plan(chance.randint(1, STATEMENT_MAX)) for _ in range(at_once)]
        ended = await asyncio.gather(*map(lambda one, p: one(p), maintainers, plans))
        assert set(ended) <= {-signal.SIGKILL, 0}, "neither killed nor done"
        await commit(store, [producer.publish([START_NS + number * 60 * S + S // 2])])  # late
        killed += ended.count(-signal.SIGKILL)
        if number % 4 == 0:
            await points(store, producer)
            await hours(store, producer)
    assert killed >= KILLS // 2
    assert await maintainers[0](plan(0)) == 0
    await points(store, producer)
    await hours(store, producer)
    for metric_set in METRIC_SETS:
        assert await count(store, schema.hot_table(metric_set)) == 0
    assert await count(store, "rollup_1h_part") == 0
