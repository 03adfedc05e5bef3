"""Times as people and programs write them in a query: RFC 3339, epoch seconds, relative."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from gputel.clock import NS_PER_S
from gputel.errors import QueryInvalid

TIME_CHARS_MAX: Final = 64
#: The last whole second that fits int64 nanoseconds.
TIME_S_MAX: Final = (2**63 - 1) // NS_PER_S
ALLOWED: Final = (
    "RFC 3339 such as 2026-01-02T03:04:05Z",
    "epoch seconds such as 1767323045.5",
    "relative to now such as -15m, -1h or -7d",
    "now",
)

_RELATIVE = re.compile(r"(?:now)?-([0-9]{1,10})(ms|s|m|h|d|w)", re.ASCII)
_STEP = re.compile(r"([0-9]{1,10})(ms|s|m|h|d|w)", re.ASCII)
_EPOCH = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,9})?", re.ASCII)
_RFC3339 = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}:[0-9]{2})"
    r"(?:\.([0-9]{1,9}))?([Zz]|[ +-][0-9]{2}:[0-9]{2})?",
    re.ASCII,
)
_UNIT_NS = {
    "ms": NS_PER_S // 1000,
    "s": NS_PER_S,
    "m": 60 * NS_PER_S,
    "h": 3600 * NS_PER_S,
    "d": 86_400 * NS_PER_S,
    "w": 7 * 86_400 * NS_PER_S,
}
STEP_NS_MAX: Final = 366 * _UNIT_NS["d"]
_EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)


def parse_step(parameter: str, text: str) -> int:
    """A length of time such as 30s as nanoseconds; QueryInvalid."""
    match = _STEP.fullmatch(text)
    step_ns = int(match[1]) * _UNIT_NS[match[2]] if match else 0
    if not 0 < step_ns <= STEP_NS_MAX:
        raise QueryInvalid(
            parameter,
            f"{text[:TIME_CHARS_MAX]!r} is not a length of time",
            allowed=("such as 100ms, 30s, 1m, 1h or 1d", "at most 366d"),
        )
    return step_ns


def parse_time(parameter: str, text: str, now_ns: int) -> int:
    """Nanoseconds since the Unix epoch; QueryInvalid names `parameter` and what is allowed."""
    if len(text) > TIME_CHARS_MAX:
        raise QueryInvalid(parameter, f"a time of {len(text)} characters", allowed=ALLOWED)
    if text == "now":
        return now_ns
    if match := _RELATIVE.fullmatch(text):
        time_ns = now_ns - int(match[1]) * _UNIT_NS[match[2]]
    elif _EPOCH.fullmatch(text):
        time_ns = int(Decimal(text) * NS_PER_S)
    elif match := _RFC3339.fullmatch(text):
        time_ns = _from_rfc3339(parameter, text, match)
    else:
        raise QueryInvalid(parameter, f"{text!r} is not a time", allowed=ALLOWED)
    if not 0 <= time_ns <= TIME_S_MAX * NS_PER_S:
        hint = "; milliseconds?" if time_ns > TIME_S_MAX * NS_PER_S else ""
        raise QueryInvalid(parameter, f"{text!r} is outside 1970 to 2262{hint}", allowed=ALLOWED)
    return time_ns


def _from_rfc3339(parameter: str, text: str, match: re.Match[str]) -> int:
    date, clock, fraction, offset = match.groups()
    if offset is None:
        raise QueryInvalid(parameter, f"{text!r} needs an offset: Z or +02:00", allowed=ALLOWED)
    # An unescaped + arrives as a space.
    offset = "+00:00" if offset in "Zz" else offset.replace(" ", "+")
    try:
        moment = datetime.fromisoformat(f"{date}T{clock}{offset}")
        seconds = (moment - _EPOCH_START) // timedelta(seconds=1)
    except (ValueError, OverflowError):
        raise QueryInvalid(
            parameter, f"{text!r} is no day or time of the calendar", allowed=ALLOWED
        ) from None
    return seconds * NS_PER_S + int((fraction or "0").ljust(9, "0"))
