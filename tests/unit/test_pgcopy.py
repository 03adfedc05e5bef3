"""The COPY stream of both kernels, taken apart by an independent reader after PostgreSQL's
documentation."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gputel._native.pgcopy
import gputel._reference.pgcopy

if TYPE_CHECKING:
    from gputel.kernels import FieldType

Row = list[bytes | None]


@pytest.fixture(
    params=[gputel._native.pgcopy.CopyStream, gputel._reference.pgcopy.CopyStream],
    ids=["native", "reference"],
    scope="module",
)
def stream_of(request: pytest.FixtureRequest) -> Any:
    return request.param


def rows_of(stream: bytes | memoryview) -> list[Row]:
    """The fields of every row; asserts that the frame around them is right."""
    stream = bytes(stream)
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


def column_of(stream_of: Any, kind: FieldType, values: Any, rows: int) -> list[bytes | None]:
    stream = stream_of([kind])
    stream.append(rows, [values])
    return [row[0] for row in rows_of(stream.finish())]


def array(payload: bytes, code: str, oid: int) -> list[Any]:
    """The elements of a one-dimensional array without NULLs."""
    ndim, nulls, element = struct.unpack_from(">iii", payload)
    assert (nulls, element) == (0, oid)
    if ndim == 0:
        assert len(payload) == 12
        return []
    size, first = struct.unpack_from(">ii", payload, 12)
    assert (ndim, first) == (1, 1)
    width = struct.calcsize(f">{code}")
    found = []
    for i in range(size):
        length, value = struct.unpack_from(f">i{code}", payload, 20 + i * (4 + width))
        assert length == width
        found.append(value)
    assert len(payload) == 20 + size * (4 + width)
    return found


def test_no_rows(stream_of: Any) -> None:
    stream = stream_of(["int8"])
    assert rows_of(stream.finish()) == []
    stream = stream_of(["int8", "text"])
    stream.append(0, [np.array([], np.int64), []])
    assert rows_of(stream.finish()) == []


@pytest.mark.parametrize(
    ("kind", "code", "values"),
    [
        ("int2", "h", np.array([-(2**15), -1, 0, 2**15 - 1], np.int64)),
        ("int4", "i", np.array([-(2**31), 2**31 - 1], np.int64)),
        ("int8", "q", np.array([-(2**63), -1, 2**63 - 1])),
    ],
)
def test_numbers_are_in_network_order(stream_of: Any, kind: Any, code: str, values: Any) -> None:
    payloads = column_of(stream_of, kind, values, len(values))
    assert payloads == [struct.pack(f">{code}", value) for value in values.tolist()]
    # As every second one, and backwards.
    spread = np.repeat(values, 2)[::2]
    assert column_of(stream_of, kind, spread[::-1], len(values)) == payloads[::-1]


def test_a_nan_keeps_its_payload(stream_of: Any) -> None:
    bits = [0x7FF8_0000_0000_1234, 0xFFF8_0000_0000_0001]
    values = np.array(bits, np.uint64).view(np.float64)
    (payload,) = column_of(stream_of, "float8[]", values, 1)
    assert array(payload or b"", "Q", 701) == bits


@pytest.mark.parametrize(
    ("time_ns", "microseconds"),
    [
        (946_684_800_000_000_000, 0),  # 2000-01-01 00:00:00 UTC
        (946_684_800_000_001_999, 1),
        (946_684_799_999_999_999, -1),
        (0, -946_684_800_000_000),
        (-(2**63), -(2**63) // 1000 - 946_684_800_000_000),
        (2**63 - 1, (2**63 - 1) // 1000 - 946_684_800_000_000),
    ],
)
def test_times_are_floored_to_microseconds_since_2000(
    stream_of: Any, time_ns: int, microseconds: int
) -> None:
    expected = [struct.pack(">q", microseconds)]
    assert column_of(stream_of, "timestamptz_ns", np.array([time_ns]), 1) == expected
    assert column_of(stream_of, "timestamptz_ns", time_ns, 1) == expected


def test_one_value_stands_in_every_row_and_text_is_utf8(stream_of: Any) -> None:
    stream = stream_of(["text", "bytea", "int4", "text"])
    stream.append(3, ["Zürich", b"\x00\xff", 7, ""])
    row = ["Zürich".encode(), b"\x00\xff", struct.pack(">i", 7), b""]
    assert rows_of(stream.finish()) == [row] * 3


def test_arrays(stream_of: Any) -> None:
    stream = stream_of(["int2[]", "int4[]", "float8[]"])
    ids = np.array([[3, -1], [3, -1]])
    counts = np.array([[2**31 - 1, 0, 1], [4, 5, 6]])
    sums = np.arange(8.0).reshape(4, 2).T[:, ::2]
    stream.append(2, [ids, counts, sums])
    stream.append(1, [ids[:1, :0], counts[1:], sums[:1]])
    stream.append(2, [ids[0], counts[0], sums[0]])  # one for all rows
    rows = [
        [array(row[0], "h", 21), array(row[1], "i", 23), array(row[2], "d", 701)]
        for row in rows_of(stream.finish())
        if row[0] is not None and row[1] is not None and row[2] is not None
    ]
    assert rows == [
        [[3, -1], [2**31 - 1, 0, 1], [0, 4]],
        [[3, -1], [4, 5, 6], [1, 5]],
        [[], [4, 5, 6], [0, 4]],
        *[[[3, -1], [2**31 - 1, 0, 1], [0, 4]]] * 2,
    ]


@given(data=st.data(), blocks=st.lists(st.integers(0, 20), min_size=1, max_size=4))
def test_any_mix_of_fields_and_nulls(stream_of: Any, data: st.DataObject, blocks: Any) -> None:
    makers: dict[Any, Any] = {
        "int8": lambda v: np.array(v, np.int64),
        "text": lambda v: [str(x) for x in v],
        "bytea": lambda v: [b"\xee" * (x % 50) for x in v],
    }
    readers: dict[Any, Any] = {
        "int8": lambda p: struct.unpack(">q", p)[0],
        "text": bytes.decode,
        "bytea": bytes,
    }
    kinds = data.draw(st.lists(st.sampled_from(list(makers)), min_size=1, max_size=8))
    nullable = data.draw(st.integers(0, len(kinds)))
    stream = stream_of(kinds)
    expected: list[list[Any]] = [[] for _ in kinds]
    for rows in blocks:
        values, masks = [], []
        for j, kind in enumerate(kinds):
            numbers = data.draw(st.lists(st.integers(0, 2**40), min_size=rows, max_size=rows))
            mask = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
            values.append(makers[kind](numbers))
            if j < len(kinds) - nullable:
                mask = [True] * rows
            else:
                masks.append(np.packbits(np.array(mask, np.bool_), bitorder="little"))
            listed = values[-1].tolist() if isinstance(values[-1], np.ndarray) else values[-1]
            expected[j] += [v if ok else None for v, ok in zip(listed, mask, strict=True)]
        valid = np.array(masks, np.uint8) if masks else None
        stream.append(rows, values, valid)
    size_bytes = stream.size_bytes
    found = rows_of(stream.finish())
    assert (stream.rows, stream.size_bytes) == (sum(blocks), size_bytes + 2)
    for j, kind in enumerate(kinds):
        column = [row[j] for row in found]
        assert [None if cell is None else readers[kind](cell) for cell in column] == expected[j]


def test_what_a_null_hides_is_not_judged(stream_of: Any) -> None:
    stream = stream_of(["int2", "text"])
    values: list[Any] = [np.array([1, 10**9]), ["a", None]]
    stream.append(2, values, np.array([[0b01], [0b01]], np.uint8))
    assert rows_of(stream.finish()) == [[b"\0\1", b"a"], [None, None]]


def test_bitmaps_may_be_a_part_of_others(stream_of: Any) -> None:
    whole = np.zeros((4, 6), np.uint8)
    whole[::2, ::3] = [[0xFF, 0x01], [0x00, 0x01]]
    stream = stream_of(["int2", "int2"])
    stream.append(9, [1, 2], whole[::2, ::3])
    one, two = b"\0\1", b"\0\2"
    assert rows_of(stream.finish()) == [[one, None]] * 8 + [[one, two]]


BAD: list[tuple[Any, Any, Any]] = [
    ("int2", np.array([40_000, 0]), OverflowError),
    ("int2", np.array([0, -40_000]), OverflowError),
    ("int2", 40_000, OverflowError),
    ("int4", np.array([0, 2**31]), OverflowError),
    ("int8", 2**63, OverflowError),
    ("timestamptz_ns", -(2**63) - 1, OverflowError),
    ("int2[]", np.array([[1], [40_000]]), OverflowError),
    ("int8", np.array([2**63, 0], np.uint64), TypeError),
    ("int8", np.array([1, 0], ">i8"), TypeError),
    ("int8", np.array([1, 0], np.int32), TypeError),
    ("int4", np.array([1.0, 2.0]), TypeError),
    ("int8", 1.0, TypeError),
    ("int8", None, TypeError),
    ("int8", [1, 2], TypeError),
    ("int2[]", 1, TypeError),
    ("int2[]", [1, 2], TypeError),
    ("float8[]", np.array([[1], [2]]), TypeError),
    ("text", np.array([1, 2]), TypeError),
    ("text", [b"a", b"b"], TypeError),
    ("text", ["a", None], TypeError),
    ("text", ("a", "b"), TypeError),
    ("bytea", "a", TypeError),
    ("int4", "a", TypeError),
    ("text", ["a"], ValueError),
    ("int4", np.array([1, 2, 3]), ValueError),
    ("int4", np.array([[1, 2], [1, 2]]), ValueError),
    ("float8[]", np.ones((2, 1, 1)), ValueError),
    ("float8[]", np.ones((1, 2)), ValueError),
    ("bytea", bytes(2**30), ValueError),
]


@pytest.mark.parametrize(("kind", "values", "error"), BAD)
def test_what_can_not_be_written_is_named_and_leaves_nothing(
    stream_of: Any, kind: Any, values: Any, error: type[Exception]
) -> None:
    stream = stream_of(["int4", kind])
    good: Any = {"text": "x", "bytea": b"y"}.get(kind, 1)
    if kind.endswith("[]"):
        good = np.ones((1, 1), np.float64 if kind == "float8[]" else np.int64)
    stream.append(1, [1, good])
    before = stream.rows, stream.size_bytes
    with pytest.raises(error) as raised:
        stream.append(2, [1, values])
    assert f"field 1 ({kind})" in str(raised.value)
    assert (stream.rows, stream.size_bytes) == before
    stream.append(1, [1, good])
    first, second = rows_of(stream.finish())
    assert first == second


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (1,), (1, 1, 1)])
def test_bitmaps_of_another_shape_are_refused(stream_of: Any, shape: Any) -> None:
    stream = stream_of(["int4"])
    with pytest.raises(ValueError, match="valid is uint8"):
        stream.append(3, [1], np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="valid is int64"):
        stream.append(3, [1], np.zeros((1, 1), np.int64))


def test_a_stream_is_finished_once(stream_of: Any) -> None:
    stream = stream_of(["int4"])
    stream.append(1, [5])
    whole = bytes(stream.finish())
    assert bytes(stream.finish()) == whole
    assert stream.finish().readonly
    with pytest.raises(ValueError, match="finished"):
        stream.append(1, [5])


def test_fields_are_checked(stream_of: Any) -> None:
    for count in (0, 1601):
        with pytest.raises(ValueError, match=f"{count} fields"):
            stream_of(["int4"] * count)
    with pytest.raises(ValueError, match="unknown type 'int16'"):
        stream_of(["int4", "int16"])
    stream = stream_of(["int4", "int4"])
    with pytest.raises(ValueError, match="1 columns for 2 fields"):
        stream.append(1, [1])
    with pytest.raises(ValueError, match="-1 rows"):
        stream.append(-1, [1, 1])
