"""Cells of hot rows read by SQL, and single values of them: what the kernels' reader finds.

A NaN is a NaN: SQL has but one.
"""

from __future__ import annotations

import random
import struct
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import pytest

from gputel._reference.hot_rows import HotStream, places
from gputel.batch import DTYPES
from gputel.catalog import METRIC_SETS, METRICS, SET_OF
from gputel.errors import RowCorrupt
from gputel.store import Store, cells

HEAD_BYTES = 54  # of a row in the stream, before its cells
F32_EDGES = """
    00000000 80000000 00000001 007fffff 00800000 80000001 7f7fffff 7f800000 ff800000 7fc00000
    ffa00001 7f800001 3f800000 bf800000
"""
F64_EDGES = """
    0000000000000000 8000000000000000 0000000000000001 000fffffffffffff 0010000000000000
    8000000000000001 7fefffffffffffff 7ff0000000000000 fff0000000000000 7ff8000000000000
    fff4000000000001 7ff0000000000001 3ff0000000000000 bff0000000000001
"""
F32_EDGES = """
    00000000 80000000 00000001 007fffff 00800000 80000001 7f7fffff 7f800000 ff800000 7fc00000
    ffa00001 7f800001 3f800000 bf800000
"""
F64_EDGES = """
    0000000000000000 8000000000000000 0000000000000001 000fffffffffffff 0010000000000000
    8000000000000001 7fefffffffffffff 7ff0000000000000 fff0000000000000 7ff8000000000000
    fff4000000000001 7ff0000000000001 3ff0000000000000 bff0000000000001
"""
EDGES: dict[str, Any] = {
    "f": np.array([int(word, 16) for word in F32_EDGES.split()], np.uint32).view(np.float32),
    "d": np.array([int(word, 16) for word in F64_EDGES.split()], np.uint64).view(np.float64),
    "q": np.array([0, 1, -1, 2**63 - 1, -(2**63), 2**53 + 1, 255, -256, 1 << 24, 1 << 32]),
    "Q": np.array([0, 1, 2**64 - 1, 2**63, 2**63 - 1, 2**53 + 1, 1 << 40], np.uint64),
}


@pytest.fixture
async def session(store: Store) -> AsyncGenerator[Any]:
    async with store.session() as one:
        yield one


def values_of(random: np.random.Generator, storage: str, count: int) -> Any:
    """Every edge, and any bits at all."""
    dtype = DTYPES[storage]
    drawn = np.frombuffer(random.bytes(count * dtype.itemsize), dtype)
    return np.concatenate([EDGES[storage], drawn])


def cells_of(storages: str, columns: list[Any], masks: Any) -> list[bytes]:
    rows = masks.shape[1]
    stream = HotStream(storages)
    valid = np.packbits(masks, axis=1, bitorder="little")
    numbers = np.zeros(rows, np.int64)
    stream.append(1, 1, numbers, numbers, columns, valid)
    data = bytes(stream.finish())
    size = HEAD_BYTES + places(storages)[-1]
    return [data[19 + i * size + HEAD_BYTES : 19 + (i + 1) * size] for i in range(rows)]


def same(found: Any, value: Any) -> bool:
    """The texts of PostgreSQL, and a number of numpy's."""
    double, exact = found
    if value.dtype.kind == "f" and np.isnan(value):
        return bool(double == exact == "NaN")
    if np.float64(double).tobytes() != np.float64(value).tobytes():
        return False
    if value.dtype.kind == "f":
        # A numeric has no negative zero.
        return bool(value.dtype.type(exact) == value)
    return int(exact) == int(value)


@pytest.mark.parametrize("seed", range(10))
async def test_every_storage_bit_by_bit(session: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    storages = "".join(random.permutation(list("fdqQ" * int(random.integers(1, 17)))))
    columns = [values_of(random, storage, 20) for storage in storages]
    rows = min(len(column) for column in columns)
    columns = [random.permutation(column)[:rows] for column in columns]
    masks = random.integers(0, 4, (len(storages), rows)) > 0
    at = places(storages)
    await session.execute("SET extra_float_digits = 1")
    for i, packed in enumerate(cells_of(storages, columns, masks)):
        found = await session.fetch(
            "SELECT gputel_cell($1, c, s, a)::text, gputel_cell_exact($1, c, s, a)::text, "
            "gputel_cell_bits($1, a) FROM unnest($2::int[], $3::int[], $4::int[]) AS u (c, s, a)",
            packed + bytes(4),  # a last f32 has but four bytes
            list(range(len(storages))),
            ["fdqQ".index(storage) for storage in storages],
            list(at[:-1]),
        )
        for j, storage in enumerate(storages):
            value = columns[j][i]
            if not masks[j, i]:
                assert tuple(found[j]) == (None, None, found[j][2])
                continue
            assert same(tuple(found[j])[:2], value), (storage, value, found[j])
            if storage != "f":
                assert struct.pack(">q", found[j][2]) == value.tobytes()[::-1]


async def test_what_is_not_there_is_null(session: Any) -> None:
    """No cells, and those of a row of an older catalog, which end before the cell."""
    for packed in (None, bytes(8), b"\x01" + bytes(15)):
        for storage in range(4):
            found = await session.fetchrow(
                "SELECT gputel_cell($1, 1, $2, 16), gputel_cell_exact($1, 1, $2, 16)",
                packed,
                storage,
            )
            assert tuple(found) == (None, None)


async def test_sql_knows_the_place_of_every_metric(session: Any) -> None:
    """Of its expression and in the table `metric`: values that differ in each metric."""
    for metric_set in METRIC_SETS:
        columns = [
            np.array([j + 0.5 if s in "fd" else j + 2**60]).astype(DTYPES[s])
            for j, s in enumerate(metric_set.storages)
        ]
        (packed,) = cells_of(metric_set.storages, columns, np.ones((len(columns), 1), bool))
        shown = ", ".join(
            f"{cells.in_sql(metric, 'h')}, {cells.exact_in_sql(metric, 'h')}, {cells.has(metric)}"
            for metric in metric_set.metrics
        )
        by_expression = await session.fetchrow(
            f"SELECT {shown} FROM (SELECT $1::bytea AS cells) h", packed
        )
        by_table = await session.fetch(
            "SELECT gputel_cell($1, cell, storage, cell_at), "
            "gputel_cell_exact($1, cell, storage, cell_at) "
            "FROM metric WHERE set_id = $2 ORDER BY metric_id",
            packed,
            metric_set.id,
        )
        for j, metric in enumerate(metric_set.metrics):
            value = columns[j][0].item()
            assert by_expression[3 * j] == by_table[j][0] == float(value)
            assert by_expression[3 * j + 1] == by_table[j][1] == value
            assert by_expression[3 * j + 2] is True
            assert cells.value_in(packed, metric) == value


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_single_value(metric: Any) -> None:
    storage = metric.storage.value
    storages = SET_OF[metric].storages
    j = SET_OF[metric].column(metric)
    rows = len(EDGES[storage])
    columns = [np.zeros(rows, DTYPES[s]) for s in storages]
    columns[j] = EDGES[storage]
    masks = np.zeros((len(storages), rows), bool)
    masks[j, ::2] = True
    for i, packed in enumerate(cells_of(storages, columns, masks)):
        found = cells.value_in(packed, metric)
        if i % 2:
            assert found is None
        else:
            assert np.array(found, DTYPES[storage]).tobytes() == EDGES[storage][i].tobytes()
    _, at, form = cells.PLACES[metric]
    for damaged in (b"", b"\xff" * 7, b"\xff" * (at + form.size - 1)):
        with pytest.raises(RowCorrupt, match=f"{len(damaged)} bytes of cells"):
            cells.value_in(damaged, metric)


@pytest.mark.parametrize("metric_set", METRIC_SETS, ids=lambda of: of.name)
def test_all_values_of_a_row_are_those_of_each(metric_set: Any) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    whole = places(metric_set.storages)[-1]
    for _ in range(100):
        chosen = rng.sample(metric_set.metrics, rng.randint(1, len(metric_set.metrics)))
        read = cells.reader(metric_set, chosen)
        valid = rng.getrandbits(len(metric_set.metrics)).to_bytes(8, "little")
        row = valid + rng.randbytes(whole - 8 + rng.choice([0, 0, 4, 8]))
        # Compared as text: a NaN is no other number's equal.
        assert repr(read(row)) == repr([cells.value_in(row, metric) for metric in chosen])
    # An older gputel knew less of the set; somebody else wrote what is no row at all.
    first, *_, last = metric_set.metrics
    read = cells.reader(metric_set, [last, first])
    older = b"\x01" + bytes(7) + row[8 : places(metric_set.storages)[1]]
    assert repr(read(older)) == repr([None, cells.value_in(older, first)])
    with pytest.raises(RowCorrupt, match="7 bytes of cells"):
        read(b"\xff" * 7)
