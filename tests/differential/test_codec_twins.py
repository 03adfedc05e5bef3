"""The native codec and its twin write the same bytes, read the same values, refuse the same."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gputel import limits
from gputel.chunks import STORAGE_DTYPES
from support.codecs import (
    EXTREMES,
    NATIVE,
    REFERENCE,
    SHAPES,
    arguments_of,
    column_of,
    content,
    outcome,
    seal,
    times_of,
)

DATA = Path(__file__).parent.parent / "data"


def assert_twins(arguments: tuple[Any, ...]) -> None:
    """Same bytes from both, and the values back from each, bit for bit."""
    payload = NATIVE.encode_chunk(*arguments)
    assert payload == REFERENCE.encode_chunk(*arguments)
    header = NATIVE.read_chunk_header(payload)
    assert header == REFERENCE.read_chunk_header(payload)
    decoded = NATIVE.decode_chunk(payload)
    assert content(decoded) == content(REFERENCE.decode_chunk(payload))
    _, ids, _, times, sequence, columns, valid = arguments
    n = len(times)
    assert (header.samples, header.t0_ns, header.t1_ns) == (n, times.min(), times.max())
    assert decoded.time_ns.tobytes() == times.tobytes()
    assert decoded.sequence.tobytes() == np.ascontiguousarray(sequence).tobytes()
    masks = [np.unpackbits(bits, count=n, bitorder="little").astype(bool) for bits in valid]
    present = [j for j, mask in enumerate(masks) if mask.any()]
    assert decoded.metric_ids == tuple(ids[j] for j in present)
    for k, j in enumerate(present):
        found = np.unpackbits(decoded.valid[k], count=n, bitorder="little").astype(bool)
        assert np.array_equal(found, masks[j])
        assert decoded.columns[k][found].tobytes() == columns[j][found].tobytes()
        assert not decoded.columns[k][~found].any(), "an invalid cell is 0"


@settings(max_examples=300)
@given(
    storages=st.text("fdqQ", min_size=1, max_size=8),
    n=st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 129, 400])),
    seed=st.integers(0, 2**32 - 1),
)
def test_generated_chunks(storages: str, n: int, seed: int) -> None:
    assert_twins(arguments_of(storages, n, np.random.default_rng(seed)))


@pytest.mark.parametrize("n", [1, 2, 3, 31, 32, 33, 48, 49, 200])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_every_storage(shape: str, n: int) -> None:
    random = np.random.default_rng(n)
    columns = [column_of(storage, n, random, shape) for storage in "fdqQ"]
    valid = np.packbits(np.ones((4, n), bool), axis=1, bitorder="little")
    times = times_of("jitter", n, random)
    assert_twins((1, [1, 2, 3, 4], "fdqQ", times, np.arange(n), columns, valid))


@pytest.mark.parametrize("storage", "fdqQ")
def test_every_extreme_alone(storage: str) -> None:
    bit, one = np.ones((1, 1), np.uint8), np.zeros(1, np.int64)
    for value in EXTREMES[storage]:
        column = np.array([value], STORAGE_DTYPES[storage])
        assert_twins((1, [1], storage, one, one, [column], bit))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=40), st.integers(1, 5))
@example([-(2**63), 2**63 - 1], 20)
@example([0, 2**62], 20)
@example([0, 2**62 - 1], 20)
def test_any_integers(values: list[int], times: int) -> None:
    column = np.array(values * times, np.int64)
    n = len(column)
    both = [column, (column * 3).view(np.uint64)]
    valid = np.packbits(np.ones((2, n), bool), axis=1, bitorder="little")
    assert_twins((1, [7, 9], "qQ", column, column, both, valid))


@given(st.lists(st.floats(width=32), min_size=1, max_size=50), st.integers(0, 10))
def test_any_floats(values: list[float], decimals: int) -> None:
    n = len(values)
    wide = np.array(values, np.float64)
    with np.errstate(all="ignore"):
        columns = [wide.astype("<f4"), wide, np.round(wide, decimals)]
    valid = np.packbits(np.ones((3, n), bool), axis=1, bitorder="little")
    assert_twins((1, [1, 2, 3], "fdd", np.arange(n), np.arange(n), columns, valid))


def test_the_largest_chunk() -> None:
    n = limits.CHUNK_SAMPLES_MAX
    random = np.random.default_rng(3)
    columns = [np.cumsum(random.integers(0, 9, n)), random.integers(0, 2**40, n) / 1000]
    valid = np.packbits(random.random((2, n)) < 0.9, axis=1, bitorder="little")
    times = times_of("regular", n, random)
    assert_twins((1, [1, 2], "qd", times, np.arange(n), columns, valid))


def test_layouts_that_are_not_plain_are_read_as_what_they_hold() -> None:
    n = 50
    values = np.arange(4 * n).reshape(2, 2 * n)
    arguments = (
        1,
        [9, 4],
        "qq",
        np.arange(3 * n)[::3],
        np.arange(n).astype(np.longlong),
        [values[0, ::2], values.astype(">i8")[1, :n].astype(np.int64)],
        np.full((4, 14), 0xFF, np.uint8)[::2, ::2],
    )
    assert NATIVE.encode_chunk(*arguments) == REFERENCE.encode_chunk(*arguments)
    view = memoryview(NATIVE.encode_chunk(*arguments))
    assert content(NATIVE.decode_chunk(view)) == content(REFERENCE.decode_chunk(view))


ONE, BIT = np.ones(1, np.int64), np.ones((1, 1), np.uint8)


@pytest.mark.parametrize(
    "arguments",
    [
        (1, [1], "q", ONE[:0], ONE[:0], [ONE[:0]], BIT[:, :0]),
        (2**16, [1], "q", ONE, ONE, [ONE], BIT),
        (-1, [1], "q", ONE, ONE, [ONE], BIT),
        (2**80, [1], "q", ONE, ONE, [ONE], BIT),
        (1, [0], "q", ONE, ONE, [ONE], BIT),
        (1, [2**16], "q", ONE, ONE, [ONE], BIT),
        (1, [2**80], "q", ONE, ONE, [ONE], BIT),
        (1, [1, 1], "qq", ONE, ONE, [ONE, ONE], np.ones((2, 1), np.uint8)),
        (1, [1], "x", ONE, ONE, [ONE], BIT),
        (1, [1], "", ONE, ONE, [], BIT[:0]),
        (1, range(1, 66), "q" * 65, ONE, ONE, [ONE] * 65, np.ones((65, 1), np.uint8)),
        (1, [1], "d", ONE, ONE, [ONE], BIT),
        (1, [1], "q", ONE, ONE, [ONE.astype(">i8")], BIT),
        (1, [1], "q", ONE, np.ones(2, np.int64), [ONE], BIT),
        (1, [1], "q", ONE.astype(np.int32), ONE, [ONE], BIT),
        (1, [1, 2], "q", ONE, ONE, [ONE], BIT),
        (1, [1], "q", ONE, ONE, [ONE], np.ones((1, 2), np.uint8)),
        (1, [1], "q", ONE, ONE, [ONE], np.ones((1, 1), np.int8)),
    ],
)
def test_the_same_words_for_arguments_that_contradict(arguments: tuple[Any, ...]) -> None:
    said = []
    for codec in (NATIVE, REFERENCE):
        with pytest.raises(ValueError, match=r".") as refused:
            codec.encode_chunk(*arguments)
        said.append(str(refused.value))
    assert said[0] == said[1]


def chunks_of_all_kinds() -> list[bytes]:
    """Small chunks that together have every mode, shape and flag."""
    random = np.random.default_rng(11)
    chunks = [NATIVE.encode_chunk(*arguments_of("fdqQ", n, random)) for n in (1, 3, 9, 33)]
    chunks += [(DATA / f"v1/{name}.chunk").read_bytes() for name in ("fast-1", "medium-7")]
    return chunks


@pytest.mark.parametrize("payload", chunks_of_all_kinds(), ids=lambda payload: str(len(payload)))
def test_every_flipped_bit_under_a_right_checksum_means_the_same_to_both(payload: bytes) -> None:
    for bit in range(8 * 2, 8 * (len(payload) - 4)):
        damaged = bytearray(payload[:-4])
        damaged[bit // 8] ^= 1 << bit % 8
        again = seal(bytes(damaged))
        assert outcome(NATIVE, again) == outcome(REFERENCE, again), bit


@pytest.mark.parametrize("payload", chunks_of_all_kinds(), ids=lambda payload: str(len(payload)))
def test_every_truncation_under_a_right_checksum_means_the_same_to_both(payload: bytes) -> None:
    for end in range(len(payload) - 4):
        again = seal(payload[:end])
        assert outcome(NATIVE, again) is None
        assert outcome(REFERENCE, again) is None


@given(st.binary(max_size=300))
def test_the_checksum_is_crc32c(data: bytes) -> None:
    expected = google_crc32c.value(data)
    assert NATIVE.crc32c(data) == NATIVE.crc32c(data, portable=True) == expected


def test_the_checksum_of_the_standard() -> None:
    # RFC 3720, appendix B.4
    assert NATIVE.crc32c(bytes(32)) == NATIVE.crc32c(bytes(32), portable=True) == 0x8A9136AA
    assert struct.pack("<I", NATIVE.crc32c(b"\xff" * 32)) == bytes.fromhex("43aba862")
