"""Hot rows: samples as packed rows, into PostgreSQL and back, always as binary COPY.

A row has one field for all its values, which the kernels fill from columns and take apart into
columns (the drawing is in gputel._reference.hot_rows): no value becomes a Python object on its
way, and PostgreSQL has five fields to look at, whatever the set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from gputel.batch import Batch
from gputel.catalog import Metric, MetricSet
from gputel.clock import NS_PER_US
from gputel.errors import RowCorrupt
from gputel.kernels import HotRows, HotStream, RowBlock
from gputel.store import schema
from gputel.store.copying import copy_in

if TYPE_CHECKING:
    from gputel.store.connection import Connection

#: The columns of a hot table, in the order of its COPY stream.
NAMES: Final = ("gpu_id", "time", "epoch", "sequence", "cells")
_EPOCH_2000_US: Final = 946_684_800_000_000
_HEADER_BYTES: Final = 19
_TRAILER_BYTES: Final = 2

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Values = npt.NDArray[np.generic]


class Piece(NamedTuple):
    """n rows to be written: of one GPU, or with the GPU of each, int64[n]."""

    gpu_id: int | Int64s
    epoch: int
    rows: RowBlock | Batch


@dataclass(frozen=True, slots=True)
class Rows:
    """n samples of one GPU and set, with the chosen metrics only.

    time_ns, epoch, sequence: int64[n]; columns and valid: one array[n] a chosen metric.
    """

    time_ns: Int64s
    epoch: Int64s
    sequence: Int64s
    columns: tuple[Values, ...]
    valid: tuple[Bools, ...]

    def __len__(self) -> int:
        return len(self.time_ns)

    def take(self, index: Int64s | Bools | slice) -> Rows:
        """The rows that `index` (positions, mask or slice) names."""
        return Rows(
            self.time_ns[index],
            self.epoch[index],
            self.sequence[index],
            tuple(column[index] for column in self.columns),
            tuple(mask[index] for mask in self.valid),
        )

    def points(self) -> Int64s:
        """int64[n]: how many values each row holds."""
        total = np.zeros(len(self), np.int64)
        for mask in self.valid:
            total += mask
        return total


def from_batch(batch: Batch, epoch: int, metrics: Sequence[Metric]) -> Rows:
    """The chosen metrics of a batch."""
    at = [batch.metric_set.column(metric) for metric in metrics]
    return Rows(
        batch.time_ns,
        np.full(len(batch), epoch, np.int64),
        batch.sequence,
        tuple(batch.columns[i] for i in at),
        tuple(batch.mask(i) for i in at),
    )


def concatenate(pieces: Sequence[Rows]) -> Rows:
    """One after the other; at least one piece."""
    if len(pieces) == 1:
        return pieces[0]
    width = len(pieces[0].columns)
    return Rows(
        np.concatenate([piece.time_ns for piece in pieces]),
        np.concatenate([piece.epoch for piece in pieces]),
        np.concatenate([piece.sequence for piece in pieces]),
        tuple(np.concatenate([piece.columns[i] for piece in pieces]) for i in range(width)),
        tuple(np.concatenate([piece.valid[i] for piece in pieces]) for i in range(width)),
    )


async def write(
    connection: Connection,
    metric_set: MetricSet,
    pieces: Sequence[Piece],
    *,
    skip_present: bool = False,
) -> int:
    """COPY the pieces in one stream; returns how many rows are new.

    `skip_present`: rows that the table holds already are left out, instead of failing.
    """
    stream = HotStream(metric_set.storages)
    for gpu_id, epoch, rows in pieces:
        stream.append(gpu_id, epoch, rows.time_ns, rows.sequence, rows.columns, rows.valid)
    return await copy_in(
        connection, schema.hot_table(metric_set), NAMES, stream, skip_present=skip_present
    )


async def keep_newest(
    connection: Connection,
    metric_set: MetricSet,
    table: str,
    gpu_ids: Sequence[int],
    *,
    distributed: bool,
) -> None:
    """Keep the newest row of each GPU in `table`, where none is kept yet that is newer."""
    fields = ", ".join(NAMES)
    found, new = (", ".join(f"{row}.{name}" for name in NAMES) for row in ("n", "excluded"))
    # Each GPU by one look into the index; but Citus lets no join begin with anything but shards.
    newest = (
        f"(SELECT DISTINCT ON (gpu_id) * FROM {table} WHERE gpu_id = ANY($1::bigint[]) "
        "ORDER BY gpu_id, time DESC, epoch DESC, sequence DESC) AS n "
        if distributed
        else "unnest($1::bigint[]) AS w (gpu_id) "
        f"CROSS JOIN LATERAL (SELECT * FROM {table} t WHERE t.gpu_id = w.gpu_id "
        "ORDER BY t.time DESC, t.epoch DESC, t.sequence DESC LIMIT 1) AS n "
    )
    await connection.execute(
        f"INSERT INTO {schema.newest_table(metric_set)} AS k ({fields}) "
        f"SELECT {found} FROM {newest}"
        f"ON CONFLICT (gpu_id) DO UPDATE SET ({fields}) = ROW ({new}) "
        "WHERE (excluded.time, excluded.epoch, excluded.sequence) > (k.time, k.epoch, k.sequence)",
        gpu_ids,
    )


async def read(
    connection: Connection,
    table: str,
    metric_set: MetricSet,
    metrics: Sequence[Metric],
    where: str,
    arguments: Sequence[object],
    tail: str = "",
) -> Rows:
    """The rows of `table` for which the SQL condition `where` holds, in the order of `tail`.

    Of them the chosen `metrics`, all of `metric_set`. RowCorrupt: a row that gputel did not write.
    """
    _, rows = await read_gpus(connection, table, metric_set, metrics, where, arguments, tail)
    return rows


async def read_gpus(
    connection: Connection,
    table: str,
    metric_set: MetricSet,
    metrics: Sequence[Metric],
    where: str,
    arguments: Sequence[object],
    tail: str = "",
) -> tuple[Int64s, Rows]:
    """As `read`, of several GPUs: (int64[n], the GPU of each row; the rows)."""
    reader = HotRows(metric_set.storages, [metric_set.column(metric) for metric in metrics])

    refused: ValueError | None = None

    async def take(block: bytes) -> None:
        nonlocal refused
        try:
            if refused is None:
                reader.feed(block)
        except ValueError as error:
            # The rest is let pass: raised here, it would cost the connection.
            refused = error

    await connection.copy_from_query(
        f"SELECT {', '.join(NAMES)} FROM {table} WHERE {where} {tail}",
        *arguments,
        output=take,
        format="binary",
    )
    if refused is not None:
        raise RowCorrupt(f"{table}: {refused}") from refused
    found = reader.finish()
    rows = Rows(found.time_ns, found.epoch, found.sequence, found.columns, found.valid)
    return found.gpu_id, rows


def copied(stream: memoryview, dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
    """The rows of a binary COPY stream, all of them of the form `dtype`."""
    body = len(stream) - _HEADER_BYTES - _TRAILER_BYTES
    assert body % dtype.itemsize == 0, "every row has the same width"
    return np.frombuffer(stream, dtype, body // dtype.itemsize, _HEADER_BYTES)


def times_ns(timestamps: npt.NDArray[np.generic]) -> Int64s:
    """PostgreSQL's timestamps, big-endian us since 2000, as ns since 1970."""
    return cast(Int64s, (timestamps.astype("<i8") + _EPOCH_2000_US) * NS_PER_US)
