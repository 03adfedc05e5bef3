"""The ring in readable Python: rows of gputel.rows in a circle, one producer, one consumer.

    slot      0     1     2     3     4     5     6     7        capacity 8
            +-----+-----+-----+-----+-----+-----+-----+-----+
            |     |     | row | row | row | row |     |     |
            +-----+-----+-----+-----+-----+-----+-----+-----+
                          ^ tail % 8              ^ head % 8

`head` counts the rows ever written, `tail` the rows ever taken; neither goes back, so
head - tail rows are pending. Only the producer moves `head`, only the consumer `tail`, each
after it is done with the rows: that order is all the synchronisation there is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gputel.rows import LATENESS_US_MAX, WhenFull, row_dtype

_INTEGER_RANGES = {"q": (-(2**63), 2**63 - 1), "Q": (0, 2**64 - 1)}
_F32_MAX = float(np.finfo(np.float32).max)


class Ring:
    """A bounded queue of rows between one producing and one consuming thread.

    ValueError: a capacity below 1, or storages that `row_dtype` refuses.
    """

    def __init__(
        self, storages: str, capacity_rows: int, when_full: WhenFull = WhenFull.DROP_NEWEST
    ) -> None:
        if capacity_rows < 1:
            raise ValueError(f"capacity_rows is {capacity_rows}, at least 1 is needed")
        self.storages = storages
        self.when_full = when_full
        self.capacity_rows = capacity_rows
        self.row_dtype = row_dtype(storages)
        self.dropped_rows = 0
        self._rows = np.zeros(capacity_rows, self.row_dtype)
        self._head = 0
        self._tail = 0

    @property
    def pushed_rows(self) -> int:
        """Rows ever taken in."""
        return self._head

    @property
    def pending_rows(self) -> int:
        """Rows waiting for the consumer."""
        return self._head - self._tail

    @property
    def free_rows(self) -> int:
        """Rows that fit now."""
        return self.capacity_rows - self.pending_rows

    def push(
        self,
        time_ns: int,
        gpu: int,
        sequence: int,
        lateness_us: int,
        values: Sequence[int | float | None],
    ) -> bool:
        """Write one row; None is a missing value, NaN is a value. False when the ring is full.

        A lateness above 2**32 - 1 us is written as that. ValueError: not one value a column.
        TypeError, OverflowError: a number that its field can't hold, with the field's name.
        """
        row = np.zeros(1, self.row_dtype)
        row["time_ns"] = _integer("time_ns", time_ns, -(2**63), 2**63 - 1)
        row["gpu"] = _integer("gpu", gpu, 0, 2**32 - 1)
        row["sequence"] = _integer("sequence", sequence, -(2**63), 2**63 - 1)
        lateness_us = _integer("lateness_us", lateness_us, 0, 2**64 - 1)
        row["lateness_us"] = min(lateness_us, LATENESS_US_MAX)
        if len(values) != len(self.storages):
            raise ValueError(f"{len(values)} values for {len(self.storages)} columns")
        valid = 0
        for j, (storage, value) in enumerate(zip(self.storages, values, strict=True)):
            if value is None:
                continue
            valid |= 1 << j
            row[f"c{j}"] = _cell(j, storage, value)
        row["valid"] = valid
        return self.push_rows(row) == 1

    def push_rows(self, rows: npt.NDArray[np.void]) -> int:
        """Write as many of `rows` (of `row_dtype`, one dimension) as fit; return how many.

        What does not fit is dropped and counted, or left to the caller under BLOCK.
        TypeError: another dtype or shape.
        """
        if rows.dtype != self.row_dtype or rows.ndim != 1:
            raise TypeError(f"rows are {rows.dtype}[{rows.ndim}d], not a row_dtype vector")
        taken = min(len(rows), self.free_rows)
        slots = (self._head + np.arange(taken)) % self.capacity_rows
        self._rows[slots] = rows[:taken]
        self._head += taken
        if self.when_full is WhenFull.DROP_NEWEST:
            self.dropped_rows += len(rows) - taken
        return taken

    def peek(self, rows_max: int) -> npt.NDArray[np.void]:
        """The consumer's side: a copy of up to `rows_max` pending rows, oldest first."""
        count = min(self.pending_rows, max(rows_max, 0))
        rows: npt.NDArray[np.void] = self._rows[
            (self._tail + np.arange(count)) % self.capacity_rows
        ]
        return rows

    def release(self, rows: int) -> None:
        """The consumer's side: give the oldest `rows` slots back to the producer."""
        assert 0 <= rows <= self.pending_rows
        self._tail += rows


def _integer(name: str, value: object, low: int, high: int) -> int:
    if not hasattr(value, "__index__"):
        raise TypeError(f"{name}: {value!r} is no integer")
    number = int(value.__index__())
    if not low <= number <= high:
        raise OverflowError(f"{name}: {number} is outside {low} to {high}")
    return number


def _cell(column: int, storage: str, value: float) -> float:
    name = f"column {column} ({storage})"
    if storage in _INTEGER_RANGES:
        return _integer(name, value, *_INTEGER_RANGES[storage])
    try:
        number = float(value)
    except OverflowError:
        raise OverflowError(f"{name}: {value} is too large") from None
    except (TypeError, ValueError):
        raise TypeError(f"{name}: {value!r} is no number") from None
    if storage == "f" and math.isfinite(number) and abs(number) > _F32_MAX:
        raise OverflowError(f"{name}: {number} is too large")
    return number
