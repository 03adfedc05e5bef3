"""Both chunk codecs, and chunks to try them on."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pytest

import gputel._native.codec
import gputel._reference.codec
from gputel.chunks import STORAGE_DTYPES, DecodedChunk
from gputel.errors import ChunkCorrupt

T0 = 1_752_871_354_000_000_000
NATIVE: Any = gputel._native.codec
REFERENCE: Any = gputel._reference.codec
both_codecs = pytest.mark.parametrize("codec", [NATIVE, REFERENCE], ids=["native", "reference"])

SHAPES = ("constant", "step", "walk", "burst", "line", "extreme", "noise")
EXTREMES: dict[str, list[Any]] = {
    "q": [0, -1, 2**63 - 1, -(2**63), 2**53 + 1],
    "Q": [0, 1, 2**64 - 1, 2**63, 2**53 + 1],
    "d": [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 5e-324, 1.7e308, 300.794, 2.0**53],
    "f": [0.0, -0.0, float("inf"), float("nan"), 1e-45, 3.4e38, 0.5, 0.1, 2.0**24],
}
_TIMES = ("regular", "jitter", "duplicate", "backward", "stepped", "wild")


def seal(body: bytes) -> bytes:
    """`body` with the checksum it needs."""
    return body + struct.pack("<I", google_crc32c.value(body))


def column_of(storage: str, n: int, random: np.random.Generator, shape: str) -> npt.NDArray[Any]:
    """n values as metrics have them, or as none has."""
    dtype = STORAGE_DTYPES[storage]
    extremes = EXTREMES[storage]
    scale = int(random.choice([1, 15, 1000, 2**20]))
    if shape == "extreme":
        return np.array([extremes[i] for i in random.integers(0, len(extremes), n)], dtype)
    if shape == "noise":  # any bits: NaNs with payloads, denormals
        return random.integers(0, 256, n * dtype.itemsize, dtype=np.uint8).view(dtype)
    if shape == "constant":
        return np.full(n, extremes[int(random.integers(len(extremes)))], dtype)
    if shape == "step":
        numbers = 1000 + scale * np.arange(n)
    elif shape == "walk":
        numbers = 10**6 + scale * np.cumsum(random.integers(-3, 4, n))
    elif shape == "burst":
        numbers = 700 + scale * np.where(random.random(n) < 0.05, random.integers(0, 2**20, n), 0)
    else:
        numbers = np.cumsum(10**9 + scale * random.integers(0, 50, n))
    scaled: npt.NDArray[Any] = numbers
    if storage in "fd":
        scaled = numbers / random.choice([1, 8, 1000])
    return scaled.astype(dtype)


def times_of(kind: str, n: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Times of n rows, ns."""
    regular = T0 + np.arange(n, dtype=np.int64) * 100_000_000
    if kind == "jitter":
        return regular + random.integers(0, 500, n) * 1000
    if kind == "duplicate":
        return np.repeat(regular, 3)[:n]
    if kind == "backward":
        return regular[::-1].copy()
    if kind == "stepped":  # the clock is set
        return regular + np.where(np.arange(n) < n // 2, 0, -3_600_000_000_000)
    if kind == "wild":
        return random.integers(-(2**63), 2**63, n, dtype=np.int64)
    return regular


def arguments_of(storages: str, n: int, random: np.random.Generator) -> tuple[Any, ...]:
    """Arguments of `encode_chunk`: columns of all shapes, some of them linear in others."""
    columns: list[npt.NDArray[Any]] = []
    for storage in storages:
        alike = [column for column in columns if column.dtype == STORAGE_DTYPES[storage]]
        if alike and random.random() < 0.5:
            base = alike[int(random.integers(len(alike)))]
            with np.errstate(all="ignore"):
                related = base * STORAGE_DTYPES[storage].type(random.choice([1, 2, 3, 0.5]))
            columns.append(related.astype(STORAGE_DTYPES[storage]))
        else:
            columns.append(column_of(storage, n, random, str(random.choice(SHAPES))))
    missing = random.choice([0.0, 0.0, 0.05, 0.5, 1.0], (len(storages), 1))
    mask = random.random((len(storages), n)) >= missing
    valid = np.packbits(mask, axis=1, bitorder="little")
    if n % 8:  # what lies beyond n means nothing
        valid[:, -1] |= random.integers(0, 256, dtype=np.uint8) << n % 8 & 0xFF
    ids = np.cumsum(random.integers(1, 4, len(storages))).tolist()
    if random.random() < 0.2:
        ids.reverse()
    times = times_of(str(random.choice(_TIMES)), n, random)
    sequence = int(random.integers(0, 2**40)) + np.arange(n, dtype=np.int64)
    return int(random.integers(0, 2**16)), ids, storages, times, sequence, columns, valid


def outcome(codec: Any, payload: bytes) -> tuple[Any, ...] | None:
    """Everything that a chunk holds, as bytes; None: it is refused."""
    try:
        chunk = codec.decode_chunk(payload)
    except ChunkCorrupt:
        return None
    return content(chunk)


def content(chunk: DecodedChunk) -> tuple[Any, ...]:
    """All of a decoded chunk, comparable bit for bit."""
    arrays: Sequence[Any] = (chunk.time_ns, chunk.sequence, chunk.valid, *chunk.columns)
    return (*chunk[:3], *((array.dtype, array.shape, array.tobytes()) for array in arrays))
