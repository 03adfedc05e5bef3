"""What is left of a log after a crash: only what was never acknowledged may go."""

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gputel._reference.records import encode_record
from gputel.broker.engine import disk as files
from gputel.broker.engine import segment as segments
from gputel.broker.engine.disk import BLOCK_BYTES, Disk
from gputel.broker.engine.producers import Mark, Producers
from gputel.broker.engine.record import Located, Record
from gputel.broker.engine.recovery import Recovered, recover
from gputel.broker.engine.segment import INDEX_INTERVAL_BYTES, Gap, Segment, walk
from gputel.errors import LogCorrupt


def write_log(commits: list[int]) -> tuple[bytes, list[int]]:
    """A segment of commits of so many records each, and where each record ends."""
    data, ends, offset = b"", [], 0
    for count in commits:
        for in_commit in range(count):
            record = Record(offset, 1, "p", 1, offset + 1, b"k", bytes([offset]) * 40)
            data += encode_record(record, in_commit)
            ends.append(len(data))
            offset += 1
    return data, ends


def recover_from(directory: Path, data: bytes) -> Recovered:
    Segment.named(directory, 0).write_bytes(data)
    return recover(directory, Disk())


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


def facts(found: Recovered) -> tuple[int, int, int, int]:
    mark = found.producers.get("p")
    size_bytes = found.segments[-1].size_bytes
    return found.next_offset, size_bytes, len(found.gaps), mark.sequence if mark else 0


def test_every_truncation_of_the_last_record_leaves_those_before_it(tmp_path):
    data, ends = write_log([2, 2, 1])
    for length in range(ends[3], ends[4]):
        assert facts(recover_from(tmp_path, data[:length])) == (4, ends[3], 0, 4), length
        assert Segment.named(tmp_path, 0).stat().st_size == ends[3]


def test_every_flipped_byte_of_the_last_record_cuts_it_off(tmp_path):
    data, ends = write_log([2, 2, 1])
    for position in range(ends[3], ends[4]):
        found = recover_from(tmp_path, flipped(data, position))
        assert facts(found) == (4, ends[3], 0, 4), position


def test_a_hole_in_the_last_commit_takes_the_rest_of_that_commit(tmp_path):
    """Else the repeat of the torn record would be taken for one that is stored."""
    data, ends = write_log([2, 3])
    for position in range(ends[2], ends[3]):
        found = recover_from(tmp_path, flipped(data, position))
        assert facts(found) == (3, ends[2], 0, 3), position


def test_damage_in_an_older_commit_stays_and_is_reported(tmp_path):
    data, ends = write_log([2, 2, 1])
    for position in range(ends[0], ends[1]):
        found = recover_from(tmp_path, flipped(data, position))
        assert facts(found) == (5, len(data), 1, 5), position
        assert found.gaps == [Gap(ends[0], ends[1])]
        part = found.segments[0].read(0, 5, 100, 1 << 20)
        assert [record.offset for record in part.records] == [0, 2, 3, 4]


@pytest.mark.parametrize("zeros", [1, 70, BLOCK_BYTES - 1])
def test_what_fills_the_last_block_is_cut_off_without_a_word(tmp_path, caplog, zeros):
    data, ends = write_log([2, 3])
    found = recover_from(tmp_path, data + bytes(zeros))
    assert facts(found) == (5, ends[-1], 0, 5)
    assert found.torn_bytes == 0
    assert not caplog.records
    assert Segment.named(tmp_path, 0).read_bytes() == data


@pytest.mark.parametrize("tail", [bytes(BLOCK_BYTES), bytes(100) + b"x", b"GQR1" + bytes(100)])
def test_what_fills_no_block_is_torn(tmp_path, caplog, tail):
    data, ends = write_log([2, 3])
    found = recover_from(tmp_path, data + tail)
    assert facts(found) == (5, ends[-1], 0, 5)
    assert found.torn_bytes == len(tail)
    assert "torn tail" in caplog.text


def test_zeros_at_the_end_of_a_segment_that_was_left_are_damage(tmp_path):
    """It ended with its last record when the next one began."""
    data, ends = write_log([1] * 5)
    Segment.named(tmp_path, 5).write_bytes(b"")
    found = recover_from(tmp_path, data[: ends[3]] + bytes(ends[4] - ends[3]))
    part = found.segments[0].read(0, 5, 100, 1 << 20)
    assert [record.offset for record in part.records] == [0, 1, 2, 3]
    assert part.gaps == [Gap(ends[3], ends[4])]


def whole_blocks(commits: int) -> tuple[bytes, list[int]]:
    """A segment of one block, whose last payload ends with zeros."""
    data, ends = write_log([1] * (commits - 1))
    offset = commits - 1
    room = BLOCK_BYTES - len(data)
    head = len(encode_record(Record(offset, 1, "p", 1, commits, b"k", b""), 0))
    data += encode_record(Record(offset, 1, "p", 1, commits, b"k", bytes(room - head)), 0)
    assert len(data) == BLOCK_BYTES
    return data, [*ends, len(data)]


def test_a_segment_that_was_left_is_cut_to_its_last_record(tmp_path, caplog):
    """What a crash while the next one began may have left undone."""
    data, _ = write_log([1] * 5)
    Segment.named(tmp_path, 5).write_bytes(b"")
    found = recover_from(tmp_path, data + bytes(-len(data) % BLOCK_BYTES))
    assert found.segments[0].size_bytes == len(data)
    assert Segment.named(tmp_path, 0).read_bytes() == data
    assert found.segments[0].read(0, 5, 100, 1 << 20).gaps == []
    assert "torn" not in caplog.text


def test_zeros_that_belong_to_a_record_are_not_cut(tmp_path):
    data, _ = whole_blocks(5)
    Segment.named(tmp_path, 5).write_bytes(b"")
    found = recover_from(tmp_path, data)
    assert found.segments[0].size_bytes == len(data)
    assert len(found.segments[0].read(0, 5, 100, 1 << 20).records) == 5


def test_zeros_in_the_place_of_a_message_are_damage(tmp_path):
    """Less than a block of them, in a file of whole blocks: but the next one begins behind it."""
    data, ends = whole_blocks(5)
    Segment.named(tmp_path, 5).write_bytes(b"")
    found = recover_from(tmp_path, data[: ends[3]] + bytes(ends[4] - ends[3]))
    assert found.segments[0].size_bytes == len(data)
    assert found.segments[0].read(0, 5, 100, 1 << 20).gaps == [Gap(ends[3], ends[4])]


@pytest.mark.parametrize("seed", range(4))
def test_a_segment_is_indexed_by_whoever_reads_it(tmp_path, seed):
    """From anywhere, also behind damage, by several at once: what is asked for is found."""
    rng = random.Random(seed)
    data, positions, offset = b"", [], 0
    while len(data) < 3 << 20:
        payload = rng.randbytes(rng.choice([0, 10, 1000, 30_000, 100_000]))
        record = Record(offset, 1, "p", 1, offset + 1, b"k", payload)
        positions.append(len(data))
        data += encode_record(record, 0)
        offset += rng.choice([1, 1, 1, 5])
        positions += [-1] * (offset - len(positions))
    damaged = rng.sample([i for i, position in enumerate(positions) if position >= 0], 3)
    for number in damaged:
        data = flipped(data, positions[number] + 8)
    path = Segment.named(tmp_path, 0)
    path.write_bytes(data)
    sound = [i for i, position in enumerate(positions) if position >= 0 and i not in damaged]
    segment = Segment(path, 0, len(data))

    def look(own: int) -> None:
        rng = random.Random(own)
        for _ in range(30):
            first = rng.choice([0, offset - 1, rng.randrange(offset)])
            messages_max, bytes_max = rng.choice([1, 7, 1000]), rng.choice([1, 50_000, 1 << 20])
            part = segment.read(first, offset, messages_max, bytes_max)
            expected = [i for i in sound if i >= first]
            got = [record.offset for record in part.records]
            assert got == expected[: len(got)]
            assert got or not expected
            assert len(got) <= messages_max
            assert sum(len(record.payload) for record in part.records[1:]) <= bytes_max
            rest = expected[len(got) :]
            assert part.next_offset == (rest[0] if rest else offset) or (
                got and part.next_offset == got[-1] + 1
            )

    with ThreadPoolExecutor(4) as readers:
        for done in [readers.submit(look, seed * 10 + number) for number in range(4)]:
            done.result()


@pytest.mark.parametrize("first_bytes", [10, 500_000])
def test_the_time_of_a_segment_costs_a_look_at_its_beginning(tmp_path, monkeypatch, first_bytes):
    payloads = [bytes(first_bytes)] + [bytes(60_000)] * 100
    records = [Record(n, 7 + n, "p", 1, n + 1, b"k", body) for n, body in enumerate(payloads)]
    path = Segment.named(tmp_path, 0)
    path.write_bytes(b"".join(encode_record(record, 0) for record in records))
    read_bytes = []

    def counted(fd, count, position):
        data = files.pread(fd, count, position)
        read_bytes.append(len(data))
        return data

    monkeypatch.setattr(segments, "pread", counted)
    of = Segment(path, 0, path.stat().st_size)
    assert of.first_time() == of.first_time() == 7
    assert sum(read_bytes) <= INDEX_INTERVAL_BYTES + 2 * first_bytes


def test_a_walk_finds_records_behind_damage_larger_than_its_window(tmp_path):
    data, ends = write_log([1, 1])
    junk = os.urandom(9 << 20)
    path = tmp_path / "log"
    path.write_bytes(data[: ends[0]] + junk + data[ends[0] :])
    fd = os.open(path, os.O_RDONLY)
    try:
        found = list(walk(fd, path.stat().st_size))
    finally:
        os.close(fd)
    end = ends[0] + len(junk)
    assert found[1] == Gap(ends[0], end)
    assert [item.position for item in found if isinstance(item, Located)] == [0, end]


def test_a_snapshot_keeps_producers_and_a_damaged_one_is_noticed():
    table = Producers()
    table.advance("p", Mark(3, 9, 40))
    data = table.snapshot()
    assert Producers.restore(data, 50).get("p") == Mark(3, 9, 49)
    for position in range(len(data)):
        with pytest.raises(LogCorrupt):
            Producers.restore(flipped(data, position), 50)
