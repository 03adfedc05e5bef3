"""Times and durations as people type them at the command line."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

from gputel.errors import InputError

_DURATION: Final = re.compile(r"(\d{1,9})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_duration(text: str) -> timedelta | None:
    """`90s`, `15m`, `2h` or `1d`; None for anything else."""
    found = _DURATION.fullmatch(text)
    return timedelta(**{_UNITS[found[2]]: int(found[1])}) if found else None


def parse_time(flag: str, text: str, now: datetime, *, also: str = "") -> datetime:
    """RFC 3339 with its zone, or how long before `now`, such as `15m`. InputError: `also`
    names what else the flag allows."""
    if (ago := parse_duration(text)) is not None:
        return now - ago
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise InputError(
            f"{flag} {text!r}: allowed are {also}a time with its zone such as "
            "2026-01-02T03:04:05Z, or how long ago, such as 15m (s, m, h, d)"
        )
    return time
