"""The native COPY stream equals its twin, byte for byte, on the same generated blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gputel._native.pgcopy
import gputel._reference.pgcopy

TWINS: tuple[Any, ...] = (
    gputel._native.pgcopy.CopyStream,
    gputel._reference.pgcopy.CopyStream,
)
KINDS = [
    "int2",
    "int4",
    "int8",
    "timestamptz_ns",
    "text",
    "bytea",
    "int2[]",
    "int4[]",
    "float8[]",
]
ROWS_MAX = 70


def bits(random: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Any:
    """Any bits at all: NaNs with payloads, extremes; small numbers as often."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    values = np.frombuffer(random.bytes(size), dtype).copy().reshape(shape)
    if np.dtype(dtype).kind in "iu":
        values >>= np.array(random.integers(0, 64, shape), dtype)
    return values


def column(random: np.random.Generator, kind: str, rows: int) -> Any:
    width = int(random.integers(0, 5))
    single = random.integers(5) == 0
    if kind == "text":
        texts = [
            "".join(map(chr, random.integers(1, 0xD800, n))) for n in random.integers(0, 9, rows)
        ]
        return "Ω" if single else texts
    if kind == "bytea":
        return b"\0x" if single else [random.bytes(int(n)) for n in random.integers(0, 300, rows)]
    if single and not kind.endswith("[]"):
        return int(random.integers(0, 2**15))
    if kind in ("int2", "int4", "int2[]", "int4[]"):
        # Now and then out of range, which both must refuse.
        top = 2 ** (15 if "2" in kind else 31) + int(random.integers(50) == 0)
        shape = (rows, width) if kind.endswith("[]") and not single else (rows,)
        return random.integers(-top, top, shape)
    if kind == "float8[]":
        return bits(random, (rows, width), np.float64)
    values = bits(random, (rows, 2), np.int64)
    return values[:, 0] if random.integers(2) else np.ascontiguousarray(values[:, 1])


@pytest.mark.parametrize("seed", range(60))
def test_random_blocks(seed: int) -> None:
    random = np.random.default_rng(seed)
    kinds = [str(kind) for kind in random.choice(KINDS, int(random.integers(1, 30)))]
    streams = [twin(kinds) for twin in TWINS]
    for _ in range(int(random.integers(1, 8))):
        rows = int(random.integers(0, ROWS_MAX))
        values = [column(random, kind, rows) for kind in kinds]
        nullable = int(random.integers(0, len(kinds) + 1))
        valid = random.integers(0, 256, (nullable, (rows + 7) // 8), np.uint8)
        outcomes = [append(stream, rows, values, valid) for stream in streams]
        assert outcomes[0] == outcomes[1]
    native, twin = streams
    assert (native.rows, native.size_bytes) == (twin.rows, twin.size_bytes)
    assert bytes(native.finish()) == bytes(twin.finish())


def append(stream: Any, rows: int, values: list[Any], valid: Any) -> type[Exception] | None:
    """The kind of error: a block with several may have them noticed in another order."""
    try:
        stream.append(rows, values, valid)
    except (OverflowError, TypeError, ValueError) as error:
        return type(error)
    return None
