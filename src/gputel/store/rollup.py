"""Minutes and hours of what is in `sample_chunk`, on their way into the rollup tables.

    rollup_1m         a row is what one chunk adds to one minute of a GPU, with all its metrics
    rollup_1h_part    a row is what one transaction adds to one hour of a GPU, likewise
    rollup_1h         an hour that is over, of a GPU: the sum of its parts (see gputel.store.fold)

Rows of the first two are only added; reading sums them up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from gputel.kernels import CopyStream, FieldType, MinuteStatistics, minute_statistics
from gputel.store.copying import copy_in
from gputel.store.times import HOUR_NS

if TYPE_CHECKING:
    from gputel.batch import Batch
    from gputel.catalog import MetricSet
    from gputel.store.connection import Connection

_MINUTE_FIELDS: Final[dict[str, FieldType]] = {
    "gpu_id": "int8",
    "minute": "timestamptz_ns",
    "metric_ids": "int2[]",
    "n": "int4[]",
    "min": "float8[]",
    "max": "float8[]",
    "sum": "float8[]",
}
_HOUR_FIELDS: Final[dict[str, FieldType]] = {
    "gpu_id": "int8",
    "hour": "timestamptz_ns",
    "metric_ids": "int2[]",
    "n": "int4[]",
    "min": "float8[]",
    "max": "float8[]",
    "sum": "float8[]",
}

_Ids = npt.NDArray[np.int64]


def minutes_of(batch: Batch) -> MinuteStatistics:
    """What the samples of a batch come to."""
    return minute_statistics(batch.time_ns, batch.columns, batch.valid)


class Rollups:
    """Rows on their way into `rollup_1m` and `rollup_1h_part`."""

    def __init__(self) -> None:
        self._minutes = CopyStream(tuple(_MINUTE_FIELDS.values()))
        # Chunks of one kind of GPU have the same metrics.
        self._kinds: dict[tuple[int, tuple[int, ...]], _Kind] = {}

    def append(self, gpu_id: int, metric_set: MetricSet, minutes: MinuteStatistics) -> None:
        """What one chunk adds; `minutes.columns` are those of `metric_set`."""
        if not minutes.columns:
            return
        key = (metric_set.id, minutes.columns)
        kind = self._kinds.get(key)
        if kind is None:
            kind = _Kind(np.array([metric_set.metrics[j].id for j in minutes.columns]))
            self._kinds[key] = kind
        kind.append(gpu_id, minutes)
        self._minutes.append(
            len(minutes.minute_ns),
            (
                gpu_id,
                minutes.minute_ns,
                kind.metric_ids,
                minutes.n,
                minutes.min,
                minutes.max,
                minutes.sum,
            ),
        )

    async def write(self, connection: Connection) -> None:
        """COPY them all."""
        hours = CopyStream(tuple(_HOUR_FIELDS.values()))
        for kind in self._kinds.values():
            kind.copy_hours(hours)
        await copy_in(connection, "rollup_1m", tuple(_MINUTE_FIELDS), self._minutes)
        await copy_in(connection, "rollup_1h_part", tuple(_HOUR_FIELDS), hours)


class _Kind:
    """Minutes of chunks that have values of the same metrics."""

    def __init__(self, metric_ids: _Ids) -> None:
        self.metric_ids = metric_ids
        self._gpu_ids: list[int] = []
        self._minutes: list[MinuteStatistics] = []

    def append(self, gpu_id: int, minutes: MinuteStatistics) -> None:
        self._gpu_ids.append(gpu_id)
        self._minutes.append(minutes)

    def copy_hours(self, stream: CopyStream) -> None:
        """Append one row a GPU and hour, by GPU and hour."""
        counts = [len(minutes.minute_ns) for minutes in self._minutes]
        gpu_id = np.repeat(np.array(self._gpu_ids, np.int64), counts)
        hour_ns = np.concatenate([minutes.minute_ns for minutes in self._minutes])
        hour_ns = hour_ns // HOUR_NS * HOUR_NS
        order = np.lexsort((hour_ns, gpu_id))
        gpu_id, hour_ns = gpu_id[order], hour_ns[order]
        new = (np.diff(gpu_id, prepend=gpu_id[0] - 1) != 0) | (np.diff(hour_ns, prepend=0) != 0)
        first = np.flatnonzero(new)

        def reduced(ufunc: np.ufunc, name: str) -> npt.NDArray[np.generic]:
            cells = np.concatenate([getattr(minutes, name) for minutes in self._minutes])
            found: npt.NDArray[np.generic] = ufunc.reduceat(cells[order], first, axis=0)
            return found

        # PostgreSQL's order of doubles: NaN is the greatest, so that fmin passes it over and
        # maximum keeps it. Infinities of both signs sum up to NaN.
        with np.errstate(all="ignore"):
            values = (
                gpu_id[first],
                hour_ns[first],
                self.metric_ids,
                reduced(np.add, "n"),
                reduced(np.fmin, "min"),
                reduced(np.maximum, "max"),
                reduced(np.add, "sum"),
            )
        stream.append(len(first), values)
