"""What the log's files get: every byte, in order, however it is cut."""

from __future__ import annotations

import ctypes
import errno
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gputel._reference.records import encode_record
from gputel.broker.engine import disk as files
from gputel.broker.engine.disk import (
    BLOCK_BYTES,
    HUGE_PAGE_BYTES,
    PIECE_BYTES,
    Disk,
    OneCallDisk,
    SyncFailed,
    begin_writeback,
    direct_memory,
    is_direct,
    leave_direct,
    pread,
)
from gputel.broker.engine.log_file import LogFile, Stage
from gputel.broker.engine.mend import probe
from gputel.broker.engine.record import Record, record_bytes

STAGE_BYTES = 64 * BLOCK_BYTES


class CachedDisk(Disk):
    """A file system that knows no other way than through the page cache, as tmpfs once."""

    def open_log(self, path: Path) -> int:
        fd = super().open_log(path)
        leave_direct(fd)
        return fd


class RefusingDisk(Disk):
    """A file system that opens files directly, and then refuses to write them so."""

    def __init__(self, refusal: int = errno.EINVAL) -> None:
        self._refusal = refusal

    def write(self, fd: int, data: memoryview, position: int) -> None:
        if is_direct(fd):
            raise OSError(self._refusal, os.strerror(self._refusal))
        super().write(fd, data, position)


class RefusingOneCallDisk(OneCallDisk):
    """A file system that opens files directly, and then refuses to write them so."""

    def _write_blocks(self, fd: int, data: memoryview, position: int, flags: int = 0) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


class Written:
    """What a log file is to hold."""

    def __init__(self) -> None:
        self.data = b""
        self._next_offset = 0

    def commit(self, payloads: Sequence[bytes]) -> tuple[list[Record], int]:
        """The arguments of `LogFile.append`."""
        first = self._next_offset
        records = [
            Record(offset, 1, "p", 1, offset + 1, b"k", payload)
            for offset, payload in enumerate(payloads, first)
        ]
        self._next_offset += len(records)
        self.data += b"".join(encode_record(record, record.offset - first) for record in records)
        return records, first


def random_payloads(rng: random.Random, count: int) -> list[bytes]:
    sizes = [0, 1, 70, 1100, BLOCK_BYTES - 58, BLOCK_BYTES, 65_536, rng.randint(0, 3 * 65_536)]
    return [rng.randbytes(rng.choice(sizes)) for _ in range(count)]


def cut_short(monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    """Let the kernel take less than it is given, whole sectors where they are asked for."""
    pwrite, pwritev = os.pwrite, os.pwritev

    def short_pwrite(fd: int, data: Any, position: int) -> int:
        return pwrite(fd, part(data, 1), position)

    def short_pwritev(fd: int, buffers: Any, position: int, flags: int) -> int:
        return pwritev(fd, (part(buffers[0], 512),), position, flags)

    def part(data: Any, unit: int) -> Any:
        if len(data) <= unit or rng.random() < 0.5:
            return data
        return data[: rng.randrange(unit, len(data), unit)]

    monkeypatch.setattr(os, "pwrite", short_pwrite)
    monkeypatch.setattr(os, "pwritev", short_pwritev)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "disk",
    [
        Disk(),
        OneCallDisk(),
        CachedDisk(),
        RefusingDisk(),
        RefusingDisk(errno.EOPNOTSUPP),
        RefusingOneCallDisk(),
    ],
)
@pytest.mark.parametrize("short", [False, True])
def test_commits_lie_behind_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, disk: Disk, short: bool
) -> None:
    rng = random.Random(seed)
    if short:
        cut_short(monkeypatch, rng)
    path, stage = tmp_path / "log", Stage(STAGE_BYTES)
    file, written = LogFile(disk, path, 0, stage), Written()
    for number in range(25):
        records, first = written.commit(random_payloads(rng, rng.choice([1, 2, 10])))
        sizes = file.append(records, first, durably=number % 3 > 0)
        assert sizes == [record_bytes(record) for record in records]
        file.sync()
        expected = written.data
        assert file.size_bytes == len(expected)
        found = path.read_bytes()
        assert found[: len(expected)] == expected
        padding = found[len(expected) :]
        assert len(padding) < BLOCK_BYTES
        assert not any(padding)
        if number % 7 == 0:  # opened anew, as by the next process
            file.close()
            file = LogFile(disk, path, len(expected), stage)
    file.seal()
    assert path.read_bytes() == expected
    file.close()
    assert path.read_bytes() == expected


@pytest.mark.parametrize("disk", [Disk(), OneCallDisk(), CachedDisk()])
def test_a_commit_that_failed_is_cut_off_and_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: Disk
) -> None:
    file = LogFile(disk, tmp_path / "log", 0, Stage(STAGE_BYTES))
    written = Written()
    file.append(*written.commit([os.urandom(5000)]))
    before = written.data
    large = written.commit([os.urandom(STAGE_BYTES // 2)] * 5)
    pwrite, pwritev, left = os.pwrite, os.pwritev, [STAGE_BYTES]

    def fitting(data: Any) -> Any:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = min(len(data), left[0])
        left[0] -= taken
        return data[:taken]

    def full(fd: int, data: Any, position: int) -> int:
        return pwrite(fd, fitting(data), position)

    def full_blocks(fd: int, buffers: Any, position: int, flags: int) -> int:
        return pwritev(fd, (fitting(buffers[0]),), position, flags)

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(os, "pwritev", full_blocks)
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            file.append(*large, durably=True)
        file.cut(len(before))
        assert (tmp_path / "log").read_bytes() == before
        left[0] = BLOCK_BYTES
    monkeypatch.undo()
    file.append(*large)
    file.append(*written.commit([b"", b"x" * 100]))
    file.close()
    assert (tmp_path / "log").read_bytes() == written.data


def test_one_call_writes_and_syncs_where_the_kernel_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = OneCallDisk()
    file, written = LogFile(disk, tmp_path / "log", 0, Stage(STAGE_BYTES)), Written()
    if not file._direct:
        pytest.skip("this file system knows no O_DIRECT")
    pwritev, fdatasync = os.pwritev, os.fdatasync
    asked: list[int] = []
    refused: list[int] = []

    def noted_pwritev(fd: int, buffers: Any, position: int, flags: int) -> int:
        asked.append(flags)
        if flags in refused:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return pwritev(fd, buffers, position, flags)

    def noted_fdatasync(fd: int) -> None:
        asked.append(-1)
        fdatasync(fd)

    def commit(*, durably: bool) -> list[int]:
        asked.clear()
        file.append(*written.commit([b"x" * 5000]), durably=durably)
        file.sync()
        return list(asked)

    monkeypatch.setattr(os, "pwritev", noted_pwritev)
    monkeypatch.setattr(os, "fdatasync", noted_fdatasync)
    assert commit(durably=True) == [os.RWF_DSYNC]
    assert commit(durably=False) == [0, -1]
    assert commit(durably=True) == [os.RWF_DSYNC]
    file.append(*written.commit([b"y"]))
    assert commit(durably=True) == [os.RWF_DSYNC, -1]  # the one before is not durable yet
    refused.append(os.RWF_DSYNC)
    assert commit(durably=True) == [os.RWF_DSYNC, 0, -1]
    file.close()
    assert (tmp_path / "log").read_bytes() == written.data


def test_a_sync_that_fails_is_told_from_a_write_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(fd: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    file = LogFile(Disk(), tmp_path / "log", 0, Stage(STAGE_BYTES))
    if not file._direct:
        pytest.skip("this file system knows no O_DIRECT")
    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(SyncFailed):
        file.append(*Written().commit([b"x"]), durably=True)
    assert file._direct  # EINVAL of a write would have been another matter
    monkeypatch.undo()
    file.close()


def test_memory_for_disks_is_aligned_and_empty() -> None:
    for size_bytes in (BLOCK_BYTES, 3 * 1024 * 1024):
        memory = direct_memory(size_bytes)
        assert len(memory) == size_bytes
        assert not memory.readonly
        assert not any(memory)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert address % HUGE_PAGE_BYTES == 0


@pytest.mark.parametrize("disk", [Disk(), OneCallDisk(), CachedDisk(), RefusingDisk()])
def test_a_disk_is_tried_as_a_commit_would_use_it(tmp_path: Path, disk: Disk) -> None:
    (tmp_path / "probe").write_bytes(b"left by one that was killed" * 1000)
    probe(tmp_path, disk)
    assert list(tmp_path.iterdir()) == []


def test_what_a_failed_sync_left_is_cut_off(tmp_path: Path) -> None:
    file = LogFile(Disk(), tmp_path / "log", 0, Stage(STAGE_BYTES))
    written = Written()
    file.append(*written.commit([os.urandom(5000)]))
    before = written.data
    file.append(*written.commit([os.urandom(9000)]))
    written.data = before
    file.cut(len(before))
    file.append(*written.commit([os.urandom(10)]))
    file.close()
    assert (tmp_path / "log").read_bytes() == written.data


def test_a_file_system_that_takes_no_more_lets_files_be_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that the kernel has remounted to be read only: a broker must be able to stop."""
    disk, written = Disk(), Written()
    files_open = [LogFile(disk, tmp_path / name, 0, Stage(STAGE_BYTES)) for name in "ab"]
    if not files_open[0]._direct:
        pytest.skip("this file system knows no O_DIRECT")
    files_open[0].append(*written.commit([os.urandom(5000)]))

    def refused(fd: int, size_bytes: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "ftruncate", refused)
    for file in files_open:
        file.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(file._fd)
    assert "Read-only file system" in caplog.text
    assert (tmp_path / "a").stat().st_size == 2 * BLOCK_BYTES


@pytest.mark.parametrize("durably", [False, True])
def test_a_disk_that_takes_no_whole_block_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durably: bool
) -> None:
    disk = OneCallDisk()
    file = LogFile(disk, tmp_path / "log", 0, Stage(STAGE_BYTES))
    if not file._direct:
        pytest.skip("this file system knows no O_DIRECT")
    whole = os.pwritev

    def first_sector(fd: int, buffers: Any, position: int, flags: int) -> int:
        return whole(fd, (buffers[0][:512],), position, flags)

    monkeypatch.setattr(os, "pwritev", first_sector)
    with pytest.raises(OSError, match="takes no whole block of 4096 bytes"):
        file.append(*Written().commit([b"x"]), durably=durably)
    monkeypatch.undo()
    file.close()


@pytest.mark.parametrize("flags", [0, os.O_DIRECT])
def test_any_part_of_a_file_is_read(tmp_path: Path, flags: int) -> None:
    rng = random.Random(5)
    data = rng.randbytes(3 * 1024 * 1024 + 77)
    path = tmp_path / "log"
    path.write_bytes(data)
    try:
        fd = os.open(path, os.O_RDONLY | flags)
    except OSError:
        pytest.skip("this file system knows no O_DIRECT")
    try:
        for _ in range(60):
            position = rng.choice([0, 1, 4095, 4096, 512, rng.randrange(len(data) + 10)])
            count = rng.choice([0, 1, 511, 4096, 70_000, 1 << 20, len(data)])
            assert pread(fd, count, position) == data[position : position + count]
    finally:
        os.close(fd)


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_refuses_to_read_directly_is_read_through_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    def refused(fd: int, buffers: Any, position: int) -> int:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(os, "preadv", refused)
    (tmp_path / "log").write_bytes(bytes(range(100)))
    fd = files.open_direct(tmp_path / "log", os.O_RDONLY)
    try:
        assert pread(fd, 10, 5) == bytes(range(5, 15))
        assert not is_direct(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("short", [False, True])
def test_appending_goes_on_until_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    rng = random.Random(3)
    buffers = random_payloads(rng, 30) + [b"x"] * 3000

    def cut(fd: int, pieces: Sequence[bytes]) -> int:
        return os.write(fd, b"".join(pieces)[: max(1, rng.randint(0, 4096))])

    if short:
        monkeypatch.setattr(os, "writev", cut)
    disk = Disk()
    fd = disk.open_append(tmp_path / "spool")
    try:
        disk.append(fd, buffers)
        disk.sync(fd)
    finally:
        os.close(fd)
    assert (tmp_path / "spool").read_bytes() == b"".join(buffers)


def test_the_disk_begins_with_a_large_commit_and_not_with_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    def noted(fd: int) -> None:
        begun.append(os.fstat(fd).st_size)
        begin_writeback(fd)

    monkeypatch.setattr(files, "begin_writeback", noted)
    for disk, expected in (
        (CachedDisk(), [PIECE_BYTES, 2 * PIECE_BYTES]),
        (Disk(), []),  # what is written directly is on its way at once
    ):
        if not expected and not is_direct_here(tmp_path):
            continue
        begun.clear()
        file = LogFile(disk, tmp_path / disk.__class__.__name__, 0, Stage(4 * PIECE_BYTES))
        file.append(*Written().commit([bytes(65_536)]))
        assert begun == []
        file.cut(0)
        file.append(*Written().commit([bytes(65_536)] * (2 * PIECE_BYTES // 65_536 + 1)))
        assert begun == expected
        file.close()


def is_direct_here(directory: Path) -> bool:
    fd = Disk().open_log(directory / "direct")
    try:
        return is_direct(fd)
    finally:
        os.close(fd)


def test_the_hint_never_fails() -> None:
    reading, writing = os.pipe()
    try:
        begin_writeback(writing)  # a pipe has no range
    finally:
        os.close(reading)
        os.close(writing)
    begin_writeback(writing)  # nor what is closed
