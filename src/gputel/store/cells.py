"""Where the values of a hot row are in its cells, for SQL and for single rows.

The bytes are drawn in gputel._reference.hot_rows; whole streams are read by gputel.kernels.HotRows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from gputel.catalog import METRIC_SETS, Metric, MetricSet, Storage
from gputel.errors import RowCorrupt
from gputel.kernels import hot_places

#: What the functions in functions/*.sql call a storage; chunks do as well.
STORAGES: Final = {Storage.F32: 0, Storage.F64: 1, Storage.I64: 2, Storage.U64: 3}


class Place(NamedTuple):
    """A metric's cell: its number, which its bit has, too, its first byte, and its form."""

    cell: int
    at: int
    form: struct.Struct


PLACES: Final = {
    metric: Place(number, at, struct.Struct(f">{metric.storage.value}"))
    for metric_set in METRIC_SETS
    for number, (metric, at) in enumerate(
        zip(metric_set.metrics, hot_places(metric_set.storages), strict=False)
    )
}


def has(metric: Metric) -> str:
    """The SQL condition that a hot row has a value of this metric."""
    return f"get_bit(cells, {PLACES[metric].cell}) = 1"


def in_sql(metric: Metric, row: str) -> str:
    """The SQL expression of its value in a hot row as a double; NULL where it has none."""
    cell, at, _ = PLACES[metric]
    return f"gputel_cell({row}.cells, {cell}, {STORAGES[metric.storage]}, {at})"


def exact_in_sql(metric: Metric, row: str) -> str:
    """The same without rounding: a bigint of an i64, a numeric of a u64."""
    cell, at, _ = PLACES[metric]
    if metric.storage is Storage.I64:
        bits = f"gputel_cell_bits({row}.cells, {at})"
        return f"CASE WHEN get_bit({row}.cells, {cell}) = 1 THEN {bits} END"
    if metric.storage is Storage.U64:
        return f"gputel_cell_exact({row}.cells, {cell}, {STORAGES[metric.storage]}, {at})"
    return in_sql(metric, row)


def value_in(cells: bytes, metric: Metric) -> float | None:
    """Its value in one row; None: it has none. RowCorrupt: these are no cells of its set."""
    cell, at, form = PLACES[metric]
    try:
        if not cells[cell >> 3] >> (cell & 7) & 1:
            return None
        value: float = form.unpack_from(cells, at)[0]
    except (IndexError, struct.error):
        raise RowCorrupt(f"{len(cells)} bytes of cells, and {metric.name} is not there") from None
    return value


def reader(
    metric_set: MetricSet, metrics: Sequence[Metric]
) -> Callable[[bytes], list[float | None]]:
    """What reads the values of `metrics`, all of `metric_set`, in one row; as `value_in`.

    PERF(cells): all twenty cells by one call cost as much as two by a call each.
    """
    numbers = [PLACES[metric].cell for metric in metrics]
    first = hot_places("")[0]
    whole = struct.Struct(f">{metric_set.storages}")

    def read(cells: bytes) -> list[float | None]:
        # Or a row of before the set had them all.
        if len(numbers) <= 2 or len(cells) < first + whole.size:
            return [value_in(cells, metric) for metric in metrics]
        valid = int.from_bytes(cells[:first], "little")
        values = whole.unpack_from(cells, first)
        return [values[number] if valid >> number & 1 else None for number in numbers]

    return read
