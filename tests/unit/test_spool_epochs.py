"""Epochs in one spool: an older one goes first, whatever lies in front of it, and what the
broker refuses of it is told with all that it told itself."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from gputel import wire
from gputel.clock import ManualClock
from gputel.collector.spool.backlog import READS_TRIED_MAX
from gputel.collector.spool.files import Spool
from gputel.inventory import EventKind
from gputel.limits import MIB
from support.spooling import Feed, FencingBroker, kill, later, opened, until, xid

FRAMES = 150  # 3 MB, of which 2 MB fit a publisher of 4 MiB


def damage_the_middle(place: Path, size_bytes: int, file: int = 0) -> None:
    path = sorted(place.glob("*/*.log"))[file]
    with path.open("r+b") as opened_file:
        opened_file.seek(path.stat().st_size // 2)
        opened_file.write(bytes(size_bytes))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def killed_with_the_first_frames_acknowledged(
    broker: FencingBroker, place: Path, clock: ManualClock
) -> tuple[int, int]:
    """Leave FRAMES in one file, of which the broker has more than a start reads at once;
    returns their epoch, and how many it has."""
    broker.away = True
    outbox = await opened(broker, place, clock, memory_bytes=4 * MIB)
    await Feed(outbox, clock).frames(FRAMES)
    await until(lambda: outbox.backlog.written)
    broker.come_back()  # and takes what it was offered so far
    broker.away = True
    await until(lambda: outbox.ledger.acked)
    kill(outbox)
    return outbox.ledger.epoch, outbox.ledger.acked


async def test_frames_that_the_broker_has_hide_none_behind_them(
    tmp_path: Path, clock: ManualClock
) -> None:
    broker = FencingBroker()
    first, acked = await killed_with_the_first_frames_acknowledged(broker, tmp_path, clock)
    assert 60 < acked < FRAMES
    broker.away = False
    again = await opened(broker, tmp_path, later(clock))
    feed = Feed(again, clock)
    await feed.frames(2)
    await feed.settled()
    expected = [(first, s) for s in range(1, FRAMES + 1)]
    assert broker.keys == [*expected, (again.ledger.epoch, 1), (again.ledger.epoch, 2)]
    assert broker.told == []
    await again.close()


@pytest.mark.parametrize("failures", [1, READS_TRIED_MAX - 1])
async def test_a_disk_that_can_not_be_read_at_the_start_is_waited_for(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    broker = FencingBroker()
    broker.away = True
    first = await opened(broker, tmp_path, clock)
    await Feed(first, clock).frames(20)
    await first.close()
    broker.away = False
    left = failures
    real = Spool.read

    def read(spool: Spool, bytes_max: int) -> object:
        nonlocal left
        if left:
            left -= 1
            raise OSError(errno.EIO, "Input/output error")
        return real(spool, bytes_max)

    monkeypatch.setattr(Spool, "read", read)
    second = await opened(broker, tmp_path, later(clock))
    feed = Feed(second, clock)
    await feed.frames(3)
    await feed.settled()
    epochs = first.ledger.epoch, second.ledger.epoch
    assert broker.keys == [(epochs[0], s) for s in range(1, 21)] + [
        (epochs[1], s) for s in range(1, 4)
    ]
    assert broker.told == []
    assert second.backlog.disk_errors == failures
    await second.close()


async def test_a_file_that_can_never_be_read_is_told_and_passed_over(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = FencingBroker()
    broker.away = True
    first = await opened(broker, tmp_path, clock)
    await Feed(first, clock).frames(20)
    await first.close()
    broker.away = False
    real = Spool.read

    def read(spool: Spool, bytes_max: int) -> object:
        if spool._reading == 0:
            raise OSError(errno.EIO, "Input/output error")
        return real(spool, bytes_max)

    monkeypatch.setattr(Spool, "read", read)
    second = await opened(broker, tmp_path, later(clock))
    feed = Feed(second, clock)
    await feed.frames(READS_TRIED_MAX)
    await feed.settled()
    assert broker.keys == [(second.ledger.epoch, s) for s in range(1, READS_TRIED_MAX + 1)]
    await feed.frames(1)
    await feed.settled()
    assert [gap.code for gap in broker.told] == [200]
    await second.close()


async def test_what_a_refused_frame_told_is_told_again(tmp_path: Path, clock: ManualClock) -> None:
    broker = FencingBroker()
    broker.away = True
    first = await opened(broker, tmp_path, clock)
    first.swept(7)
    kill(first)
    second = await opened(broker, tmp_path, later(clock))
    await Feed(second, clock).frames(3, (xid(clock, 79),))  # the first tells of 7 rows
    await second.close()
    third = await opened(broker, tmp_path, later(later(clock)))
    feed = Feed(third, clock)
    await feed.frames(1)
    # In flight while somebody has run without this spool.
    await until(lambda: len(third.backlog._offering.sent) == 3)
    broker.newest = second.ledger.epoch + 1
    broker.come_back()
    for _ in range(2):
        await feed.frames(1)
        await feed.settled()
    assert {epoch for epoch, _ in broker.keys} == {third.ledger.epoch}
    assert sorted(gap.code for gap in broker.told) == [7, 30]
    xids = [
        event.code
        for stored in broker.stored
        for event in wire.decode_frame(stored.payload).events
        if event.kind is EventKind.XID
    ]
    assert xids == [79, 79, 79]
    await third.close()


async def test_a_hole_is_told_once_however_often_it_is_read(
    tmp_path: Path, clock: ManualClock
) -> None:
    broker = FencingBroker()
    broker.away = True
    first = await opened(broker, tmp_path, clock)
    await Feed(first, clock).frames(40)
    await first.close()
    damage_the_middle(tmp_path, 30_000)
    for _ in range(3):
        clock = later(clock)
        outbox = await opened(broker, tmp_path, clock)
        await Feed(outbox, clock).frames(1)
        await until(lambda outbox=outbox: outbox.backlog.written)  # type: ignore[misc]
        await until(lambda outbox=outbox: outbox.backlog._offering.sent)  # type: ignore[misc]
        kill(outbox)
    broker.away = False
    last = await opened(broker, tmp_path, later(clock))
    feed = Feed(last, clock)
    for _ in range(2):
        await feed.frames(1)
        await feed.settled()
    arrived = sum(1 for epoch, _ in broker.keys if epoch == first.ledger.epoch)
    assert arrived in (37, 38)
    assert sum(gap.code for gap in broker.told) == 10 * (40 - arrived)
    await last.close()


async def test_a_hole_is_told_even_if_all_that_was_left_of_its_epoch_is_given_up(
    tmp_path: Path, clock: ManualClock
) -> None:
    broker = FencingBroker()
    broker.away = True
    first = await opened(broker, tmp_path, clock, bytes_max=8 * MIB)
    await Feed(first, clock).frames(150)
    await first.close()
    damage_the_middle(tmp_path, 30_000, file=-2)
    second = await opened(broker, tmp_path, later(clock), bytes_max=8 * MIB)
    feed = Feed(second, clock)
    await feed.frames(500)  # more than the spool holds
    await until(lambda: second.backlog.written)
    broker.come_back()
    for _ in range(2):
        await feed.frames(1)
        await feed.settled()
    assert first.ledger.epoch not in {epoch for epoch, _ in broker.keys[60:]}
    frames = sum(1 for s in broker.stored if wire.decode_frame(s.payload).gpus)
    assert sum(gap.code for gap in broker.told) == 1500 + feed.rows - 10 * frames
    await second.close()
