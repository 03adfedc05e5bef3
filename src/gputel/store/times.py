"""Times as gputel counts them (ns since the epoch) and as PostgreSQL does (microseconds)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from gputel.clock import NS_PER_S, NS_PER_US

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_US: Final = timedelta(microseconds=1)

MINUTE_NS: Final = 60 * NS_PER_S
HOUR_NS: Final = 60 * MINUTE_NS
DAY_NS: Final = 24 * HOUR_NS

#: No GPU wrote telemetry before this; what claims to has no clock. 2000-01-01.
TIME_MIN_NS: Final = 946_684_800 * NS_PER_S
#: A range asked for is cut down to 1970 to 2255: nothing lies outside.
RANGE_MIN_NS: Final = 0
TIME_MAX_NS: Final = 9_000_000_000_000_000_000
#: A node's clock may be ahead of ours by this much.
AHEAD_MAX_NS: Final = DAY_NS


def to_datetime(time_ns: int) -> datetime:
    """UTC, floored to the microsecond."""
    return _EPOCH + timedelta(microseconds=time_ns // NS_PER_US)


def to_ns(time: datetime) -> int:
    """Exact: PostgreSQL keeps whole microseconds."""
    return (time - _EPOCH) // _US * NS_PER_US


def span_problem(first_ns: int, last_ns: int, now_ns: int) -> str | None:
    """What is absurd about samples from `first_ns` to `last_ns`; None when nothing is."""
    if first_ns < TIME_MIN_NS:
        return f"time {first_ns} ns is before 2000-01-01: is the node's clock set?"
    if last_ns > now_ns + AHEAD_MAX_NS:
        return f"time {last_ns} ns is more than a day ahead: is the node's clock set?"
    return None
