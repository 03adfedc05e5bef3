"""Micro-benchmarks of ring, columns, codec, COPY and frames; each checks what it made.

Run by `python -m benchmarks.micro`. Each names the calibration that its time is divided by
when two machines are compared: `memory` for what moves arrays, `python` for what interprets.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gputel import wire
from gputel.batch import DTYPES, Batch
from gputel.catalog import SET_BY_CADENCE, Cadence
from gputel.inventory import Gpu
from gputel.kernels import Columns, CopyStream, Ring, minute_statistics, row_dtype

FAST = SET_BY_CADENCE[Cadence.FAST]
GPUS = 8
T0 = 1_752_871_354_000_000_000


def calibrated(benchmark: Any, calibration: str, work: int, unit: str) -> None:
    """Note what the time is compared with, and how much work one round is."""
    benchmark.extra_info.update(calibration=calibration, work=work, unit=unit)


def batch_of(n: int) -> Batch:
    """n samples of the fast set as a busy GPU has them: counters, gauges, milliwatts."""
    random = np.random.default_rng(n)
    columns = []
    for j, metric in enumerate(FAST.metrics):
        dtype = DTYPES[metric.storage.value]
        if metric.storage.value == "d":
            column = random.integers(250_000, 700_000, n).astype(dtype) / 1000
        elif j % 2:
            column = np.cumsum(random.integers(0, 50_000, n)).astype(dtype)
        else:
            column = random.integers(0, 100, n).astype(dtype)
        columns.append(column)
    valid = np.packbits(np.ones((len(columns), n), np.bool_), axis=1, bitorder="little")
    times = T0 + np.arange(n, dtype=np.int64) * 100_000_000
    return Batch(FAST, times, np.arange(n, dtype=np.int64), tuple(columns), valid)


def same(one: Batch, other: Batch) -> bool:
    pairs = zip(one.columns, other.columns, strict=True)
    return (
        one.time_ns.tobytes() == other.time_ns.tobytes()
        and one.sequence.tobytes() == other.sequence.tobytes()
        and one.valid.tobytes() == other.valid.tobytes()
        and all(a.tobytes() == b.tobytes() for a, b in pairs)
    )


def calibrate_memory(benchmark: Any) -> None:
    source = np.random.default_rng(1).integers(0, 255, 8 << 20, dtype=np.uint8)
    target = np.empty_like(source)

    def copy() -> None:
        target[:] = source

    benchmark(copy)
    assert np.array_equal(source, target)


def calibrate_python(benchmark: Any) -> None:
    def interpret() -> int:
        total = 0
        for number in range(20_000):
            total += number & 0xFF
        return total

    assert benchmark(interpret) == sum(number & 0xFF for number in range(20_000))


def test_calibrate_memory_first(benchmark: Any) -> None:
    calibrate_memory(benchmark)


def test_calibrate_python_first(benchmark: Any) -> None:
    calibrate_python(benchmark)


def rows_of(count: int) -> npt.NDArray[np.void]:
    rows = np.zeros(count, row_dtype(FAST.storages))
    rows["gpu"] = np.arange(count) % GPUS
    rows["sequence"] = np.arange(count) // GPUS
    rows["valid"] = (1 << len(FAST.metrics)) - 1
    rows["c0"] = np.arange(count)
    return rows


def test_ring_push_drain_seal(benchmark: Any) -> None:
    count = 4096
    rows = rows_of(count)
    ring = Ring(FAST.storages, count)
    columns = Columns(FAST.storages, GPUS, count // GPUS)

    def through() -> list[Any]:
        assert ring.push_rows(rows) == count
        assert columns.drain(ring) == count
        return columns.seal()

    calibrated(benchmark, "memory", count * len(FAST.metrics), "values")
    sealed = benchmark(through)
    assert [one.gpu for one in sealed] == list(range(GPUS))
    assert all(one.columns[0].tolist() == rows["c0"][one.gpu :: GPUS].tolist() for one in sealed)


def test_ring_push_one(benchmark: Any) -> None:
    ring = Ring(FAST.storages, 64)
    columns = Columns(FAST.storages, 1, 64)
    values = [1.5 if storage in "fd" else 7 for storage in FAST.storages]

    def push() -> int:
        for i in range(64):
            ring.push(T0, 0, i, 0, values)
        drained: int = columns.drain(ring)
        return drained

    def empty() -> None:
        columns.seal()

    calibrated(benchmark, "python", 64, "rows")
    assert benchmark.pedantic(push, setup=empty, rounds=500, warmup_rounds=10) == 64


@pytest.mark.parametrize("n", [1, 10, 600])
def test_chunk_encode(benchmark: Any, n: int) -> None:
    batch = batch_of(n)
    calibrated(benchmark, "memory", n * len(FAST.metrics), "values")
    assert same(wire.decode_chunk(benchmark(wire.encode_batch, batch)), batch)


@pytest.mark.parametrize("n", [1, 10, 600])
def test_chunk_decode(benchmark: Any, n: int) -> None:
    batch = batch_of(n)
    calibrated(benchmark, "memory", n * len(FAST.metrics), "values")
    assert same(benchmark(wire.decode_chunk, wire.encode_batch(batch)), batch)


def test_chunk_header(benchmark: Any) -> None:
    payload = wire.encode_batch(batch_of(600))
    calibrated(benchmark, "memory", 1, "chunks")
    header = benchmark(wire.read_chunk_header, payload)
    assert (header.samples, header.t0_ns) == (600, T0)


@pytest.mark.parametrize("rows", [10, 2000])
def test_copy_stream(benchmark: Any, rows: int) -> None:
    batch = batch_of(rows)
    valid = np.tile(
        np.packbits(np.arange(rows) % 7 != 0, bitorder="little"), (len(FAST.metrics), 1)
    )
    types: Any = ["int8", "timestamptz_ns", *["int8"] * len(FAST.metrics)]
    columns = [column.view(np.int64) for column in batch.columns]
    calibrated(benchmark, "memory", rows * len(FAST.metrics), "values")

    def write() -> memoryview:
        stream = CopyStream(types)
        stream.append(rows, (42, batch.time_ns, *columns), valid)
        return stream.finish()

    stream = benchmark(write)
    nulls = int((np.arange(rows) % 7 == 0).sum()) * len(FAST.metrics)
    assert len(stream) == 19 + rows * (2 + 12 * len(types)) - 8 * nulls + 2
    last = struct.unpack(">q", stream[-10:-2])[0]
    assert last == int(batch.columns[-1][-1])


@pytest.mark.parametrize("rows", [60, 600])
def test_minute_statistics(benchmark: Any, rows: int) -> None:
    batch = batch_of(rows)
    calibrated(benchmark, "memory", rows * len(FAST.metrics), "values")
    found = benchmark(minute_statistics, batch.time_ns, batch.columns, batch.valid)
    assert found.n.sum() == rows * len(FAST.metrics)
    assert found.max.max(axis=0).tolist() == [float(column.max()) for column in batch.columns]


def frame() -> wire.Frame:
    chunk = wire.encode_batch(batch_of(10))
    uuids = [f"GPU-{i}" for i in range(GPUS)]
    return wire.Frame(
        "collector:node",
        1,
        1,
        "node",
        T0,
        tuple(wire.GpuChunks(uuid, (chunk, chunk)) for uuid in uuids),
        tuple(Gpu(uuid, "node", i, model="H100") for i, uuid in enumerate(uuids)),
    )


def test_frame_encode(benchmark: Any) -> None:
    calibrated(benchmark, "python", 1, "frames")
    assert wire.decode_frame(benchmark(wire.encode_frame, frame())) == frame()


def test_frame_decode(benchmark: Any) -> None:
    calibrated(benchmark, "python", 1, "frames")
    assert benchmark(wire.decode_frame, wire.encode_frame(frame())) == frame()


# Once more at the end: a busy neighbour seldom spoils both.
def test_calibrate_memory_last(benchmark: Any) -> None:
    calibrate_memory(benchmark)


def test_calibrate_python_last(benchmark: Any) -> None:
    calibrate_python(benchmark)
