"""A COPY stream into a table."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Final

from gputel.limits import KIB

if TYPE_CHECKING:
    from gputel.kernels import CopyStream
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
    await connection.copy_to_table(
        target,
        source=_slices(stream.finish()),  # type: ignore[arg-type]  # any buffers will do
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
