"""What both codecs, the native one and its readable twin, are given and give back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gputel import limits
from gputel.rows import check_storages

METRIC_ID_MAX = 2**16 - 1
SET_ID_MAX = 2**16 - 1
#: Chunks of so few rows are put together before they are stored.
SMALL_SAMPLES_MAX = limits.CHUNK_DIRECT_SAMPLES_MIN - 1

Array = npt.NDArray[np.generic]
Bits = npt.NDArray[np.uint8]

STORAGE_DTYPES: dict[str, np.dtype[Any]] = {
    storage: np.dtype(f"<{code}")
    for storage, code in zip("fdqQ", ("f4", "f8", "i8", "u8"), strict=True)
}


class ChunkHeader(NamedTuple):
    """What a chunk says of itself before its values."""

    set_id: int
    samples: int
    t0_ns: int  # earliest
    t1_ns: int  # latest
    first_sequence: int  # of the first row
    metric_ids: tuple[int, ...]


class DecodedChunk(NamedTuple):
    """A chunk's columns; arrays as in `gputel.batch.Batch`, only the columns it contains."""

    set_id: int
    metric_ids: tuple[int, ...]
    storages: str
    time_ns: npt.NDArray[np.int64]
    sequence: npt.NDArray[np.int64]
    columns: tuple[Array, ...]
    valid: Bits


class RowBlock(NamedTuple):
    """n rows of one metric set, of any GPUs; arrays as in `gputel.batch.Batch`."""

    time_ns: npt.NDArray[np.int64]
    sequence: npt.NDArray[np.int64]
    columns: tuple[Array, ...]
    valid: Bits


def check_layout(set_id: int, metric_ids: Sequence[int], storages: str) -> None:
    """ValueError: what is said of a metric set contradicts itself."""
    check_storages(storages)
    if not 0 <= set_id <= SET_ID_MAX:
        raise ValueError(f"set id {set_id} is outside 0 to {SET_ID_MAX}")
    if len(metric_ids) != len(storages):
        raise ValueError(f"{len(metric_ids)} ids, storages {storages!r}")
    if len(set(metric_ids)) != len(metric_ids):
        raise ValueError("a metric id occurs twice")
    if not all(0 < metric_id <= METRIC_ID_MAX for metric_id in metric_ids):
        raise ValueError(f"a metric id is outside 1 to {METRIC_ID_MAX}")


def check_chunk_arguments(
    set_id: int,
    metric_ids: Sequence[int],
    storages: str,
    time_ns: npt.NDArray[np.int64],
    sequence: npt.NDArray[np.int64],
    columns: Sequence[Array],
    valid: Bits,
) -> None:
    """ValueError: what `encode_chunk` is given contradicts itself."""
    check_storages(storages)
    n = len(time_ns)
    if not 1 <= n <= limits.CHUNK_SAMPLES_MAX:
        raise ValueError(f"{n} samples; a chunk holds 1 to {limits.CHUNK_SAMPLES_MAX}")
    if not 0 <= set_id <= SET_ID_MAX:
        raise ValueError(f"set id {set_id} is outside 0 to {SET_ID_MAX}")
    if not len(metric_ids) == len(columns) == len(storages):
        raise ValueError(f"{len(metric_ids)} ids, {len(columns)} columns, storages {storages!r}")
    if len(set(metric_ids)) != len(metric_ids):
        raise ValueError("a metric id occurs twice")
    if not all(0 < metric_id <= METRIC_ID_MAX for metric_id in metric_ids):
        raise ValueError(f"a metric id is outside 1 to {METRIC_ID_MAX}")
    for name, array in (("times", time_ns), ("sequences", sequence)):
        if array.shape != (n,) or array.dtype != np.int64:
            raise ValueError(f"{name} are {array.dtype}{array.shape}, not int64[{n}]")
    if valid.shape != (len(columns), (n + 7) // 8) or valid.dtype != np.uint8:
        raise ValueError(
            f"valid is {valid.dtype}{valid.shape}, not uint8[{len(columns)}, {(n + 7) // 8}]"
        )
    for j, (storage, column) in enumerate(zip(storages, columns, strict=True)):
        if column.shape != (n,) or column.dtype != STORAGE_DTYPES[storage]:
            raise ValueError(f"column {j} is {column.dtype}{column.shape}, not {storage}[{n}]")
