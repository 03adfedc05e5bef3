"""What benchmarks.copy stores, and what PostgreSQL must say of it afterwards."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gputel import wire
from gputel.batch import DTYPES, Batch
from gputel.catalog import SET_BY_CADENCE, Cadence
from gputel.clock import NS_PER_S
from gputel.kernels import HotStream, hot_places
from gputel.store import cells
from gputel.store.frames import Message

if TYPE_CHECKING:
    from gputel.store.connection import Connection

METRIC_SET = SET_BY_CADENCE[Cadence.FAST]
START_NS = 1_760_000_000 * NS_PER_S
GPUS_PER_NODE = 8
VARIANTS = 8  # distinct series; GPUs of one variant carry the same values

_SUMS = ", ".join(f"sum({cells.in_sql(metric, 'h')})" for metric in METRIC_SET.metrics)
HOT_FACTS = f"SELECT count(*), {_SUMS} FROM sample_hot_fast h"
_COLUMN_SUMS = ", ".join(f"sum({metric.name})::float8" for metric in METRIC_SET.metrics)
COLUMNS_FACTS = f"SELECT count(*), {_COLUMN_SUMS} FROM sample_columns"
CHUNK_FACTS = (
    "SELECT count(*), sum(samples), (SELECT sum(each) FROM rollup_1m, unnest(n) AS each), "
    "(SELECT sum(each) FROM rollup_1m, unnest(sum) AS each), "
    "md5(string_agg(md5(payload), '' ORDER BY md5(payload))) FROM sample_chunk"
)

Facts = list[float | str]


@dataclass(frozen=True)
class Load:
    """`rows` samples, `step_ns` apart, in each chunk; `chunks` chunks of each of `gpus` GPUs."""

    gpus: int
    rows: int
    chunks: int
    step_ns: int

    @property
    def samples(self) -> int:
        """Values of one metric each."""
        return self.gpus * self.rows * self.chunks * len(METRIC_SET.metrics)

    def batch(self, variant: int, number: int) -> Batch:
        """Chunk `number` of a GPU of `variant`: counters and gauges in eighths,
        whose sums are exact."""
        rng = np.random.default_rng((variant, number))
        ticks = np.arange(number * self.rows, (number + 1) * self.rows, dtype=np.int64)
        columns = []
        for j, storage in enumerate(METRIC_SET.storages):
            steps = rng.integers(0, 1000, self.rows)
            values = (number * 1000 + j) * 1000 + (np.cumsum(steps) if j % 2 else steps)
            columns.append((values / 8 if storage in "fd" else values).astype(DTYPES[storage]))
        bits = np.packbits(np.ones(self.rows, np.uint8), bitorder="little")
        valid = np.tile(bits, (len(columns), 1))
        return Batch(METRIC_SET, START_NS + ticks * self.step_ns, ticks, tuple(columns), valid)

    def batches(self) -> list[tuple[int, Batch]]:
        """(GPU from 0, batch), in the order of time."""
        by_variant = [
            [self.batch(variant, number) for number in range(self.chunks)]
            for variant in range(VARIANTS)
        ]
        return [
            (gpu, by_variant[gpu % VARIANTS][number])
            for number in range(self.chunks)
            for gpu in range(self.gpus)
        ]

    def messages(self, worker: int, workers: int) -> list[Message]:
        """The frames of every `workers`-th node as a partition of the broker holds them."""
        chunks = [
            [wire.encode_batch(self.batch(variant, number)) for variant in range(VARIANTS)]
            for number in range(self.chunks)
        ]
        found: list[Message] = []
        for number in range(self.chunks):
            for node in range(worker, self.gpus // GPUS_PER_NODE, workers):
                frame = wire.Frame(
                    f"collector:{node}",
                    1,
                    number + 1,
                    f"node-{node}",
                    START_NS,
                    tuple(
                        wire.GpuChunks(f"GPU-{node}-{i}", (chunks[number][i % VARIANTS],))
                        for i in range(GPUS_PER_NODE)
                    ),
                )
                data = wire.encode_frame(frame)
                found.append(Message(len(found), frame.producer, 1, number + 1, data))
        return found

    def hot_facts(self) -> Facts:
        """What HOT_FACTS and COLUMNS_FACTS must give: rows, and the sum of each metric."""
        totals = [0.0] * len(METRIC_SET.metrics)
        for _, batch in self.batches():
            for j, column in enumerate(batch.columns):
                totals[j] += float(column.sum())
        return [self.gpus * self.chunks * self.rows, *totals]

    def chunk_facts(self) -> Facts:
        """What CHUNK_FACTS must give: chunks, rows, the minutes' counts and sums, all bytes."""
        digests, total = [], 0.0
        for gpu, batch in self.batches():
            if gpu < VARIANTS:
                payload = wire.encode_batch(batch)
                digest = hashlib.md5(payload, usedforsecurity=False).hexdigest()
                digests += [digest] * (self.gpus // VARIANTS)
                total += sum(float(column.sum()) for column in batch.columns)
        every = hashlib.md5("".join(sorted(digests)).encode(), usedforsecurity=False)
        chunks = self.gpus * self.chunks
        values = self.samples
        return [
            chunks,
            chunks * self.rows,
            values,
            total * (self.gpus // VARIANTS),
            every.hexdigest(),
        ]


def packed(batch: Batch) -> list[bytes]:
    """The cells of a hot row of each sample."""
    stream = HotStream(batch.metric_set.storages)
    head_bytes = stream.size_bytes
    stream.append(1, 1, batch.time_ns, batch.sequence, batch.columns, batch.valid)
    row_bytes = (stream.size_bytes - head_bytes) // len(batch)
    cells_bytes = hot_places(batch.metric_set.storages)[-1]
    ends = [head_bytes + (i + 1) * row_bytes for i in range(len(batch))]
    data = stream.finish()
    return [bytes(data[end - cells_bytes : end]) for end in ends]


async def facts(session: Connection, query: str) -> Facts:
    """The answer to HOT_FACTS, COLUMNS_FACTS or CHUNK_FACTS."""
    row = await session.fetchrow(query)
    assert row is not None
    return [value if isinstance(value, str) else float(value or 0) for value in row]
