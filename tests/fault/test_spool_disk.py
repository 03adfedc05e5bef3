"""A file system that is really full, and one that can't be written."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gputel.clock import ManualClock
from gputel.collector.spool.watermark import FILE_BYTES
from support.spooling import Feed, FencingBroker, later, opened, until

pytestmark = pytest.mark.fault
SIZE_BYTES = 2 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    options = f"size={SIZE_BYTES}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def make_read_only(place: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)


async def test_a_full_disk_costs_nothing_while_memory_lasts(small: Path) -> None:
    clock, broker = ManualClock(), FencingBroker()
    broker.away = True
    outbox = await opened(broker, small, clock, memory_bytes=16 << 20)
    feed = Feed(outbox, clock)
    await feed.frames(200)  # 4 MB onto 2 MiB
    await until(lambda: outbox.backlog.disk_errors)
    assert "space" in outbox.backlog.disk_problem
    assert outbox.pending_frames == 200
    broker.come_back()
    await feed.frames(2)
    await feed.settled()
    assert [sequence for _, sequence in broker.keys] == list(range(1, 203))
    assert broker.told == []
    while outbox.backlog.disk_problem:
        clock.advance(2)
        await feed.frames(1)
        await feed.settled()
    await outbox.close()


async def test_a_disk_that_is_full_at_the_start_is_done_without(
    small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filler = small / "filler"
    fill(filler)
    clock, broker = ManualClock(), FencingBroker()
    outbox = await opened(broker, small, clock)
    assert not outbox.spooling
    assert "can't be used" in caplog.text
    feed = Feed(outbox, clock)
    await feed.frames(3)
    await feed.settled()
    await outbox.close()
    os.truncate(filler, SIZE_BYTES - 4 * FILE_BYTES)
    again = await opened(broker, small, later(clock))
    assert again.spooling
    await again.close()


async def test_a_read_only_file_system_is_done_without(
    small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_read_only(small)
    clock, broker = ManualClock(), FencingBroker()
    outbox = await opened(broker, small, clock)
    assert not outbox.spooling
    assert "Read-only" in caplog.text
    await Feed(outbox, clock).frames(1)
    await outbox.close()
