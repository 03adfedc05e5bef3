"""The minutes of what is in `sample_chunk`, and their way into `rollup_1m`.

A row is what one chunk adds to one minute of a GPU, with all of its metrics. Rows are only
added; reading sums them up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from gputel.kernels import CopyStream, FieldType, MinuteStatistics, minute_statistics
from gputel.store.copying import copy_in

if TYPE_CHECKING:
    from gputel.batch import Batch
    from gputel.catalog import MetricSet
    from gputel.store.connection import Connection

_FIELDS: Final[dict[str, FieldType]] = {
    "gpu_id": "int8",
    "minute": "timestamptz_ns",
    "metric_ids": "int2[]",
    "n": "int4[]",
    "min": "float8[]",
    "max": "float8[]",
    "sum": "float8[]",
}


def minutes_of(batch: Batch) -> MinuteStatistics:
    """What the samples of a batch come to."""
    return minute_statistics(batch.time_ns, batch.columns, batch.valid)


class Minutes:
    """Rows on their way into `rollup_1m`."""

    def __init__(self) -> None:
        self._stream = CopyStream(tuple(_FIELDS.values()))
        # Chunks of one kind of GPU have the same metrics.
        self._ids: dict[tuple[int, tuple[int, ...]], npt.NDArray[np.int64]] = {}

    def append(self, gpu_id: int, metric_set: MetricSet, minutes: MinuteStatistics) -> None:
        """What one chunk adds; `minutes.columns` are those of `metric_set`."""
        if not minutes.columns:
            return
        key = (metric_set.id, minutes.columns)
        ids = self._ids.get(key)
        if ids is None:
            ids = np.array([metric_set.metrics[j].id for j in minutes.columns])
            self._ids[key] = ids
        self._stream.append(
            len(minutes.minute_ns),
            (
                gpu_id,
                minutes.minute_ns,
                ids,
                minutes.n,
                minutes.min,
                minutes.max,
                minutes.sum,
            ),
        )

    async def write(self, connection: Connection) -> None:
        """COPY them all."""
        await copy_in(connection, "rollup_1m", tuple(_FIELDS), self._stream)
