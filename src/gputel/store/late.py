"""Late rows: those of a frozen partition become chunks, beside what it is sealed into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import asyncpg
import numpy as np
import numpy.typing as npt

from gputel.catalog import MetricSet
from gputel.clock import NS_PER_S, Clock
from gputel.kernels import RowBlock
from gputel.store import schema, seal
from gputel.store.chunks import Chunk
from gputel.store.hot import Bools, Int64s, Piece, Rows
from gputel.store.partitions import Bounds
from gputel.store.times import MINUTE_NS, to_ns

if TYPE_CHECKING:
    from gputel.store.connection import Connection, Store

#: PERF(late): so long no transaction is begun in vain, where more late rows come.
FRESH_S: Final = 1.0

#: Hot table -> what of its time is frozen.
Ranges = Mapping[str, Sequence[Bounds]]


class FrozenRanges:
    """What is frozen, as far as a refusal has told a moment ago."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._ranges: Ranges = {}
        self._until_ns = 0

    def known(self) -> Ranges:
        """For FRESH_S after the last look. What has been dropped since may still be among it."""
        return self._ranges if self._clock.monotonic_ns() < self._until_ns else {}

    async def look(self) -> None:
        """Ask the database, which has refused rows."""
        async with self._store.session() as session:
            self._ranges = await frozen_ranges(session)
        self._until_ns = self._clock.monotonic_ns() + round(FRESH_S * NS_PER_S)


async def frozen_ranges(session: Connection) -> Ranges:
    """Of all partitions that are frozen now."""
    found: dict[str, list[Bounds]] = {}
    for parent, lower, upper in await session.fetch(
        f"SELECT parent, lower, upper FROM {schema.FROZEN_PARTITIONS}"
    ):
        found.setdefault(parent, []).append((to_ns(lower), to_ns(upper)))
    return found


def is_refusal(error: asyncpg.PostgresError) -> bool:
    """Has a frozen partition refused rows?"""
    return error.constraint_name == schema.FROZEN


def needed_partitions(ranges: Ranges) -> dict[str, list[Int64s]]:
    """Times (ns), one in each minute, for which chunks and minutes must have a place."""
    minutes = [
        np.arange(lower, upper, MINUTE_NS, dtype=np.int64)
        for bounds in ranges.values()
        for lower, upper in bounds
    ]
    return {"sample_chunk": minutes, "rollup_1m": minutes}


def divide(
    metric_set: MetricSet, pieces: Sequence[Piece], ranges: Ranges
) -> tuple[list[Piece], list[tuple[int, Chunk]]]:
    """(what of the pieces is still hot, chunks of what is not, each with its GPU)."""
    bounds = ranges.get(schema.hot_table(metric_set), ())
    hot, late = list[Piece](), list[tuple[int, Chunk]]()
    for piece in pieces:
        time_ns = piece.rows.time_ns
        is_late = np.zeros(len(time_ns), np.bool_)
        for lower, upper in bounds:
            is_late |= (lower <= time_ns) & (time_ns < upper)
        if not is_late.any():
            hot.append(piece)
            continue
        gpu_id, rows = _rows(piece, is_late)
        late += seal.chunks_by_gpu(metric_set, gpu_id, rows)
        if not is_late.all():
            gpu_id, rows = _rows(piece, ~is_late)
            valid = np.packbits(np.array(rows.valid), axis=1, bitorder="little")
            block = RowBlock(rows.time_ns, rows.sequence, rows.columns, valid)
            hot.append(Piece(gpu_id, piece.epoch, block))
    return hot, late


def _rows(piece: Piece, of: Bools) -> tuple[Int64s, Rows]:
    """Some rows of a piece, and the GPU of each."""
    rows, count = piece.rows, len(of)
    valid = np.unpackbits(rows.valid, axis=1, count=count, bitorder="little").astype(np.bool_)
    gpu_id: npt.NDArray[np.int64] = np.broadcast_to(np.int64(piece.gpu_id), count)
    return gpu_id[of], Rows(
        rows.time_ns,
        np.full(count, piece.epoch, np.int64),
        rows.sequence,
        tuple(rows.columns),
        tuple(valid),
    ).take(of)
