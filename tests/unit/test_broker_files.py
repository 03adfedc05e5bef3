"""What the log's files get: every byte, in order, however it is cut."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gputel.broker.engine import disk as files
from gputel.broker.engine.disk import PIECE_BYTES, Disk, begin_writeback


def appended(path: Path, buffers: Sequence[bytes]) -> bytes:
    disk = Disk()
    fd = disk.open_append(path)
    try:
        disk.append(fd, buffers)
        disk.sync(fd)
    finally:
        os.close(fd)
    return path.read_bytes()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("short", [False, True])
def test_all_is_written_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, short: bool
) -> None:
    rng = random.Random(seed)
    sizes = [
        rng.choice([0, 1, 70, 1100, 65_536, rng.randint(0, 2 * PIECE_BYTES)]) for _ in range(60)
    ]
    buffers = [rng.randbytes(size) for size in sizes] + [b"x"] * 3000

    def cut(fd: int, pieces: Sequence[bytes], *rest: Any) -> int:
        return os.write(fd, b"".join(pieces)[: max(1, rng.randint(0, 4096))])

    if short:
        monkeypatch.setattr(os, "writev", cut)
    assert appended(tmp_path / "log", buffers) == b"".join(buffers)


def test_the_disk_begins_with_a_large_commit_and_not_with_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    def noted(fd: int) -> None:
        begun.append(os.fstat(fd).st_size)
        begin_writeback(fd)

    monkeypatch.setattr(files, "begin_writeback", noted)
    frame = bytes(65_536)
    appended(tmp_path / "small", [frame])
    assert begun == []
    appended(tmp_path / "large", [frame] * (2 * PIECE_BYTES // len(frame) + 1))
    assert begun == [PIECE_BYTES, 2 * PIECE_BYTES]


def test_the_hint_never_fails() -> None:
    reading, writing = os.pipe()
    try:
        begin_writeback(writing)  # a pipe has no range
    finally:
        os.close(reading)
        os.close(writing)
    begin_writeback(writing)  # nor what is closed
