"""Rows of a GPU as chunks: one epoch each, within a day, of at most SAMPLES_A_CHUNK."""

from __future__ import annotations

import numpy as np
import pytest

from gputel import wire
from gputel.batch import DTYPES
from gputel.catalog import SET_BY_CADENCE, Cadence
from gputel.store.hot import Int64s, Rows
from gputel.store.seal import SAMPLES_A_CHUNK, chunks_of
from gputel.store.times import DAY_NS

METRIC_SET = SET_BY_CADENCE[Cadence.FAST]
STORAGES = METRIC_SET.storages
NOON_NS = 20_000 * DAY_NS + DAY_NS // 2
S = 1_000_000_000


def rows(time_ns: Int64s, epoch: Int64s) -> Rows:
    n = len(time_ns)
    return Rows(
        time_ns,
        epoch,
        np.arange(n),
        tuple(np.arange(n).astype(DTYPES[storage]) + j for j, storage in enumerate(STORAGES)),
        tuple(np.ones(n, np.bool_) for _ in STORAGES),
    )


@pytest.mark.parametrize(
    ("time_ns", "epochs", "expected"),
    [
        ([0, 1, 2], [7, 7, 7], [(7, [0, 1, 2])]),
        # Another epoch between two of one.
        ([0, 1, 2], [7, 8, 7], [(7, [0, 2]), (8, [1])]),
        # The day ends half a day behind noon.
        ([0, 43_199, 43_200], [7, 7, 7], [(7, [0, 1]), (7, [2])]),
        ([43_199, 43_200, 43_201], [8, 7, 7], [(7, [1, 2]), (8, [0])]),
        ([0, 43_200, 43_201], [8, 8, 7], [(7, [2]), (8, [0]), (8, [1])]),
        ([0], [-(2**63)], [(-(2**63), [0])]),
        ([], [], []),
    ],
)
def test_epochs_and_days_are_kept_apart(
    time_ns: list[int], epochs: list[int], expected: list[tuple[int, list[int]]]
) -> None:
    times = NOON_NS + np.array(time_ns, np.int64) * S
    found = list(chunks_of(METRIC_SET, rows(times, np.array(epochs, np.int64))))
    decoded = [wire.decode_chunk(chunk.payload) for chunk in found]
    assert [
        (chunk.epoch, batch.sequence.tolist()) for chunk, batch in zip(found, decoded, strict=True)
    ] == expected
    for chunk, batch in zip(found, decoded, strict=True):
        assert batch.time_ns.tolist() == times[batch.sequence].tolist()
        assert [column.tolist() for column in batch.columns] == [
            (batch.sequence + j).tolist() for j in range(len(STORAGES))
        ]
        assert (chunk.t0_ns, chunk.t1_ns) == (batch.time_ns[0], batch.time_ns[-1])


def test_many_rows_are_many_chunks() -> None:
    n = 2 * SAMPLES_A_CHUNK + 1
    found = list(chunks_of(METRIC_SET, rows(NOON_NS + np.arange(n), np.full(n, 7))))
    assert [chunk.samples for chunk in found] == [SAMPLES_A_CHUNK, SAMPLES_A_CHUNK, 1]
    assert [chunk.first_sequence for chunk in found] == [0, SAMPLES_A_CHUNK, 2 * SAMPLES_A_CHUNK]
