"""Tasks that are cancelled in the middle of a statement leave nothing behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from gputel.clock import SYSTEM_CLOCK
from gputel.errors import DatabaseUnavailable
from gputel.store import Store
from gputel.store.claim import Claims

if TYPE_CHECKING:
    from gputel.store.connection import Connection

WAITING = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query ~ $1"


async def once(store: Store, query: str, *, waits: bool) -> list[int]:
    """The sessions at work on `query`, as soon as there are (or are no) such."""
    async with asyncio.timeout(20):
        while True:
            async with store.session() as session:
                found = [
                    row[0]
                    for row in await session.fetch(f"{WAITING} AND pid <> pg_backend_pid()", query)
                ]
            if bool(found) == waits:
                return found
            await asyncio.sleep(0.01)


async def cancelled_while(store: Store, query: str, work: Coroutine[Any, Any, Any]) -> None:
    """Cancel `work` while it waits for `query`; it must end as a cancelled task does."""
    task = asyncio.create_task(work)
    await once(store, query, waits=True)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.fixture
async def claims(store: Store) -> AsyncGenerator[Claims]:
    held = Claims(store, SYSTEM_CLOCK)
    yield held
    await held.close()


@pytest.fixture
async def row_locked(store: Store, claims: Claims) -> AsyncGenerator[Callable[[], Awaitable[None]]]:
    """Partition 0 is in the table, and its row locked until this is called."""
    assert await claims.acquire("telemetry", 0)
    await claims.release("telemetry", 0)
    blocker = await store.dedicated()
    transaction = blocker.transaction()
    await transaction.start()
    await blocker.execute("SELECT * FROM sink_offset FOR UPDATE")
    yield transaction.rollback
    blocker.terminate()


async def test_a_claim_given_up_while_it_is_taken(
    store: Store, claims: Claims, row_locked: Callable[[], Awaitable[None]]
) -> None:
    assert await claims.acquire("telemetry", 1)
    await cancelled_while(store, "^INSERT INTO sink_offset", claims.acquire("telemetry", 0))
    # Nobody knows what that session holds: it is gone, and so is all that it held.
    assert not claims.alive
    other = Claims(store, SYSTEM_CLOCK)
    try:
        assert await asyncio.wait_for(other.acquire("telemetry", 1), 20)
        await row_locked()
        claim = await asyncio.wait_for(claims.acquire("telemetry", 0), 20)
        assert claim is not None
        assert claim.owner_epoch == 2
    finally:
        await other.close()


async def test_a_release_interrupted(store: Store, claims: Claims) -> None:
    assert await claims.acquire("telemetry", 0)
    release = asyncio.create_task(claims.release("telemetry", 0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    release.cancel()
    await asyncio.gather(release, return_exceptions=True)
    other = Claims(store, SYSTEM_CLOCK)
    try:
        # Whatever it got to, the lock is free and both can go on.
        assert await asyncio.wait_for(other.acquire("telemetry", 0), 5)
        assert await asyncio.wait_for(claims.acquire("telemetry", 1), 5)
    finally:
        await other.close()


async def test_a_release_waits_for_the_claim_that_is_being_taken(
    store: Store, claims: Claims
) -> None:
    assert await claims.acquire("telemetry", 1)
    await asyncio.gather(claims.acquire("telemetry", 0), claims.release("telemetry", 0))
    other = Claims(store, SYSTEM_CLOCK)
    try:
        assert await asyncio.wait_for(other.acquire("telemetry", 0), 5)
    finally:
        await other.close()


async def in_session(store: Store, work: Callable[[Connection], Awaitable[Any]]) -> None:
    async with store.session() as session, session.transaction():
        await work(session)


async def test_a_session_interrupted_goes_out_of_the_pool(store: Store) -> None:
    await cancelled_while(
        store, "pg_sleep", in_session(store, lambda s: s.execute("SELECT pg_sleep(60)"))
    )
    await once(store, "pg_sleep", waits=False)
    for _ in range(20):
        async with store.session() as session:
            assert await session.fetchval("SELECT 1") == 1


async def test_a_copy_interrupted_leaves_no_row(store: Store) -> None:
    async def rows() -> AsyncGenerator[bytes]:
        yield b"1\n2\n"
        await asyncio.Event().wait()

    async def copy(session: Connection) -> None:
        await session.copy_to_table("lines", source=rows(), format="text")

    async with store.session() as session:
        await session.execute("CREATE TABLE lines (line int)")
    await cancelled_while(store, "^COPY", in_session(store, copy))
    await once(store, "^COPY", waits=False)
    async with store.session() as session:
        assert await session.fetchval("SELECT count(*) FROM lines") == 0


async def test_a_cancellation_is_not_swallowed_by_an_error_of_cleaning_up(store: Store) -> None:
    async def work(session: Connection) -> None:
        try:
            await session.execute("SELECT pg_sleep(60)")
        except asyncio.CancelledError:
            raise asyncpg.InterfaceError("connection is closed") from None

    await cancelled_while(store, "pg_sleep", in_session(store, work))


async def test_a_session_out_of_step_goes_out_of_the_pool(store: Store) -> None:
    async def work(session: Connection) -> None:
        pids.append(await session.fetchval("SELECT pg_backend_pid()"))
        raise asyncpg.InternalClientError("got result for unknown protocol state 3")

    pids: list[int] = []
    with pytest.raises(DatabaseUnavailable, match=r"out of step.*opened anew"):
        await in_session(store, work)
    async with store.session() as session:
        assert await session.fetchval("SELECT pg_backend_pid()") not in pids
