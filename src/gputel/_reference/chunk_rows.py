"""The readable twin of ChunkRows: many small chunks of one metric set, as one block of rows.

    chunk of GPU a   | t0 |                     block   | a t0 | x     | y   |
    metrics x, y     | x  | y |        ----->           | b t0 | x     |     |   y is not valid
    chunk of GPU b   | t0 | t1 |                        | b t1 | x     |     |
    metric x         | x  | x  |

A frame of 64 GPUs with a sample each is 64 chunks of one row. As one block they are a few
arrays, and not a few for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gputel._reference.codec import decode_chunk, read_chunk_header
from gputel.chunks import (
    SMALL_SAMPLES_MAX,
    STORAGE_DTYPES,
    DecodedChunk,
    RowBlock,
    check_layout,
)


class ChunkRows:
    """Takes chunks of the metric set that is given; ValueError: it contradicts itself."""

    def __init__(self, set_id: int, metric_ids: Sequence[int], storages: str) -> None:
        check_layout(set_id, metric_ids, storages)
        self._set_id = set_id
        self._storages = storages
        self._ids = tuple(metric_ids)
        self._taken: list[tuple[DecodedChunk, tuple[int, ...]]] = []

    def __len__(self) -> int:
        """Rows taken."""
        return sum(len(chunk.time_ns) for chunk, _ in self._taken)

    def take(self, payload: bytes | memoryview) -> tuple[int, int, int, int] | None:
        """Take the rows of a chunk: (samples, t0 in ns, t1 in ns, bits of the columns it has).

        None, and nothing is taken: the chunk is of another set, has more than
        SMALL_SAMPLES_MAX rows (of both nothing but the header is looked at), or its columns are
        not some of the set's, in its order. ChunkCorrupt, as `decode_chunk`.
        """
        header = read_chunk_header(payload)
        if header.set_id != self._set_id or header.samples > SMALL_SAMPLES_MAX:
            return None
        chunk = decode_chunk(payload)
        places = []
        for metric_id, storage in zip(chunk.metric_ids, chunk.storages, strict=True):
            if metric_id not in self._ids:
                return None
            places.append(self._ids.index(metric_id))
            if self._storages[places[-1]] != storage or places != sorted(places):
                return None
        self._taken.append((chunk, tuple(places)))
        t0_ns, t1_ns = int(chunk.time_ns.min()), int(chunk.time_ns.max())
        return len(chunk.time_ns), t0_ns, t1_ns, sum(1 << place for place in places)

    def block(self) -> RowBlock:
        """All rows taken so far, in that order; at least one."""
        n = len(self)
        assert n
        columns = tuple(np.zeros(n, STORAGE_DTYPES[storage]) for storage in self._storages)
        masks = np.zeros((len(columns), n), np.bool_)
        first = 0
        for chunk, places in self._taken:
            rows = slice(first, first + len(chunk.time_ns))
            for k, place in enumerate(places):
                columns[place][rows] = chunk.columns[k]
                bits = np.unpackbits(chunk.valid[k], count=len(chunk.time_ns), bitorder="little")
                masks[place, rows] = bits
            first = rows.stop
        return RowBlock(
            np.concatenate([chunk.time_ns for chunk, _ in self._taken]),
            np.concatenate([chunk.sequence for chunk, _ in self._taken]),
            columns,
            np.packbits(masks, axis=1, bitorder="little"),
        )
