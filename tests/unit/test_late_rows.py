"""Late rows: what of a piece is in a frozen range becomes chunks, all else stays as it is."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from gputel import wire
from gputel.batch import DTYPES
from gputel.catalog import SET_BY_CADENCE, Cadence
from gputel.clock import NS_PER_S
from gputel.kernels import RowBlock
from gputel.store import late, schema
from gputel.store.hot import Piece
from gputel.store.times import DAY_NS, MINUTE_NS

SET = SET_BY_CADENCE[Cadence.MEDIUM]
TABLE = schema.hot_table(SET)
START_NS = 1_760_000_000_000_000_000 // DAY_NS * DAY_NS
SPAN_NS = 2 * DAY_NS

Cell = tuple[int, int, int, int, int, bytes]  # GPU, epoch, time, sequence, column, value


def piece_of(gpus: int, n: int, random: np.random.Generator) -> Piece:
    """Rows of some GPUs over two days, a third of their values missing."""
    time_ns = START_NS + np.sort(random.integers(0, SPAN_NS // 1000, n)) * 1000
    mask = random.random((len(SET.metrics), n)) > 1 / 3
    columns = tuple(
        np.where(of, random.integers(0, 1000, n), 0).astype(DTYPES[metric.storage.value])
        for metric, of in zip(SET.metrics, mask, strict=True)
    )
    rows = RowBlock(
        time_ns,
        random.permutation(n).astype(np.int64),
        columns,
        np.packbits(mask, axis=1, bitorder="little"),
    )
    gpu_id: Any = random.integers(1, gpus + 1, n) if gpus > 1 else 7
    return Piece(gpu_id, int(random.integers(1, 4)), rows)


def cells_of(gpu_id: Any, epoch: int, rows: Any) -> Counter[Cell]:
    n = len(rows.time_ns)
    gpus = np.broadcast_to(gpu_id, n)
    valid = np.unpackbits(rows.valid, axis=1, count=n, bitorder="little")
    return Counter(
        (int(gpus[i]), epoch, int(rows.time_ns[i]), int(rows.sequence[i]), j, column[i].tobytes())
        for j, column in enumerate(rows.columns)
        for i in range(n)
        if valid[j, i]
    )


def test_each_value_is_in_one_place() -> None:
    seed = int(np.random.default_rng().integers(2**32))
    print(f"seed {seed}")
    random = np.random.default_rng(seed)
    for _ in range(50):
        sizes = random.integers(1, (5, 60), (3, 2)).tolist()
        pieces = [piece_of(gpus, n, random) for gpus, n in sizes]
        bounds = [
            (START_NS + low * MINUTE_NS, START_NS + (low + span) * MINUTE_NS)
            for low, span in random.integers(0, SPAN_NS // MINUTE_NS, (2, 2)).tolist()
        ]
        hot, chunks = late.divide(SET, pieces, {TABLE: bounds, "another": [(0, 2**63 - 1)]})
        found: Counter[Cell] = Counter()
        for gpu_id, epoch, rows in hot:
            assert not any(((a <= rows.time_ns) & (rows.time_ns < b)).any() for a, b in bounds)
            found += cells_of(gpu_id, epoch, rows)
        for gpu, chunk in chunks:
            batch = wire.decode_chunk(chunk.payload)
            inside = [(a <= batch.time_ns) & (batch.time_ns < b) for a, b in bounds]
            assert np.logical_or(*inside).all()
            assert (chunk.t0_ns, chunk.t1_ns) == (batch.time_ns.min(), batch.time_ns.max())
            assert chunk.t0_ns // DAY_NS == chunk.t1_ns // DAY_NS
            found += cells_of(gpu, chunk.epoch, batch)
        assert found == sum((cells_of(*piece) for piece in pieces), Counter())


@pytest.mark.parametrize("ranges", [{}, {TABLE: []}, {TABLE: [(0, START_NS)]}])
def test_what_is_not_late_is_not_touched(ranges: late.Ranges) -> None:
    pieces = [piece_of(3, 20, np.random.default_rng(1))]
    hot, chunks = late.divide(SET, pieces, ranges)
    assert hot == pieces
    assert hot[0].rows is pieces[0].rows
    assert not chunks


def test_chunks_and_minutes_have_a_place_in_every_minute_of_a_range() -> None:
    bounds = (START_NS, START_NS + 3600 * NS_PER_S)
    needs = late.needed_partitions({TABLE: [bounds]})
    assert needs.keys() == {"sample_chunk", "rollup_1m"}
    for (times,) in needs.values():
        assert times.tolist() == list(range(*bounds, MINUTE_NS))
    assert late.needed_partitions({}) == {"sample_chunk": [], "rollup_1m": []}
