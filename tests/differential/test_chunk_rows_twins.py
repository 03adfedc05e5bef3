"""Both ChunkRows make the same block, of what `decode_chunk` finds in each chunk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gputel._native.chunk_rows
import gputel._reference.chunk_rows
from gputel.chunks import SMALL_SAMPLES_MAX, RowBlock
from gputel.errors import ChunkCorrupt
from support.codecs import NATIVE, T0, arguments_of

TWINS: list[Any] = [gputel._native.chunk_rows.ChunkRows, gputel._reference.chunk_rows.ChunkRows]
each_twin = pytest.mark.parametrize("chunk_rows", TWINS, ids=["native", "reference"])
SET_ID, IDS, STORAGES = 3, (2, 5, 7, 300), "fdqQ"


def chunk_of(n: int, random: np.random.Generator, at: tuple[int, ...] = (0, 1, 2, 3)) -> bytes:
    """A chunk of n rows of the columns `at` of our set, some of them without a value."""
    storages = "".join(STORAGES[j] for j in at)
    _, _, _, *arrays = arguments_of(storages, n, random)
    payload: bytes = NATIVE.encode_chunk(SET_ID, [IDS[j] for j in at], storages, *arrays)
    return payload


def bits_of(block: RowBlock) -> list[Any]:
    arrays: list[Any] = [block.time_ns, block.sequence, block.valid, *block.columns]
    return [(array.dtype, array.shape, array.tobytes()) for array in arrays]


def take(rows: Any, payload: bytes) -> Any:
    try:
        return rows.take(payload)
    except ChunkCorrupt:
        return ChunkCorrupt


@settings(max_examples=200)
@given(
    sizes=st.lists(st.integers(1, SMALL_SAMPLES_MAX + 2), min_size=1, max_size=12),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_same_block(sizes: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    ours, theirs = (twin(SET_ID, IDS, STORAGES) for twin in TWINS)
    expected = []
    for n in sizes:
        at = tuple(np.flatnonzero(random.random(4) < 0.8).tolist()) or (1,)
        payload = chunk_of(n, random, at)
        if random.random() < 0.2:  # one bit is wrong
            at_byte = int(random.integers(len(payload)))
            flipped = payload[at_byte] ^ 1 << int(random.integers(8))
            payload = payload[:at_byte] + bytes([flipped]) + payload[at_byte + 1 :]
        taken = take(ours, payload)
        assert taken == take(theirs, payload)
        if isinstance(taken, tuple):
            expected.append(NATIVE.decode_chunk(payload))
    assert len(ours) == len(theirs) == sum(len(chunk.time_ns) for chunk in expected)
    if not expected:
        return
    block = ours.block()
    assert bits_of(block) == bits_of(theirs.block())
    assert block.time_ns.tobytes() == b"".join(chunk.time_ns.tobytes() for chunk in expected)
    assert block.sequence.tobytes() == b"".join(chunk.sequence.tobytes() for chunk in expected)
    for j, metric_id in enumerate(IDS):
        values, masks = [], []
        for chunk in expected:
            n = len(chunk.time_ns)
            k = chunk.metric_ids.index(metric_id) if metric_id in chunk.metric_ids else None
            nothing = np.zeros(n, block.columns[j].dtype)
            values.append(nothing if k is None else chunk.columns[k])
            bits = np.zeros((n + 7) // 8, np.uint8) if k is None else chunk.valid[k]
            masks.append(np.unpackbits(bits, count=n, bitorder="little"))
        assert block.columns[j].tobytes() == np.concatenate(values).tobytes()
        packed = np.packbits(np.concatenate(masks), bitorder="little")
        assert block.valid[j].tobytes() == packed.tobytes()


@each_twin
def test_says_what_it_took(chunk_rows: Any) -> None:
    n = 5
    times = T0 + np.array([4, 2, 0, 1, 3], np.int64) * 1000
    valid = np.array([[0b11111], [0], [0b00100]], np.uint8)
    columns = [np.ones(n, "f4"), np.ones(n, "i8"), np.ones(n, "u8")]
    payload = NATIVE.encode_chunk(
        SET_ID, [2, 7, 300], "fqQ", times, np.arange(n, dtype=np.int64), columns, valid
    )
    rows = chunk_rows(SET_ID, IDS, STORAGES)
    assert rows.take(memoryview(payload)) == (n, T0, T0 + 4000, 0b1001)
    assert len(rows) == n


@each_twin
@pytest.mark.parametrize(
    ("set_id", "ids", "storages"),
    [(4, IDS, STORAGES), (SET_ID, IDS[::-1], "Qqdf"), (SET_ID, IDS, "fdQQ")],
    ids=["another set", "another order", "another storage"],
)
def test_leaves_what_does_not_fit(
    chunk_rows: Any, set_id: int, ids: tuple[int, ...], storages: str
) -> None:
    random = np.random.default_rng(1)
    n = 3
    valid = np.full((4, 1), 0b111, np.uint8)
    columns = [np.ones(n, {"f": "f4", "d": "f8", "q": "i8", "Q": "u8"}[s]) for s in STORAGES]
    times = T0 + np.arange(n, dtype=np.int64) * 1000
    sequence = np.arange(n, dtype=np.int64)
    payload = NATIVE.encode_chunk(SET_ID, IDS, STORAGES, times, sequence, columns, valid)
    rows = chunk_rows(set_id, ids, storages)
    assert rows.take(payload) is None
    assert len(rows) == 0
    fitting = chunk_rows(SET_ID, IDS, STORAGES)
    assert fitting.take(chunk_of(SMALL_SAMPLES_MAX + 1, random)) is None
    assert fitting.take(payload) == (n, T0, T0 + 2000, 0b1111)


@each_twin
def test_a_set_that_contradicts_itself(chunk_rows: Any) -> None:
    wrong: list[tuple[int, tuple[int, ...], str, str]] = [
        (SET_ID, (1,), "fd", "1 ids"),
        (SET_ID, (1, 1), "fd", "twice"),
        (SET_ID, (0,), "f", "a metric id is outside"),
        (2**16, (1,), "f", "set id 65536"),
        (SET_ID, (1,), "x", "storages 'x'"),
        (SET_ID, (), "", "0 columns"),
    ]
    for set_id, ids, storages, said in wrong:
        with pytest.raises(ValueError, match=said):
            chunk_rows(set_id, ids, storages)
