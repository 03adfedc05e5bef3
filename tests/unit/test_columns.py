"""The column batcher: one suite over the native one and its twin."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gputel import limits
from gputel.kernels import row_dtype


def sweeps(gpus: int, count: int, storages: str = "qf") -> npt.NDArray[np.void]:
    """`count` sweeps of `gpus` GPUs; cell 0 is 1000 gpu + sweep, cell 1 is never valid."""
    rows = np.zeros(gpus * count, row_dtype(storages))
    rows["gpu"] = np.tile(np.arange(gpus), count)
    rows["sequence"] = np.repeat(np.arange(count), gpus)
    rows["time_ns"] = rows["sequence"] * 1000
    rows["lateness_us"] = rows["gpu"]
    rows["valid"] = ~np.uint64(2)
    rows["c0"] = 1000 * rows["gpu"].astype(np.int64) + rows["sequence"]
    rows["c1"] = 9.5
    return rows


def test_rows_become_columns_a_gpu(kernels: tuple[Any, Any]) -> None:
    ring, columns = kernels[0]("qf", 100), kernels[1]("qf", 3, 20)
    ring.push_rows(sweeps(3, 11))
    assert columns.drain(ring) == 33
    assert (columns.pending_rows, columns.fullest, columns.gpus) == (33, 11, 3)
    sealed = columns.seal()
    assert [one.gpu for one in sealed] == [0, 1, 2]
    for one in sealed:
        assert one.sequence.tolist() == list(range(11))
        assert one.time_ns.tolist() == [1000 * i for i in range(11)]
        assert one.lateness_us.tolist() == [one.gpu] * 11
        assert one.columns[0].tolist() == [1000 * one.gpu + i for i in range(11)]
        assert one.columns[1].tolist() == [0.0] * 11, "an invalid cell is 0"
        assert one.valid.tolist() == [[0xFF, 0b111], [0, 0]], "no bits beyond n"
        dtypes = [one.time_ns.dtype, one.sequence.dtype, one.lateness_us.dtype, one.valid.dtype]
        assert dtypes == [np.int64, np.int64, np.uint32, np.uint8]
        assert [column.dtype for column in one.columns] == ["<i8", "<f4"]
        assert all(column.flags.c_contiguous for column in one.columns)
    assert columns.seal() == []
    assert (columns.pending_rows, columns.fullest) == (0, 0)


def test_sealed_arrays_are_the_receivers(kernels: tuple[Any, Any]) -> None:
    ring, columns = kernels[0]("qf", 100), kernels[1]("qf", 1, 8)
    ring.push_rows(sweeps(1, 4))
    columns.drain(ring)
    (first,) = columns.seal()
    ring.push_rows(sweeps(1, 8)[4:])
    columns.drain(ring)
    (second,) = columns.seal()
    assert first.sequence.tolist() == [0, 1, 2, 3]
    assert first.columns[0].tolist() == [0, 1, 2, 3]
    assert second.sequence.tolist() == [4, 5, 6, 7]
    assert all(array.flags.writeable for array in (first.time_ns, first.valid, *first.columns))


def test_drain_stops_before_a_full_gpu_and_goes_on_after_seal(kernels: tuple[Any, Any]) -> None:
    ring, columns = kernels[0]("qf", 100), kernels[1]("qf", 2, 4)
    ring.push_rows(sweeps(2, 10))
    seen: list[list[int]] = [[], []]
    for _ in range(10):
        if not columns.drain(ring):
            break
        assert columns.fullest == 4 or ring.pending_rows == 0
        for one in columns.seal():
            seen[one.gpu].extend(one.sequence.tolist())
    assert seen == [list(range(10))] * 2


def test_rows_max_bounds_a_drain(kernels: tuple[Any, Any]) -> None:
    ring, columns = kernels[0]("qf", 100), kernels[1]("qf", 2, 50)
    ring.push_rows(sweeps(2, 10))
    assert [columns.drain(ring, 7), columns.drain(ring, 0), columns.drain(ring, -1)] == [7, 0, 0]
    assert (ring.pending_rows, columns.pending_rows) == (13, 7)


def test_a_row_of_an_unknown_gpu_waits_for_grow(kernels: tuple[Any, Any]) -> None:
    ring, columns = kernels[0]("qf", 10), kernels[1]("qf", 1, 8)
    ring.push_rows(sweeps(3, 1))
    with pytest.raises(ValueError, match=r"slot 1; there are 1, grow first"):
        columns.drain(ring)
    assert (columns.pending_rows, ring.pending_rows) == (1, 2)
    columns.grow(3)
    columns.grow(2)
    assert columns.gpus == 3
    assert columns.drain(ring) == 2
    assert [one.columns[0].tolist() for one in columns.seal()] == [[0], [1000], [2000]]


def test_only_gpus_with_rows_are_sealed(kernels: tuple[Any, Any]) -> None:
    ring, columns = kernels[0]("q", 10), kernels[1]("q", 100, 2)
    ring.push(1, 70, 0, 0, (5,))
    ring.push(1, 9, 0, 0, (6,))
    columns.drain(ring)
    assert [(one.gpu, one.columns[0].tolist()) for one in columns.seal()] == [(9, [6]), (70, [5])]


@pytest.mark.parametrize(
    ("storages", "gpus", "samples"),
    [("", 1, 1), ("z", 1, 1), ("q", -1, 1), ("q", limits.GPUS_PER_COLLECTOR_MAX + 1, 1),
     ("q", 1, 0), ("q", 1, limits.CHUNK_SAMPLES_MAX + 1)],
)  # fmt: skip
def test_sizes_are_checked(
    kernels: tuple[Any, Any], storages: str, gpus: int, samples: int
) -> None:
    with pytest.raises(ValueError, match=r"columns|storages|GPUs|samples"):
        kernels[1](storages, gpus, samples)


def test_growth_and_storages_are_checked(kernels: tuple[Any, Any]) -> None:
    columns = kernels[1]("q", 1, 4)
    with pytest.raises(ValueError, match="GPUs"):
        columns.grow(limits.GPUS_PER_COLLECTOR_MAX + 1)
    with pytest.raises(ValueError, match="ring of 'd', columns of 'q'"):
        columns.drain(kernels[0]("d", 4))


def test_sixty_four_columns(kernels: tuple[Any, Any]) -> None:
    ring, columns = kernels[0]("Q" * 64, 9), kernels[1]("Q" * 64, 1, 9)
    for i in range(9):
        ring.push(0, 0, i, 0, [None if j % 9 == i else 2**64 - 1 - j for j in range(64)])
    columns.drain(ring)
    (one,) = columns.seal()
    for j in range(64):
        mask = np.unpackbits(one.valid[j], count=9, bitorder="little")
        assert mask.tolist() == [int(j % 9 != i) for i in range(9)]
        assert one.columns[j].tolist() == [0 if j % 9 == i else 2**64 - 1 - j for i in range(9)]
