"""Both codecs of records write the same bytes, and read the same of whatever they are given."""

from __future__ import annotations

import random
from typing import Any

import google_crc32c
import msgspec
import pytest

import gputel._native.records
import gputel._reference.records
from gputel import limits
from gputel._reference.records import MAGIC, RUN_MAX, encode_record
from gputel.broker.engine.record import Record
from support.damage import damaged

TWINS: tuple[Any, ...] = (gputel._native.records, gputel._reference.records)
EDGES = (0, 1, 255, 2**31, 2**32 - 1, 2**32, 2**63 - 1)
PRODUCERS = ("", "node-1", "collector:ä", "鍵" * 100, "p" * limits.PRODUCER_BYTES_MAX)

#: Frozen: a log of today must be readable for ever.
GOLDEN = bytes.fromhex(
    "47515231 42811dee 4a000000 0700000000000000 fbffffffffffffff ffffffffffffffff"
    "0000000000000080 03000000 0c00 0300 636f6c6c6563746f723ac3a4 6b6579 7061796c6f6164"
)
GOLDEN_RECORD = Record(7, -5, "collector:ä", 2**64 - 1, 2**63, b"key", b"payload")


def random_records(rng: random.Random, count: int) -> list[Record]:
    records, offset = [], rng.choice(EDGES)
    for _ in range(count):
        size = rng.choice([0, 1, 8, 100, rng.randint(0, 5000), rng.randint(0, 70_000)])
        records.append(
            Record(
                offset,
                rng.choice([0, -1, -(2**63), 2**63 - 1, rng.getrandbits(60)]),
                rng.choice(PRODUCERS),
                rng.choice([*EDGES, 2**64 - 1]),
                rng.choice([*EDGES, 2**64 - 1]),
                rng.randbytes(rng.choice([0, 3, limits.KEY_BYTES_MAX])),
                rng.randbytes(size),
            )
        )
        offset += rng.choice([1, 1, 1, 9])
    return records


def test_the_bytes_of_a_record_are_frozen() -> None:
    assert encode_record(GOLDEN_RECORD, 3) == GOLDEN
    for twin in TWINS:
        out = memoryview(bytearray(len(GOLDEN) + 3))
        assert twin.encode_records([GOLDEN_RECORD], 0, 4, out, 2) == (
            2 + len(GOLDEN),
            [len(GOLDEN)],
        )
        assert bytes(out) == b"\0\0" + GOLDEN + b"\0"
        assert twin.decode_records(bytes(out), 2, 0, 9, Record) == [(GOLDEN_RECORD, len(GOLDEN), 3)]


@pytest.mark.parametrize("count", [15, 16, 40])
def test_large_runs_are_written_the_same(count: int) -> None:
    """Beyond 1 MiB without the GIL."""
    payload = random.Random(count).randbytes(64 * limits.KIB)
    records = [Record(offset, 1, "p", 1, offset, b"k", payload) for offset in range(count)]
    outs = [memoryview(bytearray(count * 66 * limits.KIB)) for _ in TWINS]
    results = [
        twin.encode_records(records, 0, 0, out, 0) for twin, out in zip(TWINS, outs, strict=True)
    ]
    assert results[0] == results[1]
    assert len(results[0][1]) == count
    assert bytes(outs[0]) == bytes(outs[1])


@pytest.mark.parametrize("seed", range(20))
def test_they_write_the_same_and_read_it_back(seed: int) -> None:
    rng = random.Random(seed)
    records = random_records(rng, rng.choice([0, 1, 5, 2 * RUN_MAX + 3]))
    unsynced = records[0].offset - min(records[0].offset, rng.choice([0, 3])) if records else 0
    whole = sum(len(encode_record(record, 0)) for record in records)
    room = rng.choice([whole + 10, whole, max(whole - 1, 0), whole // 2, 0]) + 5
    first = rng.randint(0, len(records))
    outs = [memoryview(bytearray(b"." * room)) for _ in TWINS]
    (filled, sizes), other = (
        twin.encode_records(records, first, unsynced, out, 5)
        for twin, out in zip(TWINS, outs, strict=True)
    )
    assert (filled, sizes) == other
    assert bytes(outs[0]) == bytes(outs[1])
    written = records[first : first + len(sizes)]
    if first + len(sizes) < len(records):
        following = encode_record(records[first + len(sizes)], 0)
        assert filled + len(following) > room
    for twin in TWINS:
        found, position, offset_min = [], 5, 0
        while run := twin.decode_records(
            bytes(outs[0][:filled]), position, offset_min, 999, Record
        ):
            assert len(run) <= RUN_MAX
            found += run
            position += sum(size for _, size, _ in run)
            offset_min = run[-1][0].offset + 1
        assert [record for record, _, _ in found] == written
        assert [size for _, size, _ in found] == sizes
        assert [in_commit for _, _, in_commit in found] == [r.offset - unsynced for r in written]


@pytest.mark.parametrize("twin", TWINS)
def test_reading_stops_where_it_is_told(twin: Any) -> None:
    records = random_records(random.Random(1), 6)
    data = b"".join(encode_record(record, 0) for record in records)

    def offsets(*arguments: int) -> list[int]:
        return [record.offset for record, _, _ in twin.decode_records(data, *arguments, Record)]

    everything = [record.offset for record in records]
    assert offsets(0, 0, 99) == offsets(0, everything[0], 99) == everything
    assert offsets(0, 0, 2) == everything[:2]
    assert offsets(0, 0, 0) == offsets(0, everything[0] + 1, 99) == offsets(1, 0, 99) == []
    assert offsets(len(data), 0, 99) == offsets(len(data) + 50, 0, 99) == []
    again = twin.decode_records(data + data, 0, 0, 99, Record)
    assert len(again) == len(records)  # offsets that begin anew
    last = encode_record(Record(2**64 - 1, 0, "p", 1, 1, b"", b""), 0)
    assert len(twin.decode_records(last + last, 0, 0, 99, Record)) == 1


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"offset": 2**64}, 0),
        ({"offset": -1}, 0),
        ({"offset": 5}, 6),
        ({"offset": 2**32}, 0),
        ({"stored_at_ns": 2**63}, 0),
        ({"epoch": 2**64}, 0),
        ({"sequence": -1}, 0),
        ({"producer": "p" * 65_536}, 0),
        ({"key": bytes(65_536)}, 0),
    ],
)
def test_what_no_field_can_hold_is_refused(twin: Any, change: dict[str, Any], first: int) -> None:
    record = msgspec.structs.replace(Record(7, 1, "p", 1, 1, b"", b""), **change)
    out = memoryview(bytearray(200_000))
    with pytest.raises(OverflowError):
        twin.encode_records([record], 0, first, out, 0)
    assert not any(out)


@pytest.mark.parametrize("seed", range(20))
def test_damaged_bytes_are_read_alike_and_never_as_something_else(seed: int) -> None:
    rng = random.Random(seed)
    records = [Record(n, n, "ä" * n, 1, n, b"k" * n, rng.randbytes(n * 7)) for n in range(5)]
    data = b"".join(encode_record(record, 0) for record in records)
    cut_short = 0
    for _ in range(300):
        hostile = damaged(rng, data)
        for position in (0, rng.randrange(len(data))):
            native, reference = (
                twin.decode_records(hostile, position, 0, 99, Record) for twin in TWINS
            )
            assert native == reference, hostile.hex()
            assert all(record in records for record, _, _ in native), hostile.hex()
            cut_short += len(native) < len(records)
    assert cut_short


def test_every_flipped_bit_of_a_record_is_noticed_and_every_length_of_it() -> None:
    for twin in TWINS:
        for bit in range(8 * len(GOLDEN)):
            flipped = bytearray(GOLDEN)
            flipped[bit // 8] ^= 1 << bit % 8
            assert twin.decode_records(bytes(flipped), 0, 0, 9, Record) == [], bit
        for length in range(len(GOLDEN)):
            assert twin.decode_records(GOLDEN[:length], 0, 0, 9, Record) == [], length


def test_lengths_that_lie_are_looked_at_before_they_are_believed() -> None:
    """With a checksum that fits: names longer than their record, records longer than allowed."""
    base = encode_record(Record(1, 1, "p", 1, 1, b"k", b"x" * 50), 0)
    for at, size, value in (
        (48, 2, 0xFFFF),
        (50, 2, 0xFFFF),
        (48, 2, 60),
        (8, 4, 51),
        (8, 4, 2**32 - 1),
    ):
        lying = bytearray(base)
        lying[at : at + size] = value.to_bytes(size, "little")
        for end in (len(lying), max(value, 8) if at == 8 else len(lying)):
            checked = bytes(lying[8:end])
            crc = google_crc32c.value(checked)
            lying[4:8] = crc.to_bytes(4, "little")
            for twin in TWINS:
                assert twin.decode_records(bytes(lying), 0, 0, 9, Record) == []
    large = Record(1, 1, "p", 1, 1, b"", bytes(limits.RECORD_BYTES_MAX))
    data = encode_record(large, 0)
    assert data[:4] == MAGIC
    for twin in TWINS:
        assert twin.decode_records(data, 0, 0, 9, Record) == []


def test_a_producer_that_is_no_text_is_not_read() -> None:
    data = bytearray(encode_record(Record(1, 1, "ab", 1, 1, b"k", b"x"), 0))
    data[52] = 0xFF
    data[4:8] = google_crc32c.value(bytes(data[8:])).to_bytes(4, "little")
    for twin in TWINS:
        assert twin.decode_records(bytes(data), 0, 0, 9, Record) == []
