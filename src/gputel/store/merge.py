"""Rows of several sets in one order, cut after a number of points.

The order of points is total: time, metric set, epoch, sequence, metric id. A cursor is the
last point handed out, so that the next page begins exactly behind it, equal times or not.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from gputel.catalog import Metric, MetricSet
from gputel.clock import NS_PER_US
from gputel.errors import QueryInvalid
from gputel.store.hot import Rows

I64_MIN: Final = -(2**63)
_CURSOR: Final = struct.Struct(">BqqHqqH")
_CURSOR_VERSION: Final = 1


class RowKey(NamedTuple):
    """A row's place among those of its GPU and set."""

    time_ns: int
    epoch: int
    sequence: int


class Cursor(NamedTuple):
    """The last point handed out of a GPU's telemetry."""

    gpu_id: int
    time_ns: int
    set_id: int
    epoch: int
    sequence: int
    metric_id: int

    def encode(self) -> str:
        """Opaque text, safe in a URL."""
        packed = _CURSOR.pack(_CURSOR_VERSION, *self)
        return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()

    @classmethod
    def decode(cls, text: str, gpu_id: int) -> Cursor:
        """QueryInvalid: not a cursor, or one of another GPU."""
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
            version, *rest = _CURSOR.unpack(raw)
        except (binascii.Error, struct.error, ValueError):
            raise QueryInvalid("cursor", "not a cursor that this API gave") from None
        cursor = cls(*rest)
        if version != _CURSOR_VERSION or cursor.gpu_id != gpu_id:
            raise QueryInvalid("cursor", "it belongs to another query")
        return cursor

    def first_key(self, set_id: int) -> RowKey:
        """The lowest row of a set that may hold a later point."""
        if set_id < self.set_id:
            return RowKey(self.time_ns + NS_PER_US, I64_MIN, I64_MIN)
        if set_id > self.set_id:
            return RowKey(self.time_ns, I64_MIN, I64_MIN)
        return RowKey(self.time_ns, self.epoch, self.sequence)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The rows read of one set; columns are `metrics`, which ascend in id."""

    metric_set: MetricSet
    metrics: tuple[Metric, ...]
    rows: Rows


def in_order(rows: Rows) -> Rows:
    """Sorted by time, epoch, sequence."""
    return rows.take(np.lexsort((rows.sequence, rows.epoch, rows.time_ns)))


def from_key(rows: Rows, key: RowKey, end_ns: int) -> Rows:
    """Those at or after `key` and before `end_ns`."""
    time, epoch = rows.time_ns, rows.epoch
    same_time = time == key.time_ns
    after = (time > key.time_ns) | (
        same_time & ((epoch > key.epoch) | ((epoch == key.epoch) & (rows.sequence >= key.sequence)))
    )
    mask = after & (time < end_ns)
    return rows if mask.all() else rows.take(mask)


def without_returned(loaded: Loaded, cursor: Cursor) -> Loaded:
    """Hide the points of the cursor's own row that were handed out already."""
    rows = loaded.rows
    own = (
        (rows.time_ns == cursor.time_ns)
        & (rows.epoch == cursor.epoch)
        & (rows.sequence == cursor.sequence)
    )
    valid = tuple(
        mask & ~own if metric.id <= cursor.metric_id else mask
        for metric, mask in zip(loaded.metrics, rows.valid, strict=True)
    )
    hidden = Rows(rows.time_ns, rows.epoch, rows.sequence, rows.columns, valid)
    return Loaded(loaded.metric_set, loaded.metrics, hidden)


def cut(parts: Sequence[Loaded], limit: int, gpu_id: int) -> tuple[list[Loaded], Cursor | None]:
    """The first `limit` points of all parts, whose rows are in order, and where they end.

    None: that was all.
    """
    assert limit >= 1
    points = [part.rows.points() for part in parts]
    if sum(int(counts.sum()) for counts in points) <= limit:
        return list(parts), None
    origin = np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts])
    set_ids = np.array([part.metric_set.id for part in parts])[origin]
    order = np.lexsort(
        (
            np.concatenate([part.rows.sequence for part in parts]),
            np.concatenate([part.rows.epoch for part in parts]),
            set_ids,
            np.concatenate([part.rows.time_ns for part in parts]),
        )
    )
    reached = np.cumsum(np.concatenate(points)[order])
    last = int(np.searchsorted(reached, limit))  # the row in which the limit is reached
    spare = limit - (int(reached[last - 1]) if last else 0)
    whole = np.bincount(origin[order[:last]], minlength=len(parts))
    owner = int(origin[order[last]])
    # Rows are in order within each part, so what is taken of a part is its beginning.
    kept = []
    cursor = None
    for i, part in enumerate(parts):
        if i != owner:
            kept.append(_head(part, int(whole[i])))
            continue
        head, metric = _partial(_head(part, int(whole[i]) + 1), spare)
        kept.append(head)
        rows = head.rows
        cursor = Cursor(
            gpu_id,
            int(rows.time_ns[-1]),
            part.metric_set.id,
            int(rows.epoch[-1]),
            int(rows.sequence[-1]),
            metric.id,
        )
    return kept, cursor


def _head(part: Loaded, n: int) -> Loaded:
    return Loaded(part.metric_set, part.metrics, part.rows.take(slice(n)))


def _partial(part: Loaded, spare: int) -> tuple[Loaded, Metric]:
    """Keep the first `spare` points of the last row; returns the metric of the last one."""
    valid = []
    last: Metric | None = None
    for metric, mask in zip(part.metrics, part.rows.valid, strict=True):
        mask = mask.copy()
        if mask[-1] and spare:
            spare -= 1
            last = metric
        else:
            mask[-1] = False
        valid.append(mask)
    assert last is not None, "the limit falls onto a point of this row"
    rows = part.rows
    shown = Rows(rows.time_ns, rows.epoch, rows.sequence, rows.columns, tuple(valid))
    return Loaded(part.metric_set, part.metrics, shown), last


def by_set(
    metrics: Sequence[Metric], set_of: Mapping[Metric, MetricSet]
) -> list[tuple[MetricSet, tuple[Metric, ...]]]:
    """The metrics of each set, ascending in id."""
    groups: dict[int, list[Metric]] = {}
    for metric in sorted(set(metrics), key=lambda m: m.id):
        groups.setdefault(set_of[metric].id, []).append(metric)
    return [(set_of[group[0]], tuple(group)) for _, group in sorted(groups.items())]
