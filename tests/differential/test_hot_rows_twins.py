"""Both kernels write the same hot rows, and read the same from them, whole or damaged, wherever
the stream is cut."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import gputel._native.hot_rows
import gputel._reference.hot_rows

TWINS: tuple[Any, ...] = (gputel._native.hot_rows, gputel._reference.hot_rows)
DTYPES: dict[str, Any] = {"f": np.float32, "d": np.float64, "q": np.int64, "Q": np.uint64}
ROWS_MAX = 600


def values_of(random: np.random.Generator, storage: str, rows: int) -> Any:
    """Any bits at all, NaNs with payloads among them; small numbers as often."""
    dtype = np.dtype(DTYPES[storage])
    values = np.frombuffer(random.bytes(rows * dtype.itemsize), dtype).copy()
    if dtype.kind in "iu":
        values >>= random.integers(0, 64, rows).astype(dtype)
    return values


def pieces(random: np.random.Generator, stream: bytes) -> list[bytes]:
    count = int(random.integers(0, 30))
    cuts = [0, *sorted(random.integers(0, len(stream) + 1, count).tolist()), len(stream)]
    return [stream[first:end] for first, end in itertools.pairwise(cuts)]


def block(random: np.random.Generator, storages: str, rows: int) -> tuple[Any, ...]:
    """The arguments of an append."""
    gpu_id: Any = random.integers(0, 5, rows) if random.integers(2) else int(random.integers(9))
    times = random.integers(-(2**60), 2**60, rows)
    columns = [values_of(random, storage, rows) for storage in storages]
    valid = random.integers(0, 256, (len(storages), (rows + 7) // 8), np.uint8)
    return gpu_id, int(random.integers(9)), times, values_of(random, "q", rows), columns, valid


def storages_of(random: np.random.Generator, most: int) -> str:
    return "".join(random.choice(list(DTYPES), int(random.integers(1, most + 1))))


@pytest.mark.parametrize("seed", range(40))
def test_random_rows(seed: int) -> None:
    random = np.random.default_rng(seed)
    storages = storages_of(random, 64)
    blocks = [block(random, storages, int(n)) for n in random.integers(0, ROWS_MAX // 3, 3)]
    streams = []
    for twin in TWINS:
        stream = twin.HotStream(storages)
        for arguments in blocks:
            stream.append(*arguments)
        streams.append(bytes(stream.finish()))
    assert streams[0] == streams[1]
    wanted = random.permutation(len(storages))[: int(random.integers(len(storages) + 1))].tolist()
    for twin in TWINS:
        reader = twin.HotRows(storages, wanted)
        for piece in pieces(random, streams[0]):
            reader.feed(piece)
        found = reader.finish()
        assert reader.rows == sum(len(arguments[2]) for arguments in blocks)
        assert (found.time_ns == np.concatenate([b[2] // 1000 * 1000 for b in blocks])).all()
        assert (found.sequence == np.concatenate([b[3] for b in blocks])).all()
        for k, j in enumerate(wanted):
            given = np.concatenate([b[4][j] for b in blocks])
            mask = np.concatenate(
                [np.unpackbits(b[5][j], count=len(b[2]), bitorder="little") for b in blocks]
            ).astype(bool)
            assert found.columns[k].dtype == given.dtype
            assert (found.valid[k] == mask).all()
            # Bits, so that NaNs are compared too.
            kept = np.where(mask, given, given.dtype.type(0))
            assert found.columns[k].tobytes() == kept.tobytes()


@pytest.mark.parametrize("seed", range(40))
def test_damaged_streams_are_refused_alike(seed: int) -> None:
    random = np.random.default_rng(seed)
    storages = storages_of(random, 6)
    stream = gputel._native.hot_rows.HotStream(storages)
    stream.append(*block(random, storages, 20))
    whole = bytes(stream.finish())
    wanted = range(len(storages))
    for _ in range(50):
        damaged = bytearray(whole)
        damaged[int(random.integers(len(whole)))] ^= 1 << int(random.integers(8))
        cut = pieces(random, bytes(damaged))
        outcomes = [outcome(twin.HotRows(storages, wanted), cut) for twin in TWINS]
        assert outcomes[0] == outcomes[1]


def outcome(reader: Any, cut: list[bytes]) -> str | list[bytes]:
    """All columns' bytes, or what is wrong."""
    try:
        for piece in cut:
            reader.feed(piece)
        found = reader.finish()
    except ValueError as error:
        return str(error)
    return [array.tobytes() for array in (*found[:4], *found.columns, *found.valid)]
