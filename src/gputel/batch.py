"""Immutable columns: the samples of one GPU and one metric set, as every later stage sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gputel import limits
from gputel.catalog import MetricSet

DTYPES: dict[str, np.dtype[Any]] = {
    "f": np.dtype("<f4"),
    "d": np.dtype("<f8"),
    "q": np.dtype("<i8"),
    "Q": np.dtype("<u8"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """n samples of one GPU. Whoever receives a batch must not change its arrays.

    time_ns    int64[n]            wall time of each sample, ns since the epoch, a multiple of
                                   1,000 (PostgreSQL keeps microseconds); any order
    sequence   int64[n]            row number of this GPU and set since the epoch of its
                                   producer began; a gap is a counted loss
    columns    one array[n] a metric of `metric_set`, in its order and storage type
    valid      uint8[c, ceil(n/8)] bit i (LSB first) of row j: is columns[j][i] a value?
                                   The value of an invalid cell is 0 and means nothing.
    """

    metric_set: MetricSet
    time_ns: npt.NDArray[np.int64]
    sequence: npt.NDArray[np.int64]
    columns: tuple[npt.NDArray[np.generic], ...]
    valid: npt.NDArray[np.uint8]

    def __post_init__(self) -> None:
        n = len(self.time_ns)
        assert 0 < n <= limits.CHUNK_SAMPLES_MAX
        assert self.sequence.shape == (n,)
        assert len(self.columns) == len(self.metric_set.metrics)
        assert self.valid.shape == (len(self.columns), (n + 7) // 8)

    def __len__(self) -> int:
        return len(self.time_ns)

    def mask(self, column: int) -> npt.NDArray[np.bool_]:
        """bool[n]: where `column` holds a value."""
        bits = np.unpackbits(self.valid[column], count=len(self), bitorder="little")
        return bits.astype(np.bool_)
