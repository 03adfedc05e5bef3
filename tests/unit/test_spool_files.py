"""The spool's files and numbers: what damage does to them, and what survives."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from gputel.broker.engine.disk import Disk
from gputel.collector.spool.entry import Entry, from_record, to_record
from gputel.collector.spool.files import IDLE_BYTES, Spool
from gputel.collector.spool.ledger import (
    RANGES_MAX,
    Ledger,
    Loss,
    Position,
    Progress,
    Range,
    after_death,
    covers,
    holes,
)
from gputel.collector.spool.watermark import HEAD_BYTES, SLOT_BYTES, Watermark
from gputel.inventory import Event, EventKind
from gputel.limits import MIB

ALL = (1 << 62, 0)


def entry(sequence: int, size_bytes: int = 100, epoch: int = 1, rows: int = 10) -> Entry:
    payload = random.Random(sequence).randbytes(size_bytes)
    return Entry(epoch, sequence, "n", payload, sequence, rows, sequence * rows, False)


def entries(first: int, last: int, size_bytes: int = 100) -> list[Entry]:
    return [entry(sequence, size_bytes) for sequence in range(first, last + 1)]


def spool_in(place: Path, bytes_max: int = 64 * MIB) -> Spool:
    spool = Spool(place, "p", bytes_max)
    spool.open()
    return spool


def read_all(spool: Spool) -> list[Entry]:
    found = []
    while part := spool.read(4096):
        found += part
    return found


def only_log(place: Path) -> Path:
    (path,) = place.glob("*.log")
    return path


def test_an_entry_is_a_record_and_back() -> None:
    for given in (entry(1), entry(2, 0), entry(3)._replace(eventful=True, rows_through=1 << 40)):
        assert from_record(to_record(given, 7, "p")) == given
    record = to_record(entry(1), 0, "p")
    assert from_record(replace(record, payload=b"short")) is None
    assert from_record(replace(record, key=b"\xff\xff")) is None


def test_a_record_cut_at_any_length_costs_itself_alone(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    spool = spool_in(whole)
    spool.append(entries(1, 3))
    before = spool.size_bytes
    spool.append([entry(4)])
    spool.close()
    data = only_log(whole).read_bytes()
    for length in range(before, len(data)):
        place = tmp_path / "cut"
        place.mkdir()
        (place / only_log(whole).name).write_bytes(data[:length])
        cut = Spool(place, "p", 64 * MIB)
        assert cut.open() >= 3
        assert cut.newest is not None
        assert cut.newest.key == (1, 3)
        assert read_all(cut) == entries(1, 3)
        assert cut.damaged_bytes == length - before
        cut.append([entry(5)])
        assert read_all(cut) == [entry(5)]
        cut.release(ALL, all=True)
        assert list(place.glob("*.log")) == []
        cut.close()
        for left in place.iterdir():
            left.unlink()
        place.rmdir()


@pytest.mark.parametrize("size_bytes", [700, 65_536])
def test_a_replay_reads_the_disk_about_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    spool = spool_in(tmp_path)
    given = entries(1, 6 * MIB // size_bytes, size_bytes)
    spool.append(given)
    whole, taken_bytes = os.pread, 0

    def counted(fd: int, count: int, position: int) -> bytes:
        nonlocal taken_bytes
        data = whole(fd, count, position)
        taken_bytes += len(data)
        return data

    monkeypatch.setattr(os, "pread", counted)
    found = []
    while part := spool.read(MIB):
        found += part
    assert found == given
    assert taken_bytes <= 1.2 * spool.size_bytes
    spool.close()


def test_a_flipped_byte_costs_its_record_alone(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    spool.append(entries(1, 3, 40))
    spool.close()
    path = only_log(tmp_path)
    data = path.read_bytes()
    third = len(data) // 3
    for position in range(third, 2 * third):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x40]) + data[position + 1 :])
        damaged = spool_in(tmp_path)
        assert read_all(damaged) == [entry(1, 40), entry(3, 40)]
        assert damaged.damaged_bytes == third
        damaged.close()


@pytest.mark.parametrize("garbage", [b"", b"x", b"GQR1" * 5000, bytes(300_000)])
def test_files_of_garbage_are_skipped_and_deleted(tmp_path: Path, garbage: bytes) -> None:
    spool = spool_in(tmp_path)
    spool.append(entries(1, 2))
    spool.close()
    (tmp_path / f"{100:020}.log").write_bytes(garbage)
    (tmp_path / "notes.log").write_bytes(b"not ours")
    again = spool_in(tmp_path)
    assert again.newest is not None
    assert again.newest.key == (1, 2)
    again.append(entries(3, 4))
    assert read_all(again) == entries(1, 4)
    again.release(ALL, all=True)
    assert [path.name for path in tmp_path.glob("*.log")] == ["notes.log"]
    again.close()


def test_frames_of_another_producer_are_not_ours(tmp_path: Path) -> None:
    other = Spool(tmp_path, "q", 64 * MIB)
    other.open()
    other.append(entries(1, 2))
    other.close()
    spool = spool_in(tmp_path)
    assert read_all(spool) == []
    assert spool.damaged_bytes > 0
    spool.close()


def test_the_reader_does_not_read_what_it_has_had(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    spool.append(entries(1, 3))
    spool.pass_over()
    assert read_all(spool) == []
    spool.append(entries(4, 6))
    assert spool.unread
    assert read_all(spool) == entries(4, 6)
    spool.close()


def test_segments_are_deleted_once_read_and_acknowledged(tmp_path: Path) -> None:
    spool = spool_in(tmp_path, 8 * MIB)  # segments of 1 MiB
    for first in range(1, 41):
        spool.append([entry(first, 100_000)])
    files = len(list(tmp_path.glob("*.log")))
    assert files == 4
    spool.release((1, 40))
    assert len(list(tmp_path.glob("*.log"))) == files, "nothing has been read"
    assert [e.sequence for e in spool.read(1_500_000)] == list(range(1, 16))
    spool.release((1, 10))
    assert len(list(tmp_path.glob("*.log"))) == files
    spool.release((1, 15))
    assert len(list(tmp_path.glob("*.log"))) == files - 1
    assert [e.sequence for e in read_all(spool)] == list(range(16, 41))
    assert spool.releasable((1, 40))
    spool.release((1, 40))
    assert list(tmp_path.glob("*.log")) == []
    assert spool.size_bytes == 0
    spool.append([entry(41)])
    spool.pass_over()
    assert not spool.releasable((1, 41)), f"smaller than {IDLE_BYTES}"
    spool.close()


def test_a_read_that_fails_raises_and_can_be_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = spool_in(tmp_path, 8 * MIB)
    for first in range(1, 21):
        spool.append([entry(first, 100_000)])

    def broken(fd: int, count: int, position: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(OSError, match="Input"):
        spool.read(1000)
    monkeypatch.undo()
    spool.skip_file()
    assert read_all(spool)[-1].sequence == 20
    spool.close()


def test_an_append_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = spool_in(tmp_path)
    spool.append(entries(1, 2))

    def full(self: Disk, fd: int, buffers: list[bytes]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Disk, "append", full)
    with pytest.raises(OSError, match="No space"):
        spool.append(entries(3, 4))
    monkeypatch.undo()
    spool.append(entries(3, 4))
    assert read_all(spool) == entries(1, 4)
    spool.close()


# -- the ledger ------------------------------------------------------------------------


def test_holes_are_what_nobody_gave_up() -> None:
    start, end = Position(1, 10, 100), Position(1, 30, 300)
    assert [(h.first, h.last, h.rows) for h in holes(start, [], end)] == [(11, 30, 200)]
    dropped = [Range(1, 15, 20, 60, 200), Range(2, 1, 30, 300, 300)]
    assert [(h.first, h.last, h.rows) for h in holes(start, dropped, end)] == [
        (11, 14, 40),
        (21, 30, 100),
    ]
    assert list(holes(start, [Range(1, 11, 30, 200, 300)], end)) == []
    assert list(holes(end, [], end)) == []


def test_a_loss_is_told_once_and_again_if_its_frame_is_lost() -> None:
    saved: list[Progress] = []
    ledger = Ledger(5)
    ledger.keep(saved.append)
    ledger.assign(10)
    ledger.lose(Loss(5, 1, 1, 10, "memory_full"))
    (event,) = ledger.owed_events(1)
    assert event.code == 10
    carrier = ledger.assign(10)
    ledger.lose(Loss(5, 9, 9, 1, "damaged"))
    assert ledger.owed_events(1) == [], "one at a time: the carrier is not safe yet"
    # Dead before the carrier was on disk: both are told by the next.
    codes = sorted(loss.rows for loss in after_death(saved[-1], 20, None, ()))
    assert codes == [1, 10, 20]
    ledger.secured(carrier, carrier)
    (event,) = ledger.owed_events(1)
    assert event.code == 1
    ledger.acknowledged(5, ledger.assign(0), 20)
    assert ledger.owed_events(1) == []
    # A GAP event in a frame that is given up is told again, in its own words.
    gap = Event(1, EventKind.GAP, "", 77, "frames 1 to 2 of epoch 3 lost")
    ledger.drop([entry(4, epoch=5)], "spool_full", [gap])
    told = ledger.owed_events(2)
    assert sorted(event.code for event in told) == [10, 77]
    assert gap.message in {event.message for event in told}


def test_the_ledger_is_bounded() -> None:
    ledger = Ledger(1)
    for number in range(1, 10_000):
        ledger.drop([entry(2 * number)], "spool_full", [])
        ledger.lose(Loss(1, 0, 0, 1, f"reason {number}"))
    progress = ledger.progress()
    assert len(progress.dropped) <= RANGES_MAX
    assert len(progress.owed) <= RANGES_MAX
    assert sum(loss.rows for loss in progress.owed) == 11 * 9_999
    long = Event(1, EventKind.XID, "GPU-1", 1, "x" * 4000)
    for number in range(1000):
        ledger.drop([entry(30_000 + 2 * number)], "spool_full", [long])
    assert ledger.lost_events > 900
    assert len(ledger.owed_events(1)) < 100


def test_what_is_exposed_shrinks_with_the_acknowledgements() -> None:
    ledger = Ledger(9)
    for sequence in range(5, 9):
        ledger.expose(entry(sequence, epoch=3))
    assert ledger.exposed == [Range(3, 5, 8, 40, 80)]
    assert covers(ledger.exposed, 3, 8)
    assert not covers(ledger.exposed, 3, 9)
    ledger.acknowledged(3, 6, 60)
    assert ledger.exposed == [Range(3, 7, 8, 20, 80)]
    ledger.acknowledged(3, 8, 80)
    assert ledger.exposed == []


# -- the watermark ---------------------------------------------------------------------


def test_the_watermark_survives_its_object_and_a_torn_slot(tmp_path: Path) -> None:
    path = tmp_path / "watermark"
    assert Watermark(path).found is None
    mark = Watermark(path)
    mark.begin(Progress(1))
    mark.swept(5)
    mark.save(Progress(1, assigned=1))
    mark.save(Progress(1, assigned=2))
    found = Watermark(path).found
    assert found is not None
    assert (found.progress.assigned, found.swept_rows) == (2, 5)
    good = path.read_bytes()
    newest = HEAD_BYTES + 3 % 2 * SLOT_BYTES
    for position in range(newest, newest + 80):
        data = bytearray(good)
        data[position] ^= 1
        path.write_bytes(data)
        torn = Watermark(path).found
        assert torn is not None
        assert torn.progress.assigned == 1, position
    path.write_bytes(b"garbage")
    assert Watermark(path).found is None


def test_a_new_epoch_begins_with_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "watermark"
    mark = Watermark(path)
    for epoch in range(1, 5):
        mark.begin(Progress(epoch))
        found = Watermark(path).found
        assert found is not None
        assert (found.progress.epoch, found.swept_rows) == (epoch, 0)
        mark.swept(100 + epoch)
        assert Watermark(path).found == (Progress(epoch), 100 + epoch)
