"""Memory and disk as one queue in front of the publisher.

    put --> unwritten --write--> spool --read--> held --+
        \\-> waiting -----------------------------------+--offer--> publisher, sent --ack--> gone

A frame is offered to the broker once it is written: so whatever happens to this process,
what the broker may have is on disk, and is not told as lost. A frame that finds no room at
the publisher is left on disk, and read again when its turn comes. Frames are offered in
order, those of older epochs first, each epoch with a publisher of its own, because the
broker refuses an epoch once it knows a newer one.

A disk that fails or hangs stops nothing: frames are then offered unwritten, and wait in
memory, bounded; the oldest that are not offered yet go first, counted. Without a spool that
is all there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Final, NamedTuple, TypeVar

from gputel import wire
from gputel.broker import Publisher
from gputel.clock import NS_PER_S, Clock
from gputel.collector.spool.entry import Entry, Key
from gputel.collector.spool.files import Spool
from gputel.collector.spool.ledger import Ledger, Loss, Position, covers, holes
from gputel.errors import FrameCorrupt, GputelError
from gputel.inventory import Event
from gputel.limits import MIB

log = logging.getLogger(__name__)

#: Frames handed to the publisher and not acknowledged, in memory whatever is on disk.
OFFERED_BYTES_MAX: Final = 8 * MIB
WRITE_BYTES_MAX: Final = 1 * MIB
READ_BYTES_MAX: Final = 1 * MIB
#: What the broker has not acknowledged for so long is synced, and then as often, or
#: whenever SYNC_BYTES_MAX have come together.
SYNC_S: Final = 1.0
SYNC_BYTES_MAX: Final = 1 * MIB
RETRY_S: Final = 1.0
HANGING_S: Final = 1.0  # a write that takes longer is no longer waited for
READS_TRIED_MAX: Final = 5
PUT_AWAY_S: Final = 2.0

_T = TypeVar("_T")
OpenPublisher = Callable[[int, int, Callable[[], None]], Awaitable[Publisher]]


class Left(NamedTuple):
    """What a predecessor left in the spool: `acked` of its last epoch, `frames` records."""

    frames: int = 0
    acked: Position = Position(0, 0, 0)


class _Sent(NamedTuple):
    key: Key
    rows: int
    rows_through: int
    sealed_at_ns: int


class Backlog:
    """Takes the frames of the ledger's epoch; `start`, then `close`.

    open_publisher   called with (epoch, pending_bytes, on_change)
    memory_bytes     bound of what waits in memory beside what was offered
    """

    def __init__(
        self,
        ledger: Ledger,
        spool: Spool | None,
        left: Left,
        open_publisher: OpenPublisher,
        memory_bytes: int,
        clock: Clock,
    ) -> None:
        self._ledger = ledger
        self._spool = spool
        self._open_publisher = open_publisher
        self._offered_bytes = min(OFFERED_BYTES_MAX, memory_bytes // 2)
        self._memory_bytes_max = memory_bytes - self._offered_bytes
        self._clock = clock
        self._unwritten: deque[Entry] = deque()
        self._waiting: deque[Entry] = deque()
        self._held: deque[Entry] = deque()
        self._sent: deque[_Sent] = deque()
        self._memory_bytes = 0  # of `unwritten`, or of `waiting` without a spool
        self._unread = spool is not None and spool.unread
        self._left = left
        self._left_frames = left.frames
        self._done: Key = (left.acked.epoch, left.acked.sequence) if left.acked.sequence else (0, 0)
        self._offered = Position(0, 0, 0)
        self._epoch = 0  # of the publisher; 0 while there is none
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._disk = ThreadPoolExecutor(1, "spool")
        self._writing_since_ns = 0
        self._retry_at_ns = 0
        self._synced_at_ns = 0
        self._reads_failed = 0
        self._replaying = False
        self._refused = 0  # an epoch, and all before it
        self._task: asyncio.Task[None] | None = None
        self.publisher: Publisher | None = None
        self.failure: GputelError | None = None
        self.disk_problem = ""
        self.disk_errors = 0
        self.replayed_frames = 0

    # -- what it says of itself ----------------------------------------------------------

    @property
    def pending_frames(self) -> int:
        """Frames that the broker has not acknowledged, wherever they are."""
        gone = sum(d.last - d.first + 1 for d in self._ledger.dropped if d.epoch == self._own)
        return max(0, self._left_frames) + self._ledger.assigned - self._ledger.acked - gone

    @property
    def memory_size_bytes(self) -> int:
        """Frames in memory: waiting, and offered."""
        offered = self.publisher.pending_size_bytes if self.publisher else 0
        return self._memory_bytes + offered

    @property
    def disk_size_bytes(self) -> int:
        """Files of the spool."""
        return self._spool.size_bytes if self._spool else 0

    @property
    def damaged_bytes(self) -> int:
        """Bytes of the spool that were no frames."""
        return self._spool.damaged_bytes if self._spool else 0

    def oldest_age_s(self) -> float:
        """Age of the oldest frame that is not acknowledged; 0 when there is none."""
        for entries in (self._sent, self._held, self._unwritten, self._waiting):
            if entries:
                age_ns = self._clock.time_ns() - entries[0].sealed_at_ns
                return max(0.0, age_ns / NS_PER_S)
        return 0.0

    @property
    def _own(self) -> int:
        return self._ledger.epoch

    # -- in and out ----------------------------------------------------------------------

    async def start(self) -> None:
        """Begin with what a predecessor left."""
        first = self._own
        if self._unread:
            await self._read()
            first = self._held[0].epoch if self._held else first
        await self._switch(first)
        self._task = asyncio.create_task(self._run(), name="backlog")

    def put(self, entry: Entry) -> None:
        """Take the next frame of our epoch. Raises what the broker refuses, e.g. ProducerFenced."""
        if self.failure is not None:
            raise self.failure
        self._waiting.append(entry)
        self._memory_bytes += len(entry.payload)
        if self._spool:
            self._unwritten.append(entry)
        if self._spool is None or self._is_disk_bad():
            self._offer_waiting()
        self._bound_memory()
        self._idle.clear()
        self._wake.set()

    async def close(self, timeout_s: float) -> None:
        """Wait for acknowledgements while the broker is there, then keep the rest on disk."""
        if self._task is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.pending_frames and self.publisher and self.publisher.connected:
                    self._idle.clear()
                    await self._idle.wait()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self.publisher is not None:
            await self.publisher.close()
        if self._spool is not None:
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(PUT_AWAY_S):
                    await self._in_thread(self._put_away, self._spool)
        self._disk.shutdown(wait=False)

    def _put_away(self, spool: Spool) -> None:
        try:
            # A write that was cut short by the end of the task may have come through.
            behind = spool.newest.key if spool.newest else (0, 0)
            rest = [entry for entry in self._unwritten if entry.key > max(behind, self._done)]
            if rest:
                spool.append(rest)
            spool.sync()
            spool.release(self._done, all=True)
        finally:
            spool.close()

    async def _in_thread(self, function: Callable[..., _T], *arguments: object) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._disk, function, *arguments)

    # -- the task ------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            try:
                await self._woken()
                self._settle()
                await self._write()
                await self._feed()
                await self._tidy()
            except GputelError as failure:
                self.failure = failure
                log.error("publishing stopped: %s", failure)
                return
            finally:
                self._idle.set()

    async def _woken(self) -> None:
        due = self._spool is not None and (self._spool.unsynced_bytes or self._unwritten)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SYNC_S if due or self._reads_failed else None):
                await self._wake.wait()
        self._wake.clear()

    def _settle(self) -> None:
        """Take note of acknowledgements."""
        if self.publisher is None:
            return
        acked = (self._epoch, self.publisher.last_acked_sequence)
        rows_through = -1
        while self._sent and self._sent[0].key <= acked:
            done = self._sent.popleft()
            self._done, rows_through = done.key, done.rows_through
            if self._epoch != self._own:
                self._left_frames -= 1
        if rows_through >= 0:
            self._ledger.acknowledged(*self._done, rows_through)
        while self._unwritten and self._unwritten[0].key <= self._done:
            self._memory_bytes -= len(self._unwritten.popleft().payload)

    # -- to the disk ---------------------------------------------------------------------

    async def _write(self) -> None:
        spool = self._spool
        while spool and self._unwritten and self._clock.monotonic_ns() >= self._retry_at_ns:
            batch = self._take_batch()
            self._writing_since_ns = self._clock.monotonic_ns()
            try:
                await self._make_room(spool, sum(len(entry.payload) for entry in batch))
                await self._in_thread(spool.append, batch)
            except OSError as error:
                self._put_back(batch)
                self._disk_is(f"{error.strerror or error}")
                self._retry_at_ns = self._clock.monotonic_ns() + round(RETRY_S * NS_PER_S)
                self._bound_memory()
                self._offer_waiting()
                return
            except BaseException:
                self._put_back(batch)
                raise
            finally:
                self._writing_since_ns = 0
            self._disk_is("")
            self._ledger.secured(batch[-1].sequence)
            self._offer_written(spool, batch[-1].key)

    def _offer_written(self, spool: Spool, newest: Key) -> None:
        """Offer what was just written; from where there is no room, it is left on disk."""
        while self._waiting and self._waiting[0].key <= newest:
            if self._unread or not self._offer_one_waiting():
                self._unread = True
                self._waiting.popleft()
        if not self._unread:
            spool.pass_over()

    def _take_batch(self) -> list[Entry]:
        batch: list[Entry] = []
        size_bytes = 0
        while self._unwritten and size_bytes < WRITE_BYTES_MAX:
            batch.append(self._unwritten.popleft())
            size_bytes += len(batch[-1].payload)
        self._memory_bytes -= size_bytes
        return batch

    def _put_back(self, batch: Sequence[Entry]) -> None:
        self._unwritten.extendleft(reversed(batch))
        self._memory_bytes += sum(len(entry.payload) for entry in batch)

    async def _make_room(self, spool: Spool, size_bytes: int) -> None:
        """The oldest go first. They are accounted for before they are deleted, so that a kill
        in between tells of them too."""
        while spool.size_bytes and spool.size_bytes + size_bytes > spool.bytes_max:
            unread, newest = await self._in_thread(spool.oldest)
            self._expose(newest)
            reached = max(self._offered[:2], self._done)
            lost = [e for e in unread if e.key > reached and not self._is_given_up(e)]
            for _, run in groupby(
                enumerate(lost), lambda at: (at[1].epoch, at[1].sequence - at[0])
            ):
                self._drop([entry for _, entry in run], "spool_full")
            await self._in_thread(spool.delete_oldest)

    def _expose(self, newest: Key) -> None:
        """What was read or offered, up to `newest`, is about to be in memory only."""
        last = self._ledger.exposed[-1] if self._ledger.exposed else None
        behind = (last.epoch, last.last) if last else (0, 0)
        for entries in (self._sent, self._held):
            for e in entries:
                if behind < e.key <= newest:
                    self._ledger.expose(*e.key, e.key[1], e.rows, e.rows_through)
        self._ledger.save()

    def _is_given_up(self, entry: Entry) -> bool:
        """By a predecessor that was killed before it had deleted the file."""
        return covers(self._ledger.dropped, entry.epoch, entry.sequence)

    def _bound_memory(self) -> None:
        queue = self._unwritten if self._spool else self._waiting
        while self._memory_bytes > self._memory_bytes_max and len(queue) > 1:
            entry = queue.popleft()
            self._memory_bytes -= len(entry.payload)
            if self._spool is None:
                self._drop([entry], "memory_full")
            elif entry.key > self._offered[:2]:
                self._waiting.remove(entry)  # near the front: behind what is being written
                self._drop([entry], "memory_full")

    def _drop(self, entries: Sequence[Entry], reason: str) -> None:
        if entries[0].epoch != self._own:
            self._left_frames -= len(entries)
        self._ledger.drop(entries, reason, _events(entries))

    def _is_disk_bad(self) -> bool:
        """Does it hang, or has it failed a moment ago? After that a frame tries it again."""
        now_ns, since_ns = self._clock.monotonic_ns(), self._writing_since_ns
        hangs = since_ns > 0 and now_ns - since_ns > HANGING_S * NS_PER_S
        return hangs or (bool(self.disk_problem) and now_ns < self._retry_at_ns)

    def _disk_is(self, problem: str) -> None:
        if problem:
            self.disk_errors += 1
        if problem and not self.disk_problem:
            log.warning("the spool can't be written: %s; frames wait in memory", problem)
        elif self.disk_problem and not problem:
            log.info("the spool can be written again")
        self.disk_problem = problem

    async def _tidy(self) -> None:
        """Delete what is done, sync what the broker has not taken for a while."""
        spool = self._spool
        if spool is None:
            return
        if spool.releasable(self._done):
            await self._in_thread(spool.release, self._done)
        if not spool.unsynced_bytes or self.oldest_age_s() < SYNC_S:
            return
        now_ns = self._clock.monotonic_ns()
        due = now_ns - self._synced_at_ns >= SYNC_S * NS_PER_S
        if due or spool.unsynced_bytes >= SYNC_BYTES_MAX:
            self._synced_at_ns = now_ns
            try:
                await self._in_thread(spool.sync)
            except OSError as error:
                self._disk_is(f"{error.strerror or error}")

    # -- to the publisher ----------------------------------------------------------------

    async def _feed(self) -> None:
        """Offer what has its turn, until the publisher has no more room."""
        while True:
            if self._epoch not in (0, self._own) and self.publisher and self.publisher.fenced:
                await self._refuse()
            self._skip_refused()
            self._offer_held()
            if self._held or (self._epoch != self._own and not self._unread):
                following = self._held[0].epoch if self._held else self._own
                if following == self._epoch or self._sent:
                    return  # it has no room, or still has the epoch before
                await self._switch(following)
            elif self._unread:
                if self._epoch and not (self.publisher and self.publisher.connected):
                    return
                if not await self._read():
                    return
            else:
                if self._spool is None or self._is_disk_bad():
                    self._offer_waiting()
                return

    def _offer_held(self) -> None:
        while self._held and self._held[0].epoch == self._epoch and self._offer(self._held[0]):
            self._held.popleft()
            self.replayed_frames += 1
        if self._replaying and not self._held and not self._unread:
            self._replaying = False
            log.info("the spool is replayed: %d frames since the start", self.replayed_frames)

    def _offer_waiting(self) -> None:
        while self._waiting and not self._unread and self._offer_one_waiting():
            pass

    def _offer_one_waiting(self) -> bool:
        if self._held or self._epoch != self._own or not self._offer(self._waiting[0]):
            return False
        entry = self._waiting.popleft()
        if self._spool is None:
            self._memory_bytes -= len(entry.payload)
        return True

    def _offer(self, entry: Entry) -> bool:
        assert self.publisher is not None
        if not self.publisher.offer(entry.sequence, entry.node, entry.payload):
            return False
        self._sent.append(_Sent(entry.key, entry.rows, entry.rows_through, entry.sealed_at_ns))
        self._reach(entry)
        return True

    def _reach(self, entry: Entry) -> None:
        """Move on to `entry`, and notice what is missing in front of it."""
        start = self._offered
        if start.epoch != entry.epoch:
            if entry.epoch == self._left.acked.epoch:
                start = self._left.acked
            elif entry.epoch == self._own:
                start = Position(self._own, 0, 0)
            else:  # where an epoch long ago had come to is not known any more
                start = Position(entry.epoch, entry.sequence - 1, entry.rows_through - entry.rows)
        before = Position(entry.epoch, entry.sequence - 1, entry.rows_through - entry.rows)
        if before.sequence > start.sequence:
            for hole in holes(start, self._ledger.dropped, before):
                self._lose(hole)
        self._offered = Position(entry.epoch, entry.sequence, entry.rows_through)

    def _lose(self, hole: Loss) -> None:
        if hole.epoch != self._own:
            self._left_frames -= hole.frames
        log.warning("%s", hole.event(0).message)
        self._ledger.lose(hole)

    async def _read(self) -> bool:
        """Fetch from the disk into `held`; False when the disk refuses, for now."""
        assert self._spool is not None
        try:
            entries = await self._in_thread(self._spool.read, READ_BYTES_MAX)
        except OSError as error:
            self.disk_errors += 1
            self._reads_failed += 1
            log.warning("the spool can't be read: %s", error.strerror or error)
            if self._reads_failed >= READS_TRIED_MAX:
                self._reads_failed = 0
                self._spool.skip_file()
            return False
        self._reads_failed = 0
        reached = max(self._offered[:2], self._done)
        fresh = [e for e in entries if e.key > reached and not self._is_given_up(e)]
        if self._epoch != self._own:
            self._left_frames -= len(entries) - len(fresh)
        self._held.extend(fresh)
        if fresh and not self._replaying:
            self._replaying = True
            log.info("replaying the spool: %d frames wait", self.pending_frames)
        self._unread = self._spool.unread
        return True

    async def _switch(self, epoch: int) -> None:
        """From here on frames of `epoch` are offered."""
        if self._epoch and self.publisher is not None:
            self._epoch = 0
            await self.publisher.close()
        if epoch == self._own:
            self._left_frames = 0  # a count by offsets, which damage may have put wrong
        self.publisher = await self._open_publisher(epoch, self._offered_bytes, self._wake.set)
        self._epoch = epoch

    async def _refuse(self) -> None:
        """The broker knows a newer epoch already: what is left of this one can't be told it."""
        assert self.publisher is not None
        self._refused, self._epoch = self._epoch, 0
        log.warning("the broker refuses frames of epoch %d: it has newer ones", self._refused)
        await self.publisher.close()
        if self._sent:
            first, last = self._sent[0], self._sent[-1]
            rows = sum(sent.rows for sent in self._sent)
            self._lose(Loss(self._refused, first.key[1], last.key[1], rows, "refused"))
            self._done = last.key
            self._sent.clear()

    def _skip_refused(self) -> None:
        skipped: list[Entry] = []
        while self._held and self._held[0].epoch <= self._refused:
            skipped.append(self._held.popleft())
            self._reach(skipped[-1])
        if skipped:
            first, last = skipped[0], skipped[-1]
            rows = sum(entry.rows for entry in skipped)
            self._lose(Loss(self._refused, first.sequence, last.sequence, rows, "refused"))
            self._done = last.key


def _events(entries: Iterable[Entry]) -> list[Event]:
    found: list[Event] = []
    for entry in entries:
        if entry.eventful:
            with contextlib.suppress(FrameCorrupt):
                found += wire.decode_frame(entry.payload).events
    return found
