"""From text to exact values in the catalog's units, and from text to time.

Nothing is rounded on the way: integers stay integers, floats are what `float(text)` is,
and a number that its metric can't hold is refused.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Context, Decimal, Inexact
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from gputel.catalog import Metric, Storage, Unit
from gputel.clock import NS_PER_S, NS_PER_US
from gputel.limits import KIB, MIB
from gputel.sources.lines import BadLine

Number = int | float

_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_NUMBER_CHARACTERS_MAX = 64
_EXACT = Context(prec=80, traps=[Inexact])
_I64_MAX = 2**63 - 1
_STORAGE_MAX: Final = MappingProxyType(
    {Storage.I64: _I64_MAX, Storage.U64: 2**64 - 1, Storage.F32: 3e38, Storage.F64: 1.7e308}
)

#: What a value may be at all, in stored units; beyond it the driver or the file is wrong.
#: A temperature above 200 is not one (nvml.h leaves fields uninitialised on some drivers).
_RANGES: Final = MappingProxyType(
    {
        Unit.PERCENT: (0, 100),
        Unit.RATIO: (0, 1),
        Unit.WATT: (0, 100_000),
        Unit.CELSIUS: (-100, 200),
        Unit.MEGAHERTZ: (0, 100_000),
    }
)
#: nvml.h: the fan's intended speed may exceed 100 %; P-state 32 means unknown.
_RANGES_OF_METRIC: Final = MappingProxyType(
    {"fan_speed_percent": (0, 300), "performance_state": (0, 15)}
)

#: Units that people's files carry: (the catalog's unit, factor to it as numerator, denominator).
UNITS: Final = MappingProxyType(
    {
        "%": (Unit.PERCENT, 1, 1),
        "W": (Unit.WATT, 1, 1),
        "mW": (Unit.WATT, 1, 1000),
        "kW": (Unit.WATT, 1000, 1),
        "C": (Unit.CELSIUS, 1, 1),
        "MHz": (Unit.MEGAHERTZ, 1, 1),
        "GHz": (Unit.MEGAHERTZ, 1000, 1),
        "B": (Unit.BYTE, 1, 1),
        "KiB": (Unit.BYTE, KIB, 1),
        "MiB": (Unit.BYTE, MIB, 1),
        "GiB": (Unit.BYTE, KIB * MIB, 1),
        "mJ": (Unit.MILLIJOULE, 1, 1),
        "J": (Unit.MILLIJOULE, 1000, 1),
        "ns": (Unit.NANOSECOND, 1, 1),
        "us": (Unit.NANOSECOND, 1000, 1),
    }
)


def limits_of(metric: Metric) -> tuple[Number, Number]:
    """The lowest and the highest value that `metric` can have, in stored units."""
    limits = _RANGES_OF_METRIC.get(metric.name) or _RANGES.get(metric.unit)
    return limits or (0, _STORAGE_MAX[metric.storage])


def in_range(metric: Metric, value: Number) -> bool:
    """Can `metric` have this value at all? NaN and infinities can't."""
    low, high = limits_of(metric)
    return low <= value <= high


def exact(metric: Metric, text: str, numerator: int = 1, denominator: int = 1) -> Number:
    """`text * numerator / denominator` as `metric` stores it: exact, or BadLine."""
    if len(text) > _NUMBER_CHARACTERS_MAX or not _NUMBER.fullmatch(text):
        raise BadLine("not a number", f"{metric.name} is {text[:40]!r}")
    value: Number
    if metric.storage in (Storage.F64, Storage.F32):
        value = float(text)
        if numerator != 1:
            value *= numerator
        if denominator != 1:
            value /= denominator
    else:
        value = _integer(metric, text, numerator, denominator)
    if not in_range(metric, value):
        raise BadLine("value out of range", f"{metric.name} is {text}")
    return value


def _integer(metric: Metric, text: str, numerator: int, denominator: int) -> int:
    if text.isascii() and text.isdigit() and denominator == 1:
        return int(text) * numerator
    number = Decimal(text)
    if number.adjusted() > 20:  # beyond u64 in any unit; int() of 1e999 would be huge
        raise BadLine("value out of range", f"{metric.name} is {text}")
    try:
        scaled = _EXACT.divide(_EXACT.multiply(number, Decimal(numerator)), Decimal(denominator))
    except Inexact:
        raise BadLine("fraction in an integer metric", f"{metric.name} is {text}") from None
    if scaled != scaled.to_integral_value():
        raise BadLine("fraction in an integer metric", f"{metric.name} is {text}")
    return int(scaled)


_RFC3339 = re.compile(
    r"(\d{4})[-/](\d\d)[-/](\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?"
    r" ?(Z|z|UTC|[+-]\d\d:?\d\d)?",
    re.ASCII,
)
_EPOCH = re.compile(r"(\d{1,19})(?:\.(\d{1,9}))?", re.ASCII)
_TIME_NS_MAX = 2**63 - 1


@lru_cache(maxsize=4096)
def parse_time_ns(text: str, zone: tzinfo = UTC) -> int:
    """Nanoseconds since the epoch, cut to whole microseconds; BadLine.

    Accepts RFC 3339 (also with `/` in the date and a blank for the T), and epoch numbers in
    s, ms, us or ns, told apart by their size. `zone` holds where the text names none.
    """
    if match := _RFC3339.fullmatch(text):
        ns = _calendar_ns(match, text, zone)
    elif match := _EPOCH.fullmatch(text):
        whole, fraction = match.groups()
        number = int(whole)
        scale = next((s for s, top in _EPOCH_SCALES if number < top), 1)
        ns = number * scale + int((fraction or "").ljust(9, "0")) * scale // NS_PER_S
    else:
        raise BadLine("bad timestamp", repr(text[:40]))
    if not 0 <= ns <= _TIME_NS_MAX:
        raise BadLine("bad timestamp", f"{text[:40]!r} is out of range")
    return ns // NS_PER_US * NS_PER_US


#: Seconds until the year 5138, then milliseconds, microseconds; nanoseconds above.
_EPOCH_SCALES = ((NS_PER_S, 10**11), (10**6, 10**14), (10**3, 10**17))


def _calendar_ns(match: re.Match[str], text: str, zone: tzinfo) -> int:
    *date, fraction, offset = match.groups()
    year, month, day, hour, minute, second = (int(part) for part in date)
    if offset:
        zone = UTC if offset in ("Z", "z", "UTC") else _offset(offset, text)
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=zone)
        since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise BadLine("bad timestamp", f"{text[:40]!r}: {error}") from None
    whole = (since.days * 86_400 + since.seconds) * NS_PER_S
    return whole + int((fraction or "").ljust(9, "0"))


def _offset(text: str, whole: str) -> timezone:
    hours, minutes = int(text[1:3]), int(text[-2:])
    if hours > 23 or minutes > 59:
        raise BadLine("bad timestamp", repr(whole[:40]))
    delta = timedelta(hours=hours, minutes=minutes)
    return timezone(-delta if text[0] == "-" else delta)
