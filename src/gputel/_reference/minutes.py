"""Statistics of a block of samples by minute, as `rollup_1m` keeps them.

    minute    floor(time / 60 s); minutes ascend, each occurs once
    n         valid values
    min, max  in PostgreSQL's order of doubles: NaN is greater than every number
    sum       of the values as doubles, added in the order of the rows

A column without any value is left out. Where a column has values, but none in a minute, n
is 0, and the others are what adding changes nothing: min NaN, max -infinity, sum 0. The
native twin is gputel._native.minutes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gputel.rows import MinuteStatistics

MINUTE_NS: Final = 60_000_000_000


def minute_statistics(
    time_ns: npt.NDArray[np.int64],
    columns: Sequence[npt.NDArray[np.generic]],
    valid: npt.NDArray[np.uint8],
) -> MinuteStatistics:
    """Of n rows; arrays as in `gputel.batch.Batch`. ValueError: shapes that contradict."""
    rows = len(time_ns)
    if valid.shape != (len(columns), (rows + 7) // 8) or any(len(c) != rows for c in columns):
        raise ValueError(f"{rows} times, {len(columns)} columns, valid of shape {valid.shape}")
    of_rows = [time // MINUTE_NS for time in time_ns.tolist()]
    minutes = sorted(set(of_rows))
    at = {minute: i for i, minute in enumerate(minutes)}
    bits = np.unpackbits(valid, axis=1, count=rows, bitorder="little")
    present = [j for j in range(len(columns)) if bits[j].any()]
    shape = (len(minutes), len(present))
    n, total = np.zeros(shape, np.int64), np.zeros(shape)
    low, high = np.full(shape, math.nan), np.full(shape, -math.inf)
    for k, j in enumerate(present):
        for row, value in enumerate(columns[j].astype(np.float64).tolist()):
            if bits[j, row]:
                cell = at[of_rows[row]], k
                n[cell] += 1
                low[cell] = _lesser(value, low[cell])
                high[cell] = _greater(value, high[cell])
                with np.errstate(all="ignore"):
                    total[cell] += value
    minute_ns = np.array(minutes, np.int64) * MINUTE_NS
    return MinuteStatistics(minute_ns, tuple(present), n, low, high, total)


def _lesser(a: Any, b: Any) -> Any:
    return a if math.isnan(b) or a < b else b


def _greater(a: Any, b: Any) -> Any:
    return a if not math.isnan(b) and (math.isnan(a) or a > b) else b
