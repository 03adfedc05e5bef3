"""A COPY stream into a table, as one buffer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gputel.kernels import CopyStream
    from gputel.store.connection import Connection


async def copy_in(
    connection: Connection,
    table: str,
    columns: Sequence[str],
    stream: CopyStream,
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
    # PERF(copy): as a buffer it goes into asyncpg's message in one copy. A file would be read
    # by a thread in pieces; bytes would be taken for a path.
    await connection.copy_to_table(
        target,
        source=stream.finish(),  # type: ignore[arg-type]  # any buffer will do
        columns=list(columns),
        format="binary",
    )
    if not skip_present:
        return stream.rows
    done = await connection.execute(
        f"INSERT INTO {table} SELECT * FROM incoming ON CONFLICT DO NOTHING"
    )
    await connection.execute("DROP TABLE incoming")
    return int(done.rsplit(" ", 1)[1])
