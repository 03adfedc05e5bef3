"""The COPY stream, taken apart by an independent reader after PostgreSQL's documentation."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gputel.kernels import CopyField, copy_binary

Row = list[bytes | None]


def rows_of(stream: bytes) -> list[Row]:
    """The fields of every row; asserts that the frame around them is right."""
    assert stream[:11] == b"PGCOPY\n\xff\r\n\x00"
    assert stream[11:19] == bytes(8), "no flags, no header extension"
    position = 19
    rows: list[Any] = []
    while True:
        (fields,) = struct.unpack_from(">h", stream, position)
        position += 2
        if fields == -1:
            assert position == len(stream), "nothing follows the trailer"
            return rows
        row: Row = []
        for _ in range(fields):
            (length,) = struct.unpack_from(">i", stream, position)
            position += 4
            assert length >= -1
            row.append(None if length == -1 else stream[position : position + length])
            position += max(length, 0)
        rows.append(row)


def column_of(field: CopyField, rows: int) -> list[bytes | None]:
    return [row[0] for row in rows_of(copy_binary(rows, [field]))]


def numeric(payload: bytes) -> int:
    """The integer in a numeric of PostgreSQL's binary format; asserts that it is canonical."""
    ndigits, weight, sign, dscale = struct.unpack_from(">hhhh", payload)
    digits = struct.unpack_from(f">{ndigits}h", payload, 8)
    assert len(payload) == 8 + 2 * ndigits
    assert (sign, dscale) == (0, 0)
    assert all(0 <= digit < 10_000 for digit in digits)
    assert not digits or (digits[0] and digits[-1])
    assert weight >= ndigits - 1 if digits else weight == 0
    return sum(digit * 10_000 ** (weight - i) for i, digit in enumerate(digits))


def test_no_rows() -> None:
    assert rows_of(copy_binary(0, [CopyField("int8", np.array([], np.int64))])) == []


@pytest.mark.parametrize(
    ("kind", "code", "values"),
    [
        ("int2", "h", np.array([-(2**15), -1, 0, 2**15 - 1], np.int64)),
        ("int4", "i", np.array([-(2**31), 2**31 - 1], np.int32)),
        ("int8", "q", np.array([-(2**63), -1, 2**63 - 1])),
        ("int8", "q", np.array([0, 2**63 - 1], np.uint64)),
        ("float4", "f", np.array([1.5, -0.0, np.inf], np.float32)),
        ("float8", "d", np.array([0.1, -0.0, -np.inf, 5e-324])),
    ],
)
def test_numbers_are_in_network_order(kind: Any, code: str, values: Any) -> None:
    payloads = column_of(CopyField(kind, values), len(values))
    assert payloads == [struct.pack(f">{code}", value) for value in values.tolist()]


def test_a_nan_keeps_its_payload() -> None:
    bits = np.array([0x7FF8_0000_0000_1234, 0xFFF8_0000_0000_0001], np.uint64)
    assert column_of(CopyField("float8", bits.view(np.float64)), 2) == [
        struct.pack(">Q", value) for value in bits.tolist()
    ]


@pytest.mark.parametrize(
    ("time_ns", "microseconds"),
    [
        (946_684_800_000_000_000, 0),  # 2000-01-01 00:00:00 UTC
        (946_684_800_000_001_999, 1),
        (946_684_799_999_999_999, -1),
        (0, -946_684_800_000_000),
        (-(2**63), -(2**63) // 1000 - 946_684_800_000_000),
    ],
)
def test_times_are_floored_to_microseconds_since_2000(time_ns: int, microseconds: int) -> None:
    field = CopyField("timestamptz_ns", np.array([time_ns]))
    assert column_of(field, 1) == [struct.pack(">q", microseconds)]


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 10**5), min_size=1))
def test_numerics(values: list[int]) -> None:
    payloads = column_of(CopyField("numeric_u64", np.array(values, np.uint64)), len(values))
    assert [numeric(payload or b"") for payload in payloads] == values


@pytest.mark.parametrize("value", [0, 1, 9_999, 10_000, 10**8, 10**16, 2**64 - 1, 10_001])
def test_numeric_edges(value: int) -> None:
    (payload,) = column_of(CopyField("numeric_u64", np.array([value], np.uint64)), 1)
    assert numeric(payload or b"") == value


def test_scalars_are_repeated_and_text_is_utf8() -> None:
    fields = [
        CopyField("text", "Zürich"),
        CopyField("bytea", b"\x00\xff"),
        CopyField("int4", 7),
        CopyField("float8", 0.5),
        CopyField("text", ""),
    ]
    row = ["Zürich".encode(), b"\x00\xff", struct.pack(">i", 7), struct.pack(">d", 0.5), b""]
    assert rows_of(copy_binary(3, fields)) == [row] * 3


@given(data=st.data(), rows=st.integers(1, 12))
def test_any_mix_of_fields_and_nulls(data: st.DataObject, rows: int) -> None:
    makers: dict[Any, Any] = {
        "int8": lambda v: np.array(v, np.int64),
        "numeric_u64": lambda v: np.array(v, np.uint64),
        "text": lambda v: [str(x) for x in v],
        "bytea": lambda v: [b"\xee" * (x % 50) for x in v],
    }
    readers: dict[Any, Any] = {
        "int8": lambda p: struct.unpack(">q", p)[0],
        "numeric_u64": numeric,
        "text": bytes.decode,
        "bytea": bytes,
    }
    kinds = data.draw(st.lists(st.sampled_from(list(makers)), min_size=1, max_size=8))
    fields, expected = [], []
    for kind in kinds:
        numbers = data.draw(st.lists(st.integers(0, 2**40), min_size=rows, max_size=rows))
        valid = np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
        values = makers[kind](numbers)
        fields.append(CopyField(kind, values, valid))
        listed = values.tolist() if isinstance(values, np.ndarray) else values
        expected.append([v if ok else None for v, ok in zip(listed, valid, strict=True)])
    found = rows_of(copy_binary(rows, fields))
    for j, kind in enumerate(kinds):
        column = [row[j] for row in found]
        assert [None if cell is None else readers[kind](cell) for cell in column] == expected[j]


def test_what_a_null_hides_is_not_judged() -> None:
    valid = np.array([True, False])
    assert column_of(CopyField("int2", np.array([1, 10**9]), valid), 2) == [b"\0\1", None]
    assert column_of(CopyField("numeric_u64", np.array([0, -5]), valid), 2) == [bytes(8), None]


@pytest.mark.parametrize(
    ("field", "error"),
    [
        (CopyField("int2", np.array([40_000, 0])), OverflowError),
        (CopyField("int8", np.array([2**63, 0], np.uint64)), OverflowError),
        (CopyField("numeric_u64", np.array([-1, 0])), OverflowError),
        (CopyField("int4", np.array([1.0, 2.0])), TypeError),
        (CopyField("numeric_u64", np.array([1.0, 2.0])), TypeError),
        (CopyField("timestamptz_ns", np.array([1.0, 2.0])), TypeError),
        (CopyField("text", [b"a", b"b"]), TypeError),
        (CopyField("bytea", "a"), TypeError),
        (CopyField("int4", "a"), TypeError),
        (CopyField("text", ["a"]), ValueError),
        (CopyField("int4", np.array([1, 2, 3])), ValueError),
        (CopyField("int4", np.array([1, 2]), np.array([True])), ValueError),
        (CopyField("int4", np.array([1, 2]), np.array([1, 1])), ValueError),
    ],
)
def test_a_field_that_can_not_be_written_is_named(field: CopyField, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"field 1 \({field.type}\)"):
        copy_binary(2, [CopyField("int4", 1), field])


@pytest.mark.parametrize("count", [0, 1601])
def test_the_number_of_fields_is_bounded(count: int) -> None:
    with pytest.raises(ValueError, match="fields"):
        copy_binary(1, [CopyField("int4", 1)] * count)
