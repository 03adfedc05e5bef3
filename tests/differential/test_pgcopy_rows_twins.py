"""Both readers of COPY streams find in one what both writers put into it, wherever it is cut."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import gputel._native.pgcopy_rows
import gputel._reference.pgcopy_rows
from gputel.kernels import CopyStream

TWINS: tuple[Any, ...] = (
    gputel._native.pgcopy_rows.CopyRows,
    gputel._reference.pgcopy_rows.CopyRows,
)
DTYPES: dict[Any, Any] = {
    "int8": np.int64,
    "float4": np.float32,
    "float8": np.float64,
    "timestamptz_ns": np.int64,
    "numeric_u64": np.uint64,
}
ROWS_MAX = 700


def values_of(random: np.random.Generator, kind: str, rows: int) -> Any:
    """Any bits at all, NaNs with payloads among them; small numbers as often."""
    dtype = np.dtype(DTYPES[kind])
    values = np.frombuffer(random.bytes(rows * dtype.itemsize), dtype).copy()
    if dtype.kind in "iu":
        values >>= random.integers(0, 64, rows).astype(dtype)
    if kind == "timestamptz_ns":
        values = values // 1_000_000 * 1000
    return values


def pieces(random: np.random.Generator, stream: bytes) -> list[bytes]:
    count = int(random.integers(0, 30))
    cuts = [0, *sorted(random.integers(0, len(stream) + 1, count).tolist()), len(stream)]
    return [stream[first:end] for first, end in itertools.pairwise(cuts)]


@pytest.mark.parametrize("seed", range(40))
def test_random_streams(seed: int) -> None:
    random = np.random.default_rng(seed)
    kinds = [str(kind) for kind in random.choice(list(DTYPES), int(random.integers(1, 30)))]
    rows = int(random.integers(0, ROWS_MAX))
    values = [values_of(random, kind, rows) for kind in kinds]
    valid = random.integers(0, 256, (len(kinds), (rows + 7) // 8), np.uint8)
    stream = CopyStream(kinds)  # type: ignore[arg-type]
    stream.append(rows, values, valid)
    whole = bytes(stream.finish())
    masks = np.unpackbits(valid, axis=1, count=rows, bitorder="little").astype(np.bool_)
    for twin in TWINS:
        reader = twin(kinds)
        for piece in pieces(random, whole):
            reader.feed(piece)
        found = reader.finish()
        assert reader.rows == rows
        for column, mask, given, wanted in zip(
            found.columns, found.valid, values, masks, strict=True
        ):
            assert column.dtype == given.dtype
            assert (mask == wanted).all()
            # Bits, so that NaNs are compared too.
            assert column.tobytes() == np.where(wanted, given, given.dtype.type(0)).tobytes()


@pytest.mark.parametrize("seed", range(40))
def test_damaged_streams_are_refused_alike(seed: int) -> None:
    random = np.random.default_rng(seed)
    kinds = [str(kind) for kind in random.choice(list(DTYPES), int(random.integers(1, 6)))]
    stream = CopyStream(kinds)  # type: ignore[arg-type]
    stream.append(20, [values_of(random, kind, 20) for kind in kinds])
    whole = bytes(stream.finish())
    for _ in range(50):
        damaged = bytearray(whole)
        damaged[int(random.integers(len(whole)))] ^= 1 << int(random.integers(8))
        cut = pieces(random, bytes(damaged))
        outcomes = [outcome(twin(kinds), cut) for twin in TWINS]
        assert outcomes[0] == outcomes[1]


def outcome(reader: Any, cut: list[bytes]) -> str | list[bytes]:
    """All columns' bytes, or what is wrong."""
    try:
        for piece in cut:
            reader.feed(piece)
        found = reader.finish()
    except ValueError as error:
        return str(error)
    return [array.tobytes() for array in (*found.columns, *found.valid)]
