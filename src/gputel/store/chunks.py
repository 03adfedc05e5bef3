"""Chunks in `sample_chunk`: the bytes of the wire, with what is needed to find them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from gputel.batch import Batch
from gputel.catalog import MetricSet
from gputel.kernels import CopyField, copy_binary
from gputel.store import hot
from gputel.store.times import to_datetime

if TYPE_CHECKING:
    from gputel.store.connection import Connection

COLUMNS: Final = (
    "gpu_id",
    "set_id",
    "epoch",
    "t0",
    "t1",
    "samples",
    "first_sequence",
    "payload",
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """One row of `sample_chunk`."""

    gpu_id: int
    metric_set: MetricSet
    epoch: int
    t0_ns: int
    t1_ns: int
    samples: int
    first_sequence: int
    payload: bytes

    @classmethod
    def of(cls, gpu_id: int, epoch: int, batch: Batch, payload: bytes) -> Chunk:
        """The row for a batch and its encoding."""
        return cls(
            gpu_id,
            batch.metric_set,
            epoch,
            int(batch.time_ns.min()),
            int(batch.time_ns.max()),
            len(batch),
            int(batch.sequence[0]),
            payload,
        )


async def write(
    connection: Connection, items: Sequence[Chunk], *, skip_present: bool = False
) -> Sequence[Chunk]:
    """COPY the chunks in one stream; returns those that are new.

    `skip_present`: chunks whose key the table holds already are left out, instead of failing.
    """
    if skip_present:
        items = [item for item in items if not await _present(connection, item)]
    if not items:
        return items
    fields = [
        CopyField("int8", np.array([item.gpu_id for item in items], np.int64)),
        CopyField("int2", np.array([item.metric_set.id for item in items], np.int64)),
        CopyField("int8", np.array([item.epoch for item in items], np.int64)),
        CopyField("timestamptz_ns", np.array([item.t0_ns for item in items], np.int64)),
        CopyField("timestamptz_ns", np.array([item.t1_ns for item in items], np.int64)),
        CopyField("int4", np.array([item.samples for item in items], np.int64)),
        CopyField("int8", np.array([item.first_sequence for item in items], np.int64)),
        CopyField("bytea", [item.payload for item in items]),
    ]
    stream = copy_binary(len(items), fields)
    await hot.copy_in(connection, "sample_chunk", COLUMNS, stream, len(items), skip_present=False)
    return items


async def _present(connection: Connection, item: Chunk) -> bool:
    found = await connection.fetchval(
        "SELECT 1 FROM sample_chunk WHERE gpu_id = $1 AND set_id = $2 AND t0 = $3 "
        "AND epoch = $4 AND first_sequence = $5",
        item.gpu_id,
        item.metric_set.id,
        to_datetime(item.t0_ns),
        item.epoch,
        item.first_sequence,
    )
    return found is not None
