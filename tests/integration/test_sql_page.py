"""docs/how-to/sql.md: every example runs, and finds what is there."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from gputel.catalog import Cadence
from gputel.clock import NS_PER_S, SYSTEM_CLOCK
from gputel.store import Store
from gputel.store.claim import Claims
from gputel.store.ingest import Ingest
from gputel.store.settings import DatabaseSettings, StoreSettings

if TYPE_CHECKING:
    from support.database import Producer

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "sql.md"
BLOCKS = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
ROLES = [block for block in BLOCKS if re.match(r"GRANT|CREATE|ALTER", block)]
QUERIES = [block for block in BLOCKS if block not in ROLES]
#: Asks for one hour of a past year.
EMPTY = "2026-01-02 03:00Z"


@pytest.fixture
async def filled(store: Store, make_producer: Callable[..., Producer]) -> Store:
    """Some minutes of one node: the newest in rows, those before in chunks."""
    producer = make_producer(node="gpu-01", gpus=2)
    claims = Claims(store, SYSTEM_CLOCK)
    claim = await claims.acquire("telemetry", 0)
    assert claim is not None
    now_ns = SYSTEM_CLOCK.time_ns()
    ages_s = [range(240, 200, -1), *([age] for age in range(30, 2, -3))]
    times = [[now_ns - age * NS_PER_S for age in of_frame] for of_frame in ages_s]
    messages = [producer.publish(time_ns) for time_ns in times]
    messages.append(producer.publish([now_ns - 20 * NS_PER_S], cadence=Cadence.MEDIUM))
    await Ingest(store, StoreSettings()).commit(claim, messages)
    await claims.close()
    return store


def macros_expanded(query: str) -> str:
    """As Grafana's data source does."""
    now = datetime.now(UTC)
    start, end = (f"'{t:%Y-%m-%dT%H:%M:%SZ}'" for t in (now - timedelta(hours=1), now))
    query = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 BETWEEN {start} AND {end}", query)
    return query.replace("$__timeFrom()", start).replace("$__timeTo()", end)


async def test_examples(filled: Store) -> None:
    assert len(QUERIES) >= 12
    async with filled.session() as session:
        for block in QUERIES:
            for statement in filter(str.strip, macros_expanded(block).split(";")):
                rows = await session.fetch(statement)
                assert rows, statement
                assert EMPTY in statement or any(value is not None for value in rows[0]), statement


async def test_a_role_that_only_reads(
    filled: Store,
    database: DatabaseSettings,
    as_admin: Callable[..., Awaitable[None]],
) -> None:
    """The page's role may run all of the page's queries and can change nothing."""
    grants, roles = sorted(ROLES, key=lambda block: not block.startswith("GRANT"))
    try:
        await as_admin(*filter(str.strip, roles.split(";")))
        async with filled.session() as owner:
            await owner.execute(grants)
            # A view that is made anew.
            await owner.execute("UPDATE schema_catalog SET digest = 'an older one'")
        await filled.migrate(StoreSettings())
        reader = await asyncpg.connect(
            host=database.host,
            port=database.port,
            user="grafana",
            password="change me",
            database=database.dbname,
        )
        try:
            for block in QUERIES:
                for statement in filter(str.strip, macros_expanded(block).split(";")):
                    assert await reader.fetch(statement)
            await reader.execute("SET default_transaction_read_only = off")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await reader.execute("DELETE FROM sample_chunk")
            # Its own tables and functions of the same names change nothing.
            expected = await reader.fetchval("SELECT count(*) FROM gpu_latest")
            await reader.execute("CREATE TEMP TABLE gpu (gpu_id bigint)")
            await reader.execute("SET search_path = pg_temp, public")
            found = await reader.fetch(
                "SELECT * FROM gpu_samples('gpu-01/0', 'power_watts', '-infinity', 'infinity')"
            )
            assert found
            assert await reader.fetchval("SELECT count(*) FROM gpu_latest") == expected
        finally:
            await reader.close()
    finally:
        async with filled.session() as owner:
            await owner.execute(
                "ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE SELECT ON TABLES FROM grafana; "
                "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM grafana"
            )
        await as_admin("DROP ROLE IF EXISTS grafana")
