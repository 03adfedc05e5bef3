"""The reader of COPY streams, both kernels: what the writer wrote, and what nobody should send."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gputel._native.pgcopy_rows
import gputel._reference.pgcopy_rows
from gputel.kernels import CopyStream

if TYPE_CHECKING:
    from gputel.kernels import FieldType

HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TRAILER = b"\xff\xff"
KINDS: list[FieldType] = ["int8", "float4", "float8", "timestamptz_ns", "numeric_u64"]


@pytest.fixture(
    params=[gputel._native.pgcopy_rows.CopyRows, gputel._reference.pgcopy_rows.CopyRows],
    ids=["native", "reference"],
    scope="module",
)
def rows_of(request: pytest.FixtureRequest) -> Any:
    return request.param


def row(*fields: bytes | None) -> bytes:
    """A row of these payloads."""
    sized = [
        struct.pack(">i", -1) if field is None else struct.pack(">i", len(field)) + field
        for field in fields
    ]
    return struct.pack(">h", len(fields)) + b"".join(sized)


def read(rows_of: Any, kind: FieldType, *payloads: bytes | None) -> list[Any]:
    """The values of one field; None: it is NULL."""
    reader = rows_of([kind])
    reader.feed(HEADER + b"".join(row(payload) for payload in payloads) + TRAILER)
    (column,), (valid,) = reader.finish()
    return [
        value if there else None
        for value, there in zip(column.tolist(), valid.tolist(), strict=True)
    ]


def numeric(*digits: int, weight: int, sign: int = 0, scale: int = 0) -> bytes:
    return struct.pack(f">hhHh{len(digits)}h", len(digits), weight, sign, scale, *digits)


def test_every_type(rows_of: Any) -> None:
    assert read(rows_of, "int8", struct.pack(">q", -(2**63)), None) == [-(2**63), None]
    assert read(rows_of, "float4", struct.pack(">f", 1.5), None) == [1.5, None]
    assert read(rows_of, "float8", struct.pack(">d", -0.1)) == [-0.1]
    assert read(rows_of, "timestamptz_ns", struct.pack(">q", 1)) == [946_684_800_000_001_000]
    assert read(rows_of, "numeric_u64", numeric(weight=0)) == [0]
    assert read(rows_of, "numeric_u64", numeric(7, weight=2)) == [700_000_000]
    top = numeric(1844, 6744, 737, 955, 1615, weight=4)
    assert read(rows_of, "numeric_u64", top, None) == [2**64 - 1, None]


def test_no_rows(rows_of: Any) -> None:
    reader = rows_of(["int8", "float4"])
    reader.feed(HEADER + TRAILER)
    columns, valid = reader.finish()
    assert [column.dtype.str for column in columns] == ["<i8", "<f4"]
    assert [len(array) for array in (*columns, *valid)] == [0] * 4
    assert reader.rows == 0


def test_what_is_null_is_zero(rows_of: Any) -> None:
    reader = rows_of(KINDS)
    reader.feed(HEADER + row(*[None] * len(KINDS)) * 3 + TRAILER)
    columns, valid = reader.finish()
    assert all((column == 0).all() for column in columns)
    assert not any(mask.any() for mask in valid)


@pytest.mark.parametrize(
    ("kind", "payload", "reason"),
    [
        ("int8", b"1234", r"field 0 \(int8\): 4 bytes"),
        ("int8", b"", r"field 0 \(int8\): 0 bytes"),
        ("float4", bytes(8), r"field 0 \(float4\): 8 bytes"),
        ("numeric_u64", bytes(7), r"field 0 \(numeric_u64\): 7 bytes"),
        ("numeric_u64", bytes(20), r"field 0 \(numeric_u64\): 20 bytes"),
        ("timestamptz_ns", struct.pack(">q", 2**63 - 1), "a time out of range"),
        ("timestamptz_ns", struct.pack(">q", -(2**63)), "a time out of range"),
        ("numeric_u64", numeric(1, weight=-1), "no whole number"),
        ("numeric_u64", numeric(1, 5, weight=0, scale=1), "no whole number"),
        ("numeric_u64", numeric(1, weight=5), "no whole number"),
        ("numeric_u64", numeric(1, weight=0, sign=0x4000), "no whole number"),
        ("numeric_u64", numeric(weight=0, sign=0xC000), "no whole number"),  # NaN
        ("numeric_u64", numeric(1844, 6744, 737, 955, 1616, weight=4), "no whole number"),
        ("numeric_u64", numeric(9999, 0, 0, 0, 0, weight=4), "no whole number"),
        ("numeric_u64", numeric(10_000, weight=0), "no whole number"),
        ("numeric_u64", numeric(weight=0)[:2] + numeric(1, weight=0)[2:], "no whole number"),
    ],
)
def test_what_a_type_can_not_hold(
    rows_of: Any, kind: FieldType, payload: bytes, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        read(rows_of, kind, payload)


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (b"PGCOPY\n\xff\r\n\x01" + bytes(8), "no binary COPY stream"),
        (HEADER[:11] + b"\0\0\0\1" + bytes(4), "no binary COPY stream"),
        (HEADER + row(bytes(8)), "a row of 1 fields, not 2"),
        (HEADER + struct.pack(">h", -2), "a row of -2 fields, not 2"),
        (HEADER + struct.pack(">hi", 2, -5), r"field 0 \(int8\): -5 bytes"),
        (HEADER + struct.pack(">hi", 2, 2**31 - 1), "bytes"),
        (HEADER + TRAILER + b"\0", "bytes after the trailer"),
    ],
)
def test_what_is_no_stream(rows_of: Any, stream: bytes, reason: str) -> None:
    reader = rows_of(["int8", "int8"])
    with pytest.raises(ValueError, match=reason):
        reader.feed(stream)
    with pytest.raises(ValueError, match=r"stream|fields|bytes"):
        reader.feed(b"\0")


def test_a_stream_without_an_end(rows_of: Any) -> None:
    whole = HEADER + row(bytes(8)) * 2 + TRAILER
    for end in range(len(whole)):
        reader = rows_of(["int8"])
        reader.feed(whole[:end])
        with pytest.raises(ValueError, match="without a trailer"):
            reader.finish()


@pytest.mark.parametrize("types", [[], ["text"], ["int8", "bytea"], ["int8"] * 1601])
def test_types_that_it_does_not_read(rows_of: Any, types: list[FieldType]) -> None:
    with pytest.raises(ValueError, match="field"):
        rows_of(types)


def test_columns_grow(rows_of: Any) -> None:
    n = 5000
    times = np.arange(n) * 1000
    values = np.arange(n).astype(np.float32)
    stream = CopyStream(["timestamptz_ns", "float4"])
    stream.append(n, (times, values))
    reader = rows_of(["timestamptz_ns", "float4"])
    reader.feed(stream.finish())
    columns, valid = reader.finish()
    assert reader.rows == n
    assert (columns[0] == times).all()
    assert (columns[1] == values).all()
    assert all(mask.all() for mask in valid)


@given(st.binary(max_size=200), st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
def test_any_bytes_are_read_or_refused(rows_of: Any, junk: bytes, types: list[FieldType]) -> None:
    reader = rows_of(types)
    try:
        reader.feed(HEADER + junk)
        reader.finish()
    except ValueError:
        return
    assert junk.endswith(TRAILER)
