"""Hot rows of both kernels: what is written is read back bit by bit, and what nobody should send
is refused. Frozen rows are read for ever: `python tests/unit/test_hot_rows.py` wrote them, once.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gputel._native.hot_rows
import gputel._reference.hot_rows
from gputel._reference.hot_rows import places
from gputel.catalog import METRIC_SETS

HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TRAILER = b"\xff\xff"
DATA = Path(__file__).parents[1] / "data" / "hot_rows"
STORAGES = "fdqQ"
DTYPES = {"f": np.float32, "d": np.float64, "q": np.int64, "Q": np.uint64}
EPOCH_2000_NS = 946_684_800 * 10**9

twins = pytest.mark.parametrize(
    "kernel",
    [gputel._native.hot_rows, gputel._reference.hot_rows],
    ids=["native", "reference"],
)


def bits_of(masks: Any) -> Any:
    return np.packbits(np.array(masks, bool), axis=1, bitorder="little")


def frozen_columns() -> tuple[list[Any], Any]:
    """Five samples of the values that are easily lost."""
    columns = [
        np.array([0x7FA00001, 0x80000000, 0xFF800000, 1, 0x3FC00000], np.uint32).view(np.float32),
        np.array(
            [0xFFF4000000000001, 1 << 63, 0x7FF0000000000000, 1, 0x3FF8000000000000], np.uint64
        ).view(np.float64),
        np.array([-(2**63), 2**63 - 1, 0, -1, 7], np.int64),
        np.array([2**64 - 1, 2**63, 0, 1, 10_000], np.uint64),
    ]
    masks = np.ones((4, 5), bool)
    masks[:, 4] = False, True, True, False
    return columns, bits_of(masks)


def write_frozen(kernel: Any) -> bytes:
    columns, valid = frozen_columns()
    stream = kernel.HotStream(STORAGES)
    times = EPOCH_2000_NS + np.array([0, 1000, -1000, 999, 10**18], np.int64)
    stream.append(np.arange(5) - 2, -3, times, np.arange(5) * 2**60, columns, valid)
    return bytes(stream.finish())


def row(values: bytes, *keys: int, fields: int = 5) -> bytes:
    """A row of these values; keys that are not given are 1."""
    sized = [struct.pack(">iq", 8, key) for key in (*keys, *[1] * (4 - len(keys)))]
    return struct.pack(">h", fields) + b"".join(sized) + struct.pack(">i", len(values)) + values


def feed(reader: Any, *pieces: bytes) -> None:
    for piece in pieces:
        reader.feed(piece)


def read(kernel: Any, *rows: bytes, storages: str = STORAGES, wanted: Any = None) -> Any:
    reader = kernel.HotRows(storages, range(len(storages)) if wanted is None else wanted)
    reader.feed(HEADER + b"".join(rows) + TRAILER)
    return reader.finish()


@twins
def test_frozen_rows_are_written_and_read(kernel: Any) -> None:
    frozen = (DATA / "fdqQ.copy").read_bytes()
    assert write_frozen(kernel) == frozen
    reader = kernel.HotRows(STORAGES, range(4))
    reader.feed(frozen)
    found = reader.finish()
    columns, valid = frozen_columns()
    masks = np.unpackbits(valid, axis=1, count=5, bitorder="little").astype(bool)
    assert found.gpu_id.tolist() == [-2, -1, 0, 1, 2]
    assert (found.time_ns - EPOCH_2000_NS).tolist() == [0, 1000, -1000, 0, 10**18]
    assert found.epoch.tolist() == [-3] * 5
    assert found.sequence.tolist() == [i * 2**60 for i in range(5)]
    for column, mask, put, wanted in zip(found.columns, found.valid, columns, masks, strict=True):
        assert column.dtype == put.dtype
        assert mask.tolist() == wanted.tolist()
        assert column.tobytes() == np.where(wanted, put, put.dtype.type(0)).tobytes()


@twins
def test_the_example_of_the_page(kernel: Any) -> None:
    stream = kernel.HotStream("fq")
    one = np.zeros(1, np.int64)
    stream.append(1, 1, one, one, [np.array([1.5], np.float32), np.array([7])], bits_of([[1], [0]]))
    cells = bytes(stream.finish())[-22:-2]
    page = Path(__file__).parents[2] / "docs" / "reference" / "hot-row-format.md"
    text = page.read_text().partition("## An example")[2].partition("`")[2].partition("`")[0]
    assert cells == bytes.fromhex(text)


def test_metrics_keep_their_places() -> None:
    """A set may grow at its end; otherwise rows that are stored would mean something else."""
    for name, frozen in json.loads((DATA / "places.json").read_text()).items():
        (metric_set,) = (one for one in METRIC_SETS if one.name == name)
        at = places(metric_set.storages)
        now = [[m.name, m.storage.value, at[j]] for j, m in enumerate(metric_set.metrics)]
        assert now[: len(frozen)] == frozen


@twins
def test_what_a_cleared_bit_hides_is_zero(kernel: Any) -> None:
    stream = kernel.HotStream("fd")
    ones = [np.full(9, np.nan, np.float32), np.full(9, -1.0)]
    nowhere = np.zeros((2, 2), np.uint8)
    stream.append(1, 1, np.zeros(9, np.int64), np.arange(9), ones, nowhere)
    data = bytes(stream.finish())
    assert len(data) == 19 + 9 * (54 + 20) + 2
    for i in range(9):
        assert data[19 + i * 74 + 54 : 19 + (i + 1) * 74] == bytes(20)
    # Nor does a reader look at it, whatever a stranger left there.
    found = read(kernel, row(bytes(8) + b"\xff" * 12), storages="fd")
    assert [column.tolist() for column in found.columns] == [[0.0], [0.0]]
    assert [mask.tolist() for mask in found.valid] == [[False], [False]]


@twins
def test_rows_of_an_older_and_of_a_newer_set(kernel: Any) -> None:
    older = row(b"\x01" + bytes(7) + struct.pack(">f", 1.5), 1)
    empty = row(bytes(8), 2)
    newer = row(b"\x1f" + bytes(7) + struct.pack(">fdqQf", 2.5, 3.5, -4, 5, 6.5), 3)
    found = read(kernel, older, empty, newer)
    assert found.gpu_id.tolist() == [1, 2, 3]
    assert [column.tolist() for column in found.columns] == [
        [1.5, 0.0, 2.5],
        [0.0, 0.0, 3.5],
        [0, 0, -4],
        [0, 0, 5],
    ]
    assert found.valid[0].tolist() == [True, False, True]
    assert all(mask.tolist() == [False, False, True] for mask in found.valid[1:])


@twins
def test_only_what_is_wanted_and_in_that_order(kernel: Any) -> None:
    values = b"\x0d" + bytes(7) + struct.pack(">fdqQ", 1.5, 0.0, -7, 9)
    found = read(kernel, row(values), wanted=[3, 1, 0])
    assert [column.tolist() for column in found.columns] == [[9], [0.0], [1.5]]
    assert [mask.tolist() for mask in found.valid] == [[True], [False], [True]]
    assert read(kernel, row(values), wanted=[]).columns == ()


@twins
def test_the_widest_set(kernel: Any) -> None:
    stream = kernel.HotStream("q" * 64)
    columns = [np.array([j]) for j in range(64)]
    stream.append(1, 1, np.zeros(1, np.int64), np.zeros(1, np.int64), columns, bits_of([[1]] * 64))
    reader = kernel.HotRows("q" * 64, range(64))
    reader.feed(stream.finish())
    found = reader.finish()
    assert [column.tolist() for column in found.columns] == [[j] for j in range(64)]
    assert all(mask.all() for mask in found.valid)


@twins
def test_no_rows(kernel: Any) -> None:
    found = read(kernel)
    assert [column.dtype for column in found.columns] == [DTYPES[s] for s in STORAGES]
    assert [len(array) for array in (*found[:4], *found.columns, *found.valid)] == [0] * 12


@twins
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"PGCOPY\n\xff\r\n\x01" + bytes(8), "no binary COPY stream"),
        (HEADER + row(bytes(8), fields=4), "a row of 4 fields, not 5"),
        (HEADER + struct.pack(">h", -2), "a row of -2 fields, not 5"),
        (HEADER + struct.pack(">hi", 5, -1), r"field 0 \(gpu_id\): -1 bytes"),
        (HEADER + struct.pack(">hiqi", 5, 8, 1, 4), r"field 1 \(time\): 4 bytes"),
        (HEADER + row(bytes(8), 1, 2**63 - 1), "a time out of range"),
        (HEADER + row(bytes(8), 1, -(2**63)), "a time out of range"),
        (
            HEADER + row(bytes(7), 17, 1, 3, 5),
            "cells of GPU 17, epoch 3, sequence 5: 7 bytes, where 36 hold the set's 4 metrics",
        ),
        (HEADER + row(b""), "0 bytes, where"),
        (HEADER + row(bytes(13)), "13 bytes, where"),
        (HEADER + row(bytes(38)), "38 bytes, where"),
        (HEADER + row(bytes(524)), "524 bytes, where"),
        (HEADER + row(bytes(8))[:-12] + struct.pack(">i", -1), "-1 bytes, where"),
        (HEADER + row(b"\x02" + bytes(11), 4), "GPU 4, .* metric 1 of 1 is said to be valid"),
        (HEADER + row(b"\x10" + bytes(35)), "metric 4 of 4 is said to be valid"),
        (HEADER + row(bytes(7) + b"\x80" + bytes(28)), "metric 63 of 4 is said to be valid"),
        (HEADER + TRAILER + b"\0", "bytes after the trailer"),
    ],
)
def test_what_is_no_hot_row(kernel: Any, bad: bytes, reason: str) -> None:
    for cut in range(len(bad)):
        reader = kernel.HotRows(STORAGES, [0])
        with pytest.raises(ValueError, match=reason):
            feed(reader, bad[:cut], bad[cut:])
        with pytest.raises(ValueError, match="broken"):
            reader.feed(b"")
        with pytest.raises(ValueError, match="without a trailer"):
            reader.finish()


@twins
def test_a_stream_without_an_end(kernel: Any) -> None:
    whole = HEADER + row(bytes(36)) * 2 + TRAILER
    for end in range(len(whole)):
        reader = kernel.HotRows(STORAGES, [0, 3])
        reader.feed(whole[:end])
        with pytest.raises(ValueError, match="without a trailer"):
            reader.finish()


@twins
def test_sets_and_columns_that_there_are_not(kernel: Any) -> None:
    for storages in ("", "x", "fz", "q" * 65):
        with pytest.raises(ValueError, match=r"none of|columns"):
            kernel.HotStream(storages)
        with pytest.raises(ValueError, match=r"none of|columns"):
            kernel.HotRows(storages, [])
    for column in (-1, 2):
        with pytest.raises(IndexError, match=f"column {column} of a set of 2 metrics"):
            kernel.HotRows("fd", [0, column])


def arguments(**changed: Any) -> dict[str, Any]:
    good: dict[str, Any] = {
        "gpu_id": 1,
        "epoch": 1,
        "time_ns": np.zeros(3, np.int64),
        "sequence": np.zeros(3, np.int64),
        "columns": [np.zeros(3, np.float32), np.zeros(3)],
        "valid": np.zeros((2, 1), np.uint8),
    }
    return good | changed


@twins
@pytest.mark.parametrize(
    ("changed", "error", "reason"),
    [
        ({"gpu_id": 2**63}, OverflowError, "gpu_id: 9223372036854775808 is outside"),
        ({"gpu_id": "1"}, TypeError, "gpu_id: can't hold str"),
        ({"gpu_id": np.zeros(3)}, TypeError, "gpu_id: can't hold float64"),
        ({"gpu_id": np.zeros(2, np.int64)}, ValueError, r"gpu_id: values of shape \(2,\) for 3"),
        ({"epoch": -(2**63) - 1}, OverflowError, "epoch: -9223372036854775809 is outside"),
        ({"time_ns": [0, 0, 0]}, TypeError, "time_ns: can't hold list"),
        ({"time_ns": np.zeros(3, np.uint64)}, TypeError, "time_ns: can't hold uint64"),
        ({"time_ns": np.zeros((3, 1), np.int64)}, ValueError, "time_ns: values of shape"),
        ({"time_ns": np.zeros((), np.int64)}, ValueError, "time_ns: values of shape"),
        ({"sequence": np.zeros(4, np.int64)}, ValueError, "sequence: values of shape"),
        ({"columns": [np.zeros(3)]}, ValueError, "1 columns for a set of 2 metrics"),
        ({"columns": [np.zeros(3), np.zeros(3)]}, TypeError, "column 0: can't hold float64"),
        (
            {"columns": [np.zeros(3, ">f4"), np.zeros(3)]},
            TypeError,
            "column 0: can't hold >f4",
        ),
        (
            {"columns": [np.zeros(3, np.float32), np.zeros(2)]},
            ValueError,
            r"column 1: values of shape \(2,\) for 3 rows",
        ),
        ({"valid": np.zeros((1, 1), np.uint8)}, ValueError, r"valid is uint8\(1, 1\), not uint8"),
        ({"valid": np.zeros((2, 2), np.uint8)}, ValueError, r"valid is uint8\(2, 2\), not uint8"),
        ({"valid": np.zeros((2, 1), bool)}, ValueError, "valid is bool"),
    ],
)
def test_what_can_not_be_written(
    kernel: Any, changed: dict[str, Any], error: type[Exception], reason: str
) -> None:
    stream = kernel.HotStream("fd")
    stream.append(**arguments())
    before = stream.size_bytes
    with pytest.raises(error, match=reason):
        stream.append(**arguments(**changed))
    assert (stream.rows, stream.size_bytes) == (3, before)
    stream.append(**arguments(gpu_id=np.arange(3)))
    assert stream.rows == 6
    assert len(stream.finish()) == 19 + 6 * (54 + 20) + 2
    with pytest.raises(ValueError, match="finished"):
        stream.append(**arguments())


@twins
def test_columns_need_not_be_dense(kernel: Any) -> None:
    wide = np.arange(40).reshape(10, 4)
    valid = np.full((2, 4), 255, np.uint8)[:, ::2]
    stream = kernel.HotStream("qq")
    stream.append(wide[:, 0], 1, wide[:, 1], wide[:, 2], [wide[:, 3], wide[::-1, 0]], valid)
    reader = kernel.HotRows("qq", [0, 1])
    reader.feed(stream.finish())
    found = reader.finish()
    assert found.gpu_id.tolist() == wide[:, 0].tolist()
    assert found.columns[0].tolist() == wide[:, 3].tolist()
    assert found.columns[1].tolist() == wide[::-1, 0].tolist()


@twins
@given(junk=st.binary(max_size=400), storages=st.text("fdqQ", min_size=1, max_size=6))
def test_any_bytes_are_read_or_refused(kernel: Any, junk: bytes, storages: str) -> None:
    reader = kernel.HotRows(storages, range(len(storages)))
    try:
        reader.feed(HEADER + junk)
        reader.finish()
    except ValueError:
        return
    assert junk.endswith(TRAILER)


def write_data() -> None:
    """The files of tests/data/hot_rows."""
    DATA.mkdir(parents=True, exist_ok=True)
    (DATA / "fdqQ.copy").write_bytes(write_frozen(gputel._reference.hot_rows))
    found = {}
    for metric_set in METRIC_SETS:
        at = places(metric_set.storages)
        found[metric_set.name] = [
            [m.name, m.storage.value, at[j]] for j, m in enumerate(metric_set.metrics)
        ]
    lines = ",\n".join(
        f' "{name}": [\n  ' + ",\n  ".join(map(json.dumps, rows)) + "\n ]"
        for name, rows in found.items()
    )
    (DATA / "places.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    write_data()
