"""Random lives of a spool: whatever happens, frames arrive in order and once, and what is
swept is stored or told."""

from __future__ import annotations

import asyncio
import errno
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gputel.broker.engine.disk import Disk
from gputel.clock import ManualClock
from gputel.collector.outbox import LiveOutbox
from gputel.collector.spool.entry import Key
from gputel.collector.spool.ledger import REASONS, covers
from gputel.inventory import Event
from gputel.limits import MIB
from support.spooling import Feed, FencingBroker, gaps_of, kill, later, opened, until

OPERATIONS = 30


class Life:
    """One broker, one disk, one collector after the other."""

    def __init__(self, place: Path, dice: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place = place
        self.dice = dice
        self.clock = ManualClock()
        self.broker = FencingBroker()
        self.disk_fails = False
        self.swept = 0
        #: Frames that were at the publisher at a death.
        self.in_flight: set[Key] = set()
        #: Frames that tell of gaps and were in memory only at a death, because a full spool had
        #: given up their files.
        self.exposed: set[Key] = set()
        #: Rows of the gaps that frames tell.
        self.gap_rows: dict[Key, int] = {}
        self.outbox: LiveOutbox
        self.feed: Feed
        real = Disk.append

        def append(disk: Disk, fd: int, buffers: Sequence[bytes]) -> None:
            if self.disk_fails:
                real(disk, fd, [b"".join(buffers)[: dice.randrange(3000)]])
                raise OSError(errno.ENOSPC, "No space left on device")
            real(disk, fd, buffers)

        monkeypatch.setattr(Disk, "append", append)

    async def begin(self) -> None:
        self.clock = later(self.clock)
        self.outbox = await opened(self.broker, self.place, self.clock, bytes_max=8 * MIB)
        self.feed = Feed(self.outbox, self.clock, self.dice.choice((500, 20_000, 60_000)))

    async def operate(self) -> None:
        await self.dice.choice(
            (self.sample, self.sample, self.sample, self.toggle_broker, self.break_disk, self.die)
        )()

    async def sample(self) -> None:
        await self.feed.frames(self.dice.randrange(1, 80), paced=self.dice.random() < 0.9)

    async def toggle_broker(self) -> None:
        if self.broker.away:
            self.broker.come_back()
        else:
            self.broker.away = True

    async def break_disk(self) -> None:
        self.disk_fails = self.dice.random() < 0.4

    async def die(self) -> None:
        unframed = self.dice.randrange(20)
        self.swept += self.feed.rows + unframed
        if self.dice.random() < 0.3:
            await self.outbox.close()
            self.swept -= unframed
        else:
            self.outbox.swept(self.feed.rows + unframed)
            kill(self.outbox)
        self.in_flight |= {entry.key for entry in self.outbox.backlog._offering.sent}
        self.gap_rows |= self.feed.gap_rows
        exposed = self.outbox.ledger.exposed
        self.exposed |= {key for key in self.gap_rows if covers(exposed, *key)}
        await self.begin()

    async def end(self) -> None:
        """Everything is well again, and what is owed is told."""
        self.disk_fails = False
        if self.broker.away:
            self.broker.come_back()
        for _ in range(4):
            self.clock.advance(2)
            await self.feed.frames(1)
            await until(lambda: self.outbox.pending_frames == 0)
        self.swept += self.feed.rows
        await self.outbox.close()


@pytest.mark.parametrize("round_", range(12))
async def test_what_is_swept_is_stored_or_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, round_: int
) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    life = Life(tmp_path, random.Random(seed), monkeypatch)
    await life.begin()
    for _ in range(OPERATIONS):
        await life.operate()
        await asyncio.sleep(0)
    await life.end()
    check(life)


def check(life: Life) -> None:
    """Every row is stored or told once. A frame that was in flight at a death may have arrived
    although its successor tells it, and all that it told, as lost; one whose file a full spool
    had given up may take the gaps that it told with it."""
    keys = life.broker.keys
    assert keys == sorted(set(keys))
    told: dict[Key | str, int] = {}
    tellers: dict[Key | str, Key] = {}
    for stored in life.broker.stored:
        for gap in gaps_of(stored):
            assert REASONS["refused"] not in gap.message, "each epoch has its turn"
            for loss, rows in losses_of(gap):
                assert loss not in told or tellers[loss] in life.in_flight, "told twice"
                told[loss] = rows
                tellers[loss] = stored.epoch, stored.sequence
    twice = {key for key in keys if key in told}
    assert twice <= life.in_flight
    forgotten = sum(life.gap_rows[key] for key in life.exposed if key not in keys)
    accounted = 10 * (len(keys) - len(twice)) + sum(told.values())
    assert life.swept - forgotten <= accounted <= life.swept


def losses_of(gap: Event) -> Iterator[tuple[Key | str, int]]:
    """The frames that a GAP event names and their rows, or else its words."""
    found = re.match(r"frames (\d+) to (\d+) of epoch (\d+) lost", gap.message)
    if not found:
        yield gap.message, gap.code
        return
    first, last, epoch = map(int, found.groups())
    assert gap.code == 10 * (last - first + 1)
    for sequence in range(first, last + 1):
        yield (epoch, sequence), 10
