"""Reading `event`: what happened to the GPUs, newest first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gputel.clock import NS_PER_US
from gputel.errors import QueryInvalid
from gputel.inventory import Event, EventKind
from gputel.store.times import TIME_MAX_NS, to_datetime, to_ns

if TYPE_CHECKING:
    from gputel.store.connection import Connection

# A number names a GPU of this store, other text is a UUID.
_READ: Final = """
SELECT event_id, time, node, gpu_uuid, kind, code, message FROM event
WHERE time >= $1 AND time < $2
  AND ($3::text[] IS NULL OR kind = ANY($3))
  AND ($4::text IS NULL OR node = $4)
  AND ($5::text IS NULL OR gpu_uuid = $5)
  AND ($6::bigint IS NULL OR gpu_id = $6)
  AND (time, event_id) < ($7, $8)
ORDER BY time DESC, event_id DESC LIMIT $9
"""
_CURSOR: Final = re.compile(r"([0-9]{1,16})\.([0-9]{1,18})", re.ASCII)


@dataclass(frozen=True, slots=True)
class EventRow:
    """One event, and where it happened."""

    event_id: int
    node: str
    event: Event


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events from the newest on; `next_cursor` is None on the last page."""

    events: tuple[EventRow, ...]
    next_cursor: str | None


async def read(
    session: Connection,
    start_ns: int,
    end_ns: int,
    kinds: Sequence[EventKind] | None,
    gpu: str | None,
    node: str | None,
    limit: int,
    cursor: str | None,
) -> EventPage:
    """At most `limit` events in [start_ns, end_ns). QueryInvalid: a bad cursor.

    kinds   only these; None: all
    gpu     only of the GPU with this number or UUID; one that is unknown has no events
    """
    by_number = gpu is not None and re.fullmatch(r"[0-9]{1,18}", gpu, re.ASCII) is not None
    before_ns, before_id = _before(cursor, end_ns)
    found = await session.fetch(
        _READ,
        to_datetime(start_ns),
        to_datetime(end_ns),
        None if kinds is None else [kind.value for kind in kinds],
        node,
        None if by_number else gpu,
        int(gpu) if gpu is not None and by_number else None,
        to_datetime(before_ns),
        before_id,
        limit + 1,  # one more tells whether there is another page
    )
    rows = tuple(
        EventRow(event_id, node, Event(to_ns(time), EventKind(kind), gpu_uuid, code, message))
        for event_id, time, node, gpu_uuid, kind, code, message in found[:limit]
    )
    if len(found) <= limit:
        return EventPage(rows, None)
    last = rows[-1]
    return EventPage(rows, f"{last.event.time_ns // NS_PER_US}.{last.event_id}")


def _before(cursor: str | None, end_ns: int) -> tuple[int, int]:
    """The key before which a page begins; `end_ns` itself is outside the range."""
    if cursor is None:
        return end_ns, 0
    matched = _CURSOR.fullmatch(cursor)
    if matched is None or int(matched[1]) * NS_PER_US > TIME_MAX_NS:
        raise QueryInvalid("cursor", "is not the next_cursor of an answer")
    return int(matched[1]) * NS_PER_US, int(matched[2])
