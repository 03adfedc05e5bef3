"""From the records of a file to rows, in steps whose composition depends on the file alone.

    records --(WINDOW_VALUES at a time)--> rows, sorted by time --(cut)--> steps

A row holds the values of one GPU, one metric set and one time. They may stand far apart in
the file (a dump lists all GPUs of one metric, then of the next), so they are gathered in a
window; values of one row that fall into different windows become two rows. A metric that
occurs twice for the same GPU and time gets a second row. So each value is in exactly one
row, whatever the order of the file and wherever a window ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from gputel.catalog import SET_BY_ID, SET_OF, MetricSet
from gputel.clock import NS_PER_S
from gputel.sources.records import Record
from gputel.sources.values import Number

WINDOW_VALUES: Final = 65_536
STEP_ROWS_MAX: Final = 1024
STEP_ROWS_PER_COLUMN_MAX: Final = 64  # rows of one GPU and set
STEP_SPAN_NS: Final = NS_PER_S  # of recorded time; at recorded pace a frame waits this long


class Row(NamedTuple):
    """The values of one GPU and metric set at one time; None where the file has none."""

    time_ns: int
    slot: int
    metric_set: MetricSet
    values: tuple[Number | None, ...]


def steps(records: Iterable[Record]) -> Iterator[list[Row]]:
    """The rows of all records; every list is one step and never empty."""
    window: list[Record] = []
    held = 0
    for record in records:
        window.append(record)
        held += len(record.cells)
        if held >= WINDOW_VALUES:
            yield from _cut(_assemble(window))
            window, held = [], 0
    if window:
        yield from _cut(_assemble(window))


_COLUMN: Final = {metric.id: (home, home.column(metric)) for metric, home in SET_OF.items()}


def _assemble(window: list[Record]) -> list[Row]:
    rows: dict[tuple[int, int, int, int], list[Number | None]] = {}
    repeats: dict[tuple[int, int, int], int] = {}
    for time_ns, slot, cells in window:
        for metric, value in cells:
            metric_set, column = _COLUMN[metric.id]
            cell = (time_ns, slot, metric.id)
            repeat = repeats.get(cell, 0)
            repeats[cell] = repeat + 1
            key = (time_ns, slot, metric_set.id, repeat)
            row = rows.get(key)
            if row is None:
                row = rows[key] = [None] * len(metric_set.metrics)
            row[column] = value
    return [
        Row(time_ns, slot, SET_BY_ID[set_id], tuple(rows[time_ns, slot, set_id, repeat]))
        for time_ns, slot, set_id, repeat in sorted(rows)
    ]


def _cut(rows: list[Row]) -> Iterator[list[Row]]:
    step: list[Row] = []
    counts: dict[tuple[int, int], int] = {}
    for row in rows:
        key = (row.slot, row.metric_set.id)
        if step and (
            len(step) == STEP_ROWS_MAX
            or counts.get(key, 0) == STEP_ROWS_PER_COLUMN_MAX
            or row.time_ns - step[0].time_ns >= STEP_SPAN_NS
        ):
            yield step
            step, counts = [], {}
        step.append(row)
        counts[key] = counts.get(key, 0) + 1
    if step:
        yield step
