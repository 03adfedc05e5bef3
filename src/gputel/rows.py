"""The row: what a source writes into a ring, one sample of one GPU and one metric set.

Both kernels, the native ones and their readable twins, are built on this layout:

    byte  0        8     12            16      24         32    40         32+8c
          +--------+-----+-------------+-------+----------+-----+--- ... --+
          | time_ns| gpu | lateness_us | valid | sequence | c0  | c1       |
          | i64    | u32 | u32         | u64   | i64      | 8 bytes a cell |
          +--------+-----+-------------+-------+----------+-----+--- ... --+

All numbers are in the machine's own byte order: a row never leaves its process. Bit j of
`valid` says whether cell j holds a value. A cell is a f64, i64 or u64; a f32 takes its low
four bytes and the others mean nothing.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gputel import limits

HEADER_BYTES = 32
CELL_BYTES = 8
LATENESS_US_MAX = 2**32 - 1

_CELL_FORMATS = {"f": "=f4", "d": "=f8", "q": "=i8", "Q": "=u8"}


class WhenFull(Enum):
    """What a ring does with a row it has no room for."""

    DROP_NEWEST = 0  # refuse and count it: for sources that can't wait
    BLOCK = 1  # refuse it uncounted: the caller keeps the row and comes back


class Sealed(NamedTuple):
    """The rows of one GPU as columns; the receiver owns the arrays.

    gpu          its slot
    time_ns      int64[n], in the order of arrival
    sequence     int64[n]
    columns      one array[n] a cell, of its storage's dtype; 0 where not valid
    valid        uint8[c, ceil(n/8)], bit i (LSB first) of row j: is columns[j][i] a value?
    lateness_us  uint32[n]
    """

    gpu: int
    time_ns: npt.NDArray[np.int64]
    sequence: npt.NDArray[np.int64]
    columns: tuple[npt.NDArray[np.generic], ...]
    valid: npt.NDArray[np.uint8]
    lateness_us: npt.NDArray[np.uint32]


class MinuteStatistics(NamedTuple):
    """What k minutes of samples come to; the receiver owns the arrays.

    minute_ns      int64[k], their beginnings, ascending
    columns        the c indices of the columns that have a value, ascending
    n              int64[k, c], how many values
    min, max, sum  float64[k, c]; where n is 0: NaN, -infinity and 0
    """

    minute_ns: npt.NDArray[np.int64]
    columns: tuple[int, ...]
    n: npt.NDArray[np.int64]
    min: npt.NDArray[np.float64]
    max: npt.NDArray[np.float64]
    sum: npt.NDArray[np.float64]


class ReadRows(NamedTuple):
    """n hot rows as columns; the receiver owns the arrays.

    gpu_id, time_ns, epoch, sequence  int64[n]
    columns                           one array[n] a metric, of its storage's dtype; 0 where it
                                      has no value
    valid                             one bool[n] a metric: where it has one
    """

    gpu_id: npt.NDArray[np.int64]
    time_ns: npt.NDArray[np.int64]
    epoch: npt.NDArray[np.int64]
    sequence: npt.NDArray[np.int64]
    columns: tuple[npt.NDArray[np.generic], ...]
    valid: tuple[npt.NDArray[np.bool_], ...]


def row_dtype(storages: str) -> np.dtype[np.void]:
    """The structured dtype of a row; its cells are the fields `c0`, `c1`, ...

    ValueError: a storage code that is none of f, d, q, Q, or more cells than mask bits.
    """
    check_storages(storages)
    names = ["time_ns", "gpu", "lateness_us", "valid", "sequence"]
    formats = ["=i8", "=u4", "=u4", "=u8", "=i8"]
    offsets = [0, 8, 12, 16, 24]
    for j, storage in enumerate(storages):
        names.append(f"c{j}")
        formats.append(_CELL_FORMATS[storage])
        # The low half of a cell comes first on little-endian machines, the only ones we run on.
        offsets.append(HEADER_BYTES + CELL_BYTES * j)
    itemsize = HEADER_BYTES + CELL_BYTES * len(storages)
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": itemsize})


def check_storages(storages: str) -> None:
    """ValueError unless `storages` is 1 to SET_COLUMNS_MAX codes out of f, d, q, Q."""
    unknown = set(storages) - set(_CELL_FORMATS)
    if unknown:
        raise ValueError(f"storages {storages!r}: {sorted(unknown)} are none of f, d, q, Q")
    if not 1 <= len(storages) <= limits.SET_COLUMNS_MAX:
        raise ValueError(f"{len(storages)} columns; 1 to {limits.SET_COLUMNS_MAX} are allowed")
