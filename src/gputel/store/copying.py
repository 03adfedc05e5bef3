"""A COPY stream into a table."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Final

import asyncpg

from gputel.limits import KIB
from gputel.store import citus

if TYPE_CHECKING:
    from gputel.kernels import CopyStream, HotStream
    from gputel.store.connection import Connection

SLICE_BYTES: Final = 256 * KIB


async def _slices(data: memoryview) -> AsyncGenerator[memoryview]:
    # PERF(copy): each slice is copied once, into its message. The server is at work on the first
    # while the next is on its way, which a single message for all would not allow: it is read to
    # its end first. A file object would be read by a thread instead.
    for start in range(0, len(data), SLICE_BYTES):
        yield data[start : start + SLICE_BYTES]


async def copy_in(
    connection: Connection,
    table: str,
    columns: Sequence[str],
    stream: CopyStream | HotStream,
    *,
    skip_present: bool = False,
) -> int:
    """COPY the rows of `stream` into `table`; returns how many are new.

    `skip_present`: rows whose key the table holds already are left out, instead of failing;
    they go through a temporary table.
    """
    if not stream.rows:
        return 0
    target = table
    if skip_present:
        target = "incoming"
        await connection.execute(f"CREATE TEMPORARY TABLE incoming (LIKE {table}) ON COMMIT DROP")
    try:
        await connection.copy_to_table(
            target,
            source=_slices(stream.finish()),  # type: ignore[arg-type]  # any buffers will do
            columns=list(columns),
            format="binary",
        )
    except asyncpg.InternalServerError as error:
        told = citus.error_of_copy(error)
        if told is None:
            raise
        raise told from error
    if not skip_present:
        return stream.rows
    # Counted this way: an INSERT ... SELECT into a table of Citus says how many it was offered.
    new: int = await connection.fetchval(
        f"WITH new AS (INSERT INTO {table} SELECT * FROM incoming ON CONFLICT DO NOTHING "
        "RETURNING 1) SELECT count(*) FROM new"
    )
    await connection.execute("DROP TABLE incoming")
    return new
