"""`process_sample`: what ran on which GPU, into the table and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gputel.clock import NS_PER_US
from gputel.errors import QueryInvalid
from gputel.inventory import ProcessKind, ProcessSample
from gputel.store.times import TIME_MAX_NS, to_datetime, to_ns

if TYPE_CHECKING:
    from gputel.store.connection import Connection

_COLUMNS: Final = (
    "memory_used_bytes",
    "sm_utilization_percent",
    "memory_utilization_percent",
    "encoder_utilization_percent",
    "decoder_utilization_percent",
    "name",
    "cgroup",
    "container_id",
)
_WRITE: Final = f"""
WITH new AS (
    INSERT INTO process_sample (gpu_id, time, pid, kind, {", ".join(_COLUMNS)})
    SELECT * FROM unnest($1::bigint[], $2::timestamptz[], $3::integer[], $4::text[], $5::bigint[],
                         $6::smallint[], $7::smallint[], $8::smallint[], $9::smallint[],
                         $10::text[], $11::text[], $12::text[])
    ON CONFLICT DO NOTHING RETURNING 1
) SELECT count(*) FROM new
"""
# The key's order is the page's order; text compares by bytes, so that a page begins where
# the one before ended, whatever the database's collation.
_READ: Final = f"""
SELECT time, pid, kind, {", ".join(_COLUMNS)} FROM process_sample
WHERE gpu_id = $1 AND time >= $2 AND time < $3 AND (time, pid, kind COLLATE "C") > ($4, $5, $6)
ORDER BY time, pid, kind COLLATE "C" LIMIT $7
"""
_CURSOR: Final = re.compile(r"([0-9]{1,16})\.([0-9]{1,9})\.([a-z]{1,16})", re.ASCII)


@dataclass(frozen=True, slots=True)
class ProcessPage:
    """Samples by time, pid and kind; `next_cursor` is None on the last page."""

    samples: tuple[ProcessSample, ...]
    next_cursor: str | None


async def write(session: Connection, rows: Sequence[tuple[int, ProcessSample]]) -> int:
    """Insert the samples of (gpu_id, sample); returns how many were not there yet."""
    if not rows:
        return 0
    new: int = await session.fetchval(
        _WRITE,
        [gpu_id for gpu_id, _ in rows],
        [to_datetime(sample.time_ns) for _, sample in rows],
        [sample.pid for _, sample in rows],
        [sample.kind.value for _, sample in rows],
        *([getattr(sample, column) for _, sample in rows] for column in _COLUMNS),
    )
    return new


async def read(
    session: Connection,
    gpu_id: int,
    gpu_uuid: str,
    start_ns: int,
    end_ns: int,
    limit: int,
    cursor: str | None,
) -> ProcessPage:
    """At most `limit` samples in [start_ns, end_ns), oldest first. QueryInvalid: a bad cursor."""
    after_ns, after_pid, after_kind = _after(cursor, start_ns)
    found = await session.fetch(
        _READ,
        gpu_id,
        to_datetime(start_ns),
        to_datetime(end_ns),
        to_datetime(after_ns),
        after_pid,
        after_kind,
        limit + 1,  # one more tells whether there is another page
    )
    samples = tuple(
        ProcessSample(to_ns(time), gpu_uuid, pid, ProcessKind(kind), *facts)
        for time, pid, kind, *facts in found[:limit]
    )
    if len(found) <= limit:
        return ProcessPage(samples, None)
    last = samples[-1]
    return ProcessPage(samples, f"{last.time_ns // NS_PER_US}.{last.pid}.{last.kind.value}")


def _after(cursor: str | None, start_ns: int) -> tuple[int, int, str]:
    """The key behind which a page begins; no pid is below 1."""
    if cursor is None:
        return start_ns, 0, ""
    matched = _CURSOR.fullmatch(cursor)
    if matched is None or int(matched[1]) * NS_PER_US > TIME_MAX_NS:
        raise QueryInvalid("cursor", "is not the next_cursor of an answer")
    return int(matched[1]) * NS_PER_US, int(matched[2]), matched[3]
