"""Chunks decoded by SQL: what gputel.kernels makes of them, or an error; never another value.

A NaN is a NaN: SQL has but one. Of columns that nobody asked for SQL checks little but the
checksum, so a foreign chunk that is refused as a whole may still give others.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pytest

from gputel.errors import ChunkCorrupt
from gputel.kernels import decode_chunk, encode_chunk
from gputel.limits import CHUNK_SAMPLES_MAX
from gputel.store import Store
from support.codecs import SHAPES, arguments_of, column_of, seal
from support.database import START_NS

DATA = Path(__file__).parent.parent / "data"
GOLDEN = sorted(DATA.glob("v[12]/*.chunk"))
ROUNDS = 150
Column = tuple[int, str, list[int], list[int], list[str], list[str]]

_DECODE = """
SELECT k.metric_id, k.storage, k.time_ns, k.sequence,
    ARRAY(SELECT gputel_value(k.storage, k.power, u)::text FROM unnest(k.bits) AS u),
    ARRAY(SELECT gputel_exact(k.storage, k.power, u)::text FROM unnest(k.bits) AS u)
FROM gputel_chunk($1, $2, 'a chunk') AS k
"""


@pytest.fixture
async def session(store: Store) -> AsyncGenerator[Any]:
    async with store.session() as one:
        await one.execute("SET statement_timeout = '20s'")
        yield one


async def by_sql(session: Any, payload: bytes, ids: list[int]) -> list[Column]:
    return [
        (metric_id, "fdqQ"[storage], *(list(array) for array in arrays))
        for metric_id, storage, *arrays in await session.fetch(_DECODE, payload, ids)
    ]


def by_kernel(payload: bytes, ids: list[int]) -> list[Column]:
    chunk = decode_chunk(payload)
    found = []
    for metric_id, storage, column, bits in zip(
        chunk.metric_ids, chunk.storages, chunk.columns, chunk.valid, strict=True
    ):
        mask = np.unpackbits(bits, count=len(column), bitorder="little").astype(bool)
        if metric_id in ids:
            found.append(
                (
                    metric_id,
                    storage,
                    chunk.time_ns[mask].tolist(),
                    chunk.sequence[mask].tolist(),
                    *texts(column[mask], storage),
                )
            )
    return found


def texts(values: Any, storage: str) -> tuple[list[str], list[str]]:
    """Values as PostgreSQL writes them: as doubles, and exactly."""
    return [str(float(v)) for v in values], [str(v) for v in values.tolist()]


def alike(found: list[Column], expected: list[Column]) -> bool:
    """The same columns; texts are compared as the numbers that they are."""
    if [column[:4] for column in found] != [column[:4] for column in expected]:
        return False
    for one, other in zip(found, expected, strict=True):
        doubles = [np.array([float(text) for text in c[4]]) for c in (one, other)]
        for array in doubles:
            array[np.isnan(array)] = np.nan
        if doubles[0].tobytes() != doubles[1].tobytes():
            return False
        storage = one[1]
        if storage in "qQ" and one[5] != other[5]:
            return False
        exact = np.array([float(text) for text in one[5]])
        if storage == "f":
            exact = exact.astype("f4").astype("f8")
        if storage in "fd" and not np.array_equal(exact, doubles[0], equal_nan=True):
            return False
    return True


async def test_frozen_chunks(session: Any) -> None:
    for path in GOLDEN:
        payload = path.read_bytes()
        ids = list(decode_chunk(payload).metric_ids)
        whole = await by_sql(session, payload, ids)
        assert alike(whole, by_kernel(payload, ids))
        for metric_id in ids[:: len(ids) // 3 or 1]:  # what is not asked for is passed over
            assert await by_sql(session, payload, [metric_id]) == [
                column for column in whole if column[0] == metric_id
            ]
        assert await by_sql(session, payload, [0]) == []


async def test_any_chunk(session: Any) -> None:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print("seed", seed)
    random = np.random.default_rng(seed)
    for _ in range(ROUNDS):
        storages = "".join(random.choice(list("fdqQ"), int(random.integers(1, 9))))
        n = int(random.choice([1, 2, 3, 7, 16, 17, 18, 33, 34, 64, 100, 300]))
        with np.errstate(all="ignore"):
            payload = encode_chunk(*arguments_of(storages, n, random))
        ids = list(decode_chunk(payload).metric_ids)
        chosen = [metric_id for metric_id in ids if random.random() < 0.7]
        assert alike(await by_sql(session, payload, chosen), by_kernel(payload, chosen))


async def test_every_shape_of_every_storage(session: Any) -> None:
    random = np.random.default_rng(7)
    ids = list(range(1, len(SHAPES) + 1))
    for storage, n in itertools.product("fdqQ", (1, 2, 31, 32, 200)):
        columns = [column_of(storage, n, random, shape) for shape in SHAPES]
        times = START_NS + np.arange(n) * 10**9
        valid = np.packbits(np.ones((len(columns), n), bool), axis=1, bitorder="little")
        payload = encode_chunk(
            1, ids, storage * len(ids), times, np.arange(n, dtype=np.int64), columns, valid
        )
        assert alike(await by_sql(session, payload, ids), by_kernel(payload, ids))


async def test_every_exponent_of_floats(session: Any) -> None:
    random = np.random.default_rng(8)
    for name, exponents, bits, signed in (
        ("gputel_f64", 2048, 52, "i8"),
        ("gputel_f32", 256, 23, "i4"),
    ):
        dtype = np.dtype(signed.replace("i", "u")).type
        powers = np.arange(exponents).astype(dtype) << dtype(bits)
        noise = random.integers(0, 2**bits, exponents).astype(dtype)
        positive = np.concatenate([powers, powers | dtype(1), powers | noise])
        every = np.concatenate([positive, positive | dtype(exponents << bits)])
        with np.errstate(invalid="ignore"):  # signalling NaNs
            values = every.view(signed.replace("i", "f")).astype("f8")
        numbers = every.view("i8") if signed == "i8" else every.astype("i8")
        found = await session.fetchval(
            f"SELECT ARRAY(SELECT {name}(u) FROM unnest($1::bigint[]) AS u)", numbers.tolist()
        )
        got, expected = np.array(found), values.copy()
        assert np.array_equal(np.isnan(got), np.isnan(expected))
        got[np.isnan(got)] = expected[np.isnan(expected)] = 0
        assert got.tobytes() == expected.tobytes()


async def test_the_largest_chunk(session: Any) -> None:
    n = CHUNK_SAMPLES_MAX
    times = START_NS + np.arange(n) * 10**6
    column = np.arange(n) % 7
    payload = encode_chunk(
        1, [5], "q", times, np.arange(n), [column], np.full((1, n // 8), 255, np.uint8)
    )
    ((_, _, time_ns, _, _, exact),) = await by_sql(session, payload, [5])
    assert time_ns == times.tolist()
    assert exact == [str(value) for value in column.tolist()]


async def refused(session: Any, payload: bytes, ids: list[int]) -> str | None:
    """Why it is; None when it is not. Any other error is one."""
    try:
        await by_sql(session, payload, ids)
    except asyncpg.DataCorruptedError as error:
        return str(error) if str(error).startswith("a chunk: ") else None
    return None


async def test_every_truncation_and_flipped_bits_are_noticed(session: Any) -> None:
    """By the checksum, which servers have from version 18 on."""
    assert await session.fetchval("SHOW server_version_num") >= "180000"
    payload = (DATA / "v2" / "33.chunk").read_bytes()
    ids = list(decode_chunk(payload).metric_ids)
    for end in range(0, len(payload), 3):
        assert await refused(session, payload[:end], ids)
    for bit in range(0, len(payload) * 8, 11):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        assert await refused(session, bytes(flipped), ids)
    assert "version 3 is unknown" in str(await refused(session, b"GC\x03" + payload[3:], ids))
    assert "no chunk" in str(await refused(session, b"", ids))
    assert "no chunk" in str(await refused(session, payload + bytes(262_144), ids))


async def test_damage_under_a_right_checksum(session: Any) -> None:
    """What the kernel reads, SQL reads alike; what it refuses, SQL refuses or gives columns of."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print("seed", seed)
    random = np.random.default_rng(seed)
    read = 0
    for name in ("v1/fast-7", "v2/7", "v2/33"):
        whole = (DATA / f"{name}.chunk").read_bytes()
        ids = list(decode_chunk(whole).metric_ids)
        for _ in range(ROUNDS):
            payload = seal(damaged(whole[:-4], random))
            try:
                expected = by_kernel(payload, ids)
            except ChunkCorrupt:
                await refused(session, payload, ids)
            else:
                assert alike(await by_sql(session, payload, ids), expected)
                read += 1
    assert read


def damaged(body: bytes, random: np.random.Generator) -> bytes:
    """Some bytes are others, behind the version."""
    changed = bytearray(body)
    for _ in range(int(random.integers(1, 3))):
        at = int(random.integers(3, len(changed)))
        if random.random() < 0.6:
            changed[at] = int(random.integers(256))
        else:
            changed[at : at + int(random.integers(6))] = random.bytes(int(random.integers(6)))
    return bytes(changed)


async def test_without_a_checksum_truncated_chunks_are_refused(session: Any) -> None:
    """As on older servers, where nothing else tells: all columns are asked for."""
    for path in GOLDEN[::3]:
        payload = path.read_bytes()
        ids = list(decode_chunk(payload).metric_ids)
        for end in range(3, len(payload) - 4, 1 + len(payload) // 40):
            assert await refused(session, seal(payload[:end]), ids)
