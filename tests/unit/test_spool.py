"""Frames in front of a broker that is away: kept, in order, once, and what is lost is told."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gputel import wire
from gputel.broker.engine.disk import Disk
from gputel.clock import ManualClock
from gputel.collector.spool import files
from gputel.errors import InputError, ProducerFenced
from gputel.inventory import EventKind
from gputel.limits import MIB
from support.spooling import Feed, FencingBroker, kill, later, opened, until, xid


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def logs(place: Path) -> list[Path]:
    return sorted(place.glob("*/*.log"))


async def test_frames_wait_on_disk_and_come_in_order_and_the_files_go(
    tmp_path: Path, clock: ManualClock
) -> None:
    broker = FencingBroker()
    outbox = await opened(broker, tmp_path, clock)
    feed = Feed(outbox, clock)
    await feed.frames(5)
    await feed.settled()
    broker.away = True
    await feed.frames(300)  # 6 MB, of which 1 MB fits the publisher
    await until(lambda: outbox.backlog.disk_size_bytes > 6_000_000)
    assert outbox.pending_frames >= 300
    assert outbox.pending_size_bytes <= 2 * MIB
    assert outbox.backlog.oldest_age_s() > 25
    broker.come_back()
    await feed.frames(5)  # behind those on disk
    await feed.settled()
    epoch = outbox.ledger.epoch
    assert broker.keys == [(epoch, sequence) for sequence in range(1, 311)]
    assert broker.told == []
    assert outbox.backlog.replayed_frames > 200
    await until(lambda: outbox.backlog.disk_size_bytes < MIB)
    await outbox.close()
    assert logs(tmp_path) == []


async def test_what_is_left_at_a_stop_goes_first_under_its_own_epoch(
    tmp_path: Path, clock: ManualClock
) -> None:
    broker = FencingBroker()
    broker.away = True
    epochs = []
    for _ in range(3):
        outbox = await opened(broker, tmp_path, clock)
        await Feed(outbox, clock).frames(100)
        epochs.append(outbox.ledger.epoch)
        assert outbox.pending_frames == 100 * len(epochs)
        await outbox.close()
    broker.away = False
    outbox = await opened(broker, tmp_path, clock)
    feed = Feed(outbox, clock)
    await feed.frames(3)
    await feed.settled()
    expected = [(epoch, sequence) for epoch in epochs for sequence in range(1, 101)]
    assert broker.keys == expected + [(outbox.ledger.epoch, s) for s in (1, 2, 3)]
    assert broker.told == []
    await outbox.close()
    assert logs(tmp_path) == []


async def test_a_clock_set_back_does_not_set_the_epoch_back(
    tmp_path: Path, clock: ManualClock
) -> None:
    broker = FencingBroker()
    broker.away = True
    first = await opened(broker, tmp_path, clock)
    await Feed(first, clock).frames(1)
    await first.close()
    clock.step_wall(-3600)
    second = await opened(broker, tmp_path, clock)
    assert second.ledger.epoch == first.ledger.epoch + 1
    await second.close()


async def test_kill_9_loses_what_was_not_framed_and_says_how_much(
    tmp_path: Path, clock: ManualClock
) -> None:
    broker = FencingBroker()
    broker.away = True
    outbox = await opened(broker, tmp_path, clock)
    await Feed(outbox, clock).frames(20)
    outbox.swept(207)  # 7 rows have not been sealed
    await until(lambda: outbox.backlog.written)
    kill(outbox)
    broker.away = False
    again = await opened(broker, tmp_path, later(clock))
    feed = Feed(again, clock)
    await feed.frames(2)
    await feed.settled()
    first, second = outbox.ledger.epoch, again.ledger.epoch
    assert broker.keys == [(first, s) for s in range(1, 21)] + [(second, 1), (second, 2)]
    (gap,) = broker.told
    assert gap.code == 7
    assert f"epoch {first}" in gap.message
    assert again.ledger.lost_rows["killed"] == 7
    await again.close()


async def test_frames_that_were_in_memory_at_the_kill_are_told_by_sequence(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = FencingBroker()
    broker.away = True
    outbox = await opened(broker, tmp_path, clock)
    feed = Feed(outbox, clock)
    await feed.frames(10)
    await until(lambda: outbox.backlog.written)
    monkeypatch.setattr(Disk, "append", fail(errno.ENOSPC))
    await feed.frames(5)
    await until(lambda: outbox.backlog.disk_problem)
    kill(outbox)
    monkeypatch.undo()
    broker.away = False
    again = await opened(broker, tmp_path, later(clock))
    # Killed once more before that was told: still told, and told once.
    kill(again)
    third = await opened(broker, tmp_path, later(later(clock)))
    feed = Feed(third, clock)
    await feed.frames(1)
    await feed.settled()
    assert broker.keys[:10] == [(outbox.ledger.epoch, s) for s in range(1, 11)]
    assert len(broker.keys) == 11
    assert [gap.code for gap in broker.told] == [50]
    assert f"frames 11 to 15 of epoch {outbox.ledger.epoch}" in broker.told[0].message
    await third.close()
    fourth = await opened(broker, tmp_path, later(later(later(clock))))
    feed = Feed(fourth, clock)
    await feed.frames(1)
    await feed.settled()
    assert len(broker.told) == 1
    await fourth.close()


def damage_the_middle(path: Path, size_bytes: int) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(size_bytes))


async def test_damage_in_the_middle_is_told_by_sequence_and_rows(
    tmp_path: Path, clock: ManualClock
) -> None:
    broker = FencingBroker()
    broker.away = True
    first = await opened(broker, tmp_path, clock)
    await Feed(first, clock).frames(60)
    await first.close()
    damage_the_middle(logs(tmp_path)[0], 30_000)  # two or three of 60 frames
    broker.away = False
    again = await opened(broker, tmp_path, clock)
    feed = Feed(again, clock)
    await feed.frames(2)
    await feed.settled()
    await feed.frames(2)
    await feed.settled()
    lost = 60 - sum(1 for epoch, _ in broker.keys if epoch == first.ledger.epoch)
    assert lost in (2, 3)
    assert again.ledger.lost_frames["damaged"] == lost
    assert sum(gap.code for gap in broker.told) == 10 * lost
    assert again.backlog.damaged_bytes >= 30_000
    await again.close()


def fail(number: int) -> Any:
    def append(self: Disk, fd: int, buffers: Sequence[bytes]) -> None:
        raise OSError(number, "says the disk")

    return append


async def healed(feed: Feed) -> None:
    """The disk works again, and a frame has found it so."""
    backlog = feed.outbox.backlog
    while backlog.disk_problem or not backlog.written:
        feed.clock.advance(2)
        await feed.frames(1)
        await until(backlog._idle.is_set)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
async def test_a_disk_that_fails_leaves_memory_and_is_used_again(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    broker = FencingBroker()
    broker.away = True
    outbox = await opened(broker, tmp_path, clock)
    feed = Feed(outbox, clock)
    await feed.frames(20)
    await until(lambda: outbox.backlog.written)
    monkeypatch.setattr(Disk, "append", fail(number))
    await feed.frames(20)
    await until(lambda: outbox.backlog.disk_errors)
    assert outbox.pending_frames == 40
    monkeypatch.undo()
    await healed(feed)
    broker.come_back()
    await feed.settled()
    assert [s for _, s in broker.keys] == list(range(1, outbox.ledger.assigned + 1))
    assert broker.told == []
    await outbox.close()


async def test_a_short_write_leaves_no_trace(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Disk.append

    def short(self: Disk, fd: int, buffers: Sequence[bytes]) -> None:
        real(self, fd, [buffers[0][:80]])  # a head and some of its payload
        raise OSError(errno.ENOSPC, "No space left on device")

    broker = FencingBroker()
    broker.away = True
    outbox = await opened(broker, tmp_path, clock)
    feed = Feed(outbox, clock)
    await feed.frames(2)
    await until(lambda: outbox.backlog.written)
    monkeypatch.setattr(Disk, "append", short)
    await feed.frames(2)
    await until(lambda: outbox.backlog.disk_errors)
    monkeypatch.undo()
    await healed(feed)
    sent = outbox.ledger.assigned
    await outbox.close()
    assert sum(path.stat().st_size for path in logs(tmp_path)) == outbox.backlog.disk_size_bytes
    broker.away = False
    again = await opened(broker, tmp_path, later(clock))
    await until(lambda: len(broker.keys) == sent)
    assert again.backlog.damaged_bytes == 0
    await again.close()


async def test_a_disk_that_hangs_stops_neither_frames_nor_broker(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = threading.Event()
    real = Disk.append

    def hang(self: Disk, fd: int, buffers: Sequence[bytes]) -> None:
        stuck.wait()
        real(self, fd, buffers)

    broker = FencingBroker()
    outbox = await opened(broker, tmp_path, clock)
    feed = Feed(outbox, clock)
    monkeypatch.setattr(Disk, "append", hang)
    await feed.frames(30, paced=False)
    try:
        await until(lambda: len(broker.keys) == 30)
        broker.away = True
        await feed.frames(200, paced=False)  # 4 MB: more than memory may hold
        assert outbox.pending_size_bytes <= 2 * MIB + 100_000
    finally:
        stuck.set()
    lost = outbox.ledger.lost_frames["memory_full"]
    assert lost > 50
    broker.come_back()
    await feed.settled()
    for _ in range(2):
        await feed.frames(1)
        await feed.settled()
    assert len(broker.keys) == 232 - lost
    assert sum(gap.code for gap in broker.told) == 10 * lost
    assert [s for _, s in broker.keys] == sorted(s for _, s in broker.keys)
    await outbox.close()


async def test_a_full_spool_gives_up_the_oldest_and_tells_it(
    tmp_path: Path, clock: ManualClock
) -> None:
    broker = FencingBroker()
    broker.away = True
    outbox = await opened(broker, tmp_path, clock, bytes_max=8 * MIB)
    feed = Feed(outbox, clock)
    await feed.frames(1, (xid(clock, 31),))
    await feed.frames(60)
    await feed.frames(1, (xid(clock, 79),))  # not offered: on disk alone
    await feed.frames(700)
    await until(lambda: outbox.backlog.written)
    assert outbox.backlog.disk_size_bytes <= 8 * MIB
    lost = outbox.ledger.lost_frames["spool_full"]
    assert lost > 200
    assert outbox.pending_frames == 762 - lost
    broker.come_back()
    for _ in range(3):
        await feed.frames(1)
        await feed.settled()
    lost = outbox.ledger.lost_frames["spool_full"]
    sequences = [s for _, s in broker.keys]
    assert sequences == sorted(set(sequences))
    assert len(sequences) == 765 - lost
    assert sequences[-500:] == list(range(265, 765))[-500:] or lost > 264
    assert (
        sum(gap.code for gap in broker.told) == 10 * lost == sum(outbox.ledger.lost_rows.values())
    )
    xids = [
        event.code
        for stored in broker.stored
        for event in wire.decode_frame(stored.payload).events
        if event.kind is EventKind.XID
    ]
    assert sorted(xids) == [31, 79], "an event outlives its frame"
    await outbox.close()


async def test_a_full_spool_and_a_kill_are_told_together(
    tmp_path: Path, clock: ManualClock
) -> None:
    broker = FencingBroker()
    broker.away = True
    swept = 0
    for _ in range(3):
        outbox = await opened(broker, tmp_path, clock, bytes_max=8 * MIB)
        feed = Feed(outbox, clock)
        await feed.frames(350)
        swept += feed.rows
        await until(lambda outbox=outbox: outbox.backlog.written)  # type: ignore[misc]
        kill(outbox)
        clock = later(clock)
    broker.away = False
    outbox = await opened(broker, tmp_path, clock, bytes_max=8 * MIB)
    feed = Feed(outbox, clock)
    await feed.frames(3)
    await feed.settled()
    await feed.frames(3)
    await feed.settled()
    swept += feed.rows
    assert broker.keys == sorted(set(broker.keys))
    frames = [s for s in broker.stored if wire.decode_frame(s.payload).gpus]
    assert sum(gap.code for gap in broker.told) == swept - 10 * len(frames)
    await outbox.close()


async def test_an_epoch_that_the_broker_refuses_is_told_and_left(
    tmp_path: Path, clock: ManualClock
) -> None:
    broker = FencingBroker()
    broker.away = True
    first = await opened(broker, tmp_path, clock)
    await Feed(first, clock).frames(120)
    await first.close()
    broker.away = False
    broker.newest = first.ledger.epoch + 1  # somebody ran without this spool
    second = await opened(broker, tmp_path, later(clock))
    feed = Feed(second, clock)
    await feed.frames(3)
    await feed.settled()
    await feed.frames(1)
    await feed.settled()
    assert broker.keys == [(second.ledger.epoch, s) for s in range(1, 5)]
    assert sum(gap.code for gap in broker.told) == 1200
    assert second.ledger.lost_frames["refused"] == 120
    await second.close()
    assert logs(tmp_path) == []


async def test_our_own_epoch_refused_ends_the_collector(tmp_path: Path, clock: ManualClock) -> None:
    broker = FencingBroker()
    outbox = await opened(broker, tmp_path, clock)
    feed = Feed(outbox, clock)
    await feed.frames(1)
    broker.newest = outbox.ledger.epoch + 1
    with pytest.raises(ProducerFenced):  # noqa: PT012 - when it is noticed is not said
        for _ in range(100):
            await feed.frames(1)
            await until(lambda: outbox.backlog.written or outbox.backlog.failure)
    await outbox.close()


async def test_two_collectors_do_not_share_a_spool(tmp_path: Path, clock: ManualClock) -> None:
    outbox = await opened(FencingBroker(), tmp_path, clock)
    with pytest.raises(InputError, match="in use by another collector"):
        await opened(FencingBroker(), tmp_path, clock)
    await outbox.close()
    again = await opened(FencingBroker(), tmp_path, clock)
    await again.close()


async def test_a_place_that_can_not_be_used_is_said_and_done_without(
    tmp_path: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    taken = tmp_path / "file"
    taken.touch()
    broker = FencingBroker()
    outbox = await opened(broker, taken, clock)
    assert "can't be used" in caplog.text
    assert "collector.spool_dir" in caplog.text
    feed = Feed(outbox, clock)
    await feed.frames(3)
    await feed.settled()
    assert not outbox.spooling
    await outbox.close()


async def test_what_the_broker_takes_at_once_is_never_synced(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(Disk, "sync", lambda self, fd: synced.append(clock.time_ns()))
    broker = FencingBroker()
    outbox = await opened(broker, tmp_path, clock)
    feed = Feed(outbox, clock)
    for _ in range(60):
        await feed.frames(1)
        await feed.settled()
    assert synced == []
    assert outbox.backlog.disk_size_bytes < 2 * files.IDLE_BYTES
    broker.away = True
    for _ in range(100):  # ten seconds
        await feed.frames(1)
        await until(lambda: outbox.backlog.written and outbox.backlog._idle.is_set())
    assert 7 <= len(synced) <= 12
    await outbox.close()
