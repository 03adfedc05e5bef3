"""Chunks in `sample_chunk`: the bytes of the wire, with what is needed to find them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gputel.kernels import CopyStream, FieldType, MinuteStatistics
from gputel.store.copying import copy_in
from gputel.store.rollup import Rollups, minutes_of
from gputel.store.times import to_datetime

if TYPE_CHECKING:
    from gputel.batch import Batch
    from gputel.catalog import MetricSet
    from gputel.store.connection import Connection

_FIELDS: Final[dict[str, FieldType]] = {
    "gpu_id": "int8",
    "set_id": "int2",
    "epoch": "int8",
    "t0": "timestamptz_ns",
    "t1": "timestamptz_ns",
    "samples": "int4",
    "first_sequence": "int8",
    "payload": "bytea",
}


@dataclass(frozen=True, slots=True)
class Chunk:
    """One row of `sample_chunk`, but for its GPU, and the minutes of its samples."""

    metric_set: MetricSet
    epoch: int
    t0_ns: int
    t1_ns: int
    samples: int
    first_sequence: int
    payload: bytes
    minutes: MinuteStatistics

    @classmethod
    def of(cls, epoch: int, batch: Batch, t0_ns: int, t1_ns: int, payload: bytes) -> Chunk:
        """The row for a batch, whose samples lie from `t0_ns` to `t1_ns`, and its encoding."""
        return cls(
            batch.metric_set,
            epoch,
            t0_ns,
            t1_ns,
            len(batch),
            int(batch.sequence[0]),
            payload,
            minutes_of(batch),
        )


@dataclass(slots=True)
class Written:
    """Chunks that are new, and their samples."""

    chunks: int = 0
    samples: int = 0


async def write(
    connection: Connection,
    items: Sequence[tuple[int, Chunk]],
    *,
    skip_present: bool = False,
    counted: bool = False,
) -> Written:
    """COPY the chunks of (gpu_id, chunk) with their minutes and hours, a stream for each table.

    `skip_present`: chunks whose key the table holds already are left out, instead of failing.
    `counted`: minutes and hours hold these samples already.
    """
    stream = CopyStream(tuple(_FIELDS.values()))
    rollups = Rollups()
    written = Written()
    for gpu_id, chunk in items:
        if skip_present and await _present(connection, gpu_id, chunk):
            continue
        stream.append(
            1,
            (
                gpu_id,
                chunk.metric_set.id,
                chunk.epoch,
                chunk.t0_ns,
                chunk.t1_ns,
                chunk.samples,
                chunk.first_sequence,
                chunk.payload,
            ),
        )
        if not counted:
            rollups.append(gpu_id, chunk.metric_set, chunk.minutes)
        written.chunks += 1
        written.samples += chunk.samples
    await copy_in(connection, "sample_chunk", tuple(_FIELDS), stream)
    await rollups.write(connection)
    return written


async def _present(connection: Connection, gpu_id: int, chunk: Chunk) -> bool:
    found = await connection.fetchval(
        "SELECT 1 FROM sample_chunk WHERE gpu_id = $1 AND set_id = $2 AND t0 = $3 "
        "AND epoch = $4 AND first_sequence = $5",
        gpu_id,
        chunk.metric_set.id,
        to_datetime(chunk.t0_ns),
        chunk.epoch,
        chunk.first_sequence,
    )
    return found is not None
