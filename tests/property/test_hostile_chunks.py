"""Chunks whose checksum is right and whose content is not: refused, or read as what they say.

The checksum catches accidents; what a foreign or hostile encoder writes must be caught by
the reader itself, before it allocates.
"""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gputel import catalog, limits, wire
from gputel._reference.bits import varint, zigzag
from gputel.errors import ChunkCorrupt
from gputel.kernels import decode_chunk, encode_chunk, read_chunk_header
from support.codecs import T0, both_codecs, seal


def body(
    *,
    set_id: int = 1,
    n: int = 1,
    span: int = 0,
    t0: int = T0,
    runs: tuple[tuple[int, int], ...] = ((1, 1),),
    rest: bytes = b"\x02\x00\x02",  # a constant i64, 1
    version: int = 2,
) -> bytes:
    parts = [
        b"GC",
        bytes((version,)),
        varint(set_id),
        varint(n),
        struct.pack("<q", t0),
        varint(span),
    ]
    parts += [varint(zigzag(0)), varint(len(runs))]
    parts += [varint(zigzag(gap)) + varint(size) for gap, size in runs]
    return b"".join([*parts, rest])


@both_codecs
@pytest.mark.parametrize("version", [1, 2])
def test_the_parts_make_a_chunk(codec: Any, version: int) -> None:
    chunk = codec.decode_chunk(seal(body(version=version)))
    assert (chunk.set_id, chunk.metric_ids, chunk.storages) == (1, (1,), "q")
    assert (chunk.time_ns.tolist(), chunk.sequence.tolist()) == ([T0], [0])
    assert chunk.columns[0].tolist() == [1]
    assert chunk.valid.tolist() == [[1]]


TWO_ROWS = b"\x01\x00\x0a" + b"\x01\x00\x02"  # times 0 and 5, sequences 0 and 1
NAN = struct.pack("<d", float("nan"))


def two(column: bytes, *, version: int = 2, runs: tuple[tuple[int, int], ...] = ((1, 1),)) -> bytes:
    """Two rows and what is said of their columns."""
    return body(n=2, span=5, rest=TWO_ROWS + column, version=version, runs=runs)


@both_codecs
def test_two_rows_are_a_chunk(codec: Any) -> None:
    two_columns = two(b"\x02\x01\x02\x02" + b"\x02\x20\x01\x02\x00\x0e", runs=((1, 2),))
    chunk = codec.decode_chunk(seal(two_columns))  # the second is 7 and the first's step again
    assert [column.tolist() for column in chunk.columns] == [[1, 2], [7, 8]]
    chunk = codec.decode_chunk(seal(two(b"\x02\x06\x02\x03\x06")))  # a block of 3 bits
    assert chunk.columns[0].tolist() == [1, 4]


@both_codecs
@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"GC",
        b"GC\x00" + body()[3:],
        b"GC\x03" + body()[3:],
        body(n=0),
        body(n=limits.CHUNK_SAMPLES_MAX + 1),
        body(n=2**64 - 1),
        body(set_id=2**16),
        body(t0=2**63 - 1, span=1),
        body(span=1),  # the only time is t0
        body(runs=((0, 1),)),  # id 0
        body(runs=((-3, 1),)),
        body(runs=((2**16, 1),)),
        body(runs=((1, 0),)),
        body(runs=((1, 65),)),
        body(runs=((1, 2**64 - 1),)),
        body(runs=((1, 2), (-1, 1))),  # id 1 twice
        body(runs=((1, 1),) * 65),
        body(rest=b""),
        body(rest=b"\x02\x00\x02\x00"),  # a byte too many
        body(rest=b"\x22\x00\x02"),  # a reserved bit of the column's tag
        body(rest=b"\x00\x00\x02", version=1),  # a f32 as integer series
        body(rest=b"\x00\x00\x01"),  # a f32 whose bits are -1
        body(rest=b"\x00\x00" + varint(zigzag(2**32))),  # a f32 of 33 bits
        body(rest=b"\x0a\x00\x00\x02"),  # an i64 as decimal
        body(rest=b"\x06\x01\x00\x02"),  # a bitmap although all is valid
        body(rest=b"\x06\x00\x00\x02"),  # a bitmap without a value
        body(rest=b"\x06\x02\x00\x02"),  # a bitmap with bits beyond n
        body(rest=b"\x09\x0a\x00\x02"),  # ten decimals
        body(rest=b"\x02\x08\x02"),  # a constant with a divisor
        body(rest=b"\x02\x07\x02"),  # an unknown shape
        body(rest=b"\x02\x40\x02"),  # an unknown flag
        body(rest=b"\x02\x10\x02"),  # a constant of differences
        body(rest=b"\x02\x20\x00\x02\x00\x02"),  # predicted from itself
        body(rest=b"\x02\x20\x01\x02\x00\x02"),  # predicted from before the first
        body(rest=b"\x02\x16\x02\x02"),  # blocks of differences of one number
        two(b"\x02\x06\x02\x03\x06", version=1),  # blocks
        two(b"\x02\x06\x02\x03"),  # a block's numbers missing
        two(b"\x02\x06\x02\x41" + bytes(9)),  # a block of 65 bits
        two(b"\x02\x06\x02\xc1\x00" + bytes(9)),
        two(b"\x02\x06\x02\x03\x08"),  # a bit of a block's padding
        two(b"\x02\x06\x02\x83"),  # a floor missing
        two(b"\x02\x01\x02\x02" + b"\x02\x20\x01\x02\x40\x0e", runs=((1, 2),)),  # shift 64
        two(b"\x11" + NAN + b"\x02\x20\x01\x02\x00\x0e", runs=((1, 2),)),  # from no integers
        # from one value where there are two
        two(b"\x06\x01\x00\x02" + b"\x02\x20\x01\x02\x00\x0e", runs=((1, 2),)),
        # links in version 1, and for times
        two(b"\x02\x01\x02\x02" + b"\x02\x20\x01\x02\x00\x0e", runs=((1, 2),), version=1),
        body(n=2, span=5, rest=b"\x21\x01\x02\x00\x00\x0a\x01\x00\x02\x02\x00\x02"),
        body(rest=b"\x02\x04\x02\x02\x00"),  # DELTA2 of one number
        body(rest=b"\x02\x0a\x02\x01\x00"),  # a divisor of 1
        body(rest=b"\x02\x02\x02\x41" + bytes(9)),  # 65 bits a number
        body(n=2, span=5, rest=b"\x01\x02\x00\x01\x00\x02\x02\x00\x02"),  # no time is t0
        body(n=2, span=5, rest=b"\x01\x00\x08\x01\x00\x02\x02\x00\x02"),  # no time is t1
        body(n=2, span=5, rest=b"\x01\x00\x0a\x01\x02\x02\x02\x00\x02"),  # sequence 0 is 1
    ],
)
def test_a_right_checksum_does_not_excuse_the_content(codec: Any, damaged: bytes) -> None:
    with pytest.raises(ChunkCorrupt):
        codec.decode_chunk(seal(damaged))


@both_codecs
@pytest.mark.parametrize(
    "rest",
    [
        b"\x05" + bytes(100),  # raw
        b"\x06\x00" + bytes(100),  # blocks
        b"\x02\x00\x40" + bytes(100),  # 64 bits each
    ],
)
def test_a_lie_about_n_allocates_nothing(codec: Any, rest: bytes) -> None:
    lie = seal(body(n=limits.CHUNK_SAMPLES_MAX, span=1, rest=rest))
    tracemalloc.start()
    try:
        with pytest.raises(ChunkCorrupt, match="truncated"):
            codec.decode_chunk(lie)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def whole_chunk() -> bytes:
    n = 40
    random = np.random.default_rng(5)
    columns = (
        np.cumsum(random.integers(0, 50, n)).astype("<i8"),
        random.integers(200_000, 300_000, n).astype("<f8") / 1000,
        random.random(n).astype("<f4"),
        random.integers(0, 2**63, n).astype("<u8"),
        np.full(n, 0.1, "<f8"),
    )
    valid = np.packbits(random.random((5, n)) < 0.8, axis=1, bitorder="little")
    times = T0 + np.cumsum(random.integers(99, 101, n)) * 10**6
    return encode_chunk(1, [1, 2, 9, 4, 5], "qdfQd", times, np.arange(n), columns, valid)


WHOLE = whole_chunk()


@given(st.data())
def test_damage_under_a_right_checksum(data: st.DataObject) -> None:
    damaged = bytearray(WHOLE[:-4])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(3, len(damaged) - 1))
        if data.draw(st.booleans()):
            damaged[at] = data.draw(st.integers(0, 255))
        else:
            damaged[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    payload = seal(bytes(damaged))
    for read in (decode_chunk, read_chunk_header, wire.decode_chunk):
        try:
            read(payload)
        except ChunkCorrupt:
            continue


@given(st.binary(max_size=200))
def test_garbage_under_a_right_checksum(garbage: bytes) -> None:
    for start in (b"GC\x01", b"GC\x02", body()[:-3], body(n=9, span=8)[:-3]):
        try:
            decode_chunk(seal(start + garbage))
        except ChunkCorrupt:
            continue


def test_what_the_catalog_does_not_know() -> None:
    first = catalog.METRIC_SETS[0]
    other = catalog.METRIC_SETS[1].metrics[0].id
    for payload, text in (
        (seal(body(set_id=999)), "metric set 999 is unknown"),
        (seal(body(runs=((other, 1),))), f"not of the set {first.name}"),
        (seal(body(rest=b"\x03\x00\x02")), "has storage 'Q'"),
        (bytes(limits.CHUNK_BYTES_MAX + 1), "at most"),
    ):
        with pytest.raises(ChunkCorrupt, match=text):
            wire.decode_chunk(payload)


def test_views_are_read_as_bytes() -> None:
    assert read_chunk_header(memoryview(WHOLE)) == read_chunk_header(WHOLE)
    assert decode_chunk(memoryview(WHOLE)).metric_ids == (1, 2, 9, 4, 5)


ONE = np.ones(1, np.int64)
BIT = np.ones((1, 1), np.uint8)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1, [1], "q", ONE[:0], ONE[:0], [ONE[:0]], BIT[:, :0]), "samples"),
        ((2**16, [1], "q", ONE, ONE, [ONE], BIT), "set id"),
        ((1, [0], "q", ONE, ONE, [ONE], BIT), "metric id"),
        ((1, [1, 1], "qq", ONE, ONE, [ONE, ONE], np.ones((2, 1), np.uint8)), "twice"),
        ((1, [1], "x", ONE, ONE, [ONE], BIT), "storages"),
        ((1, [1], "d", ONE, ONE, [ONE], BIT), "column 0"),
        ((1, [1], "q", ONE, np.ones(2, np.int64), [ONE], BIT), "sequences"),
        ((1, [1, 2], "q", ONE, ONE, [ONE], BIT), "ids"),
        ((1, [1], "q", ONE, ONE, [ONE], np.ones((1, 2), np.uint8)), "valid"),
    ],
)
def test_arguments_that_contradict_one_another(arguments: tuple[object, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        encode_chunk(*arguments)  # type: ignore[arg-type]
