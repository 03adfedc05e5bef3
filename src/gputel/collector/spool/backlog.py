"""Memory and disk as one queue in front of the publisher.

    put --> unwritten --write--> spool --read--> held --+
        \\-> waiting -----------------------------------+--offer--> publisher, sent --ack--> gone

A frame is offered to the broker once it is written: so whatever happens to this process,
what the broker may have is on disk, and is not told as lost. A frame that finds no room at
the publisher is left on disk, and read again when its turn comes (`offering.py`).

A disk that fails or hangs stops nothing: frames are then offered unwritten, and wait in
memory, bounded; the oldest that are not offered yet go first, counted. Without a spool that
is all there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

from gputel.clock import NS_PER_S, Clock
from gputel.collector.spool.entry import Entry, Key
from gputel.collector.spool.files import Spool
from gputel.collector.spool.ledger import Ledger
from gputel.collector.spool.offering import OFFERED_BYTES_MAX, Left, Offering, OpenPublisher
from gputel.errors import GputelError
from gputel.limits import MIB

if TYPE_CHECKING:
    from gputel.broker import Publisher

log = logging.getLogger(__name__)

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


class Backlog:
    """Takes the frames of the ledger's epoch; `start`, then `close`.

    memory_bytes   bound of the frames in memory
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
        self._clock = clock
        offered_bytes = min(OFFERED_BYTES_MAX, memory_bytes // 2)
        self._memory_bytes_max = memory_bytes - offered_bytes
        self._memory_bytes = 0  # of `unwritten`, or of `waiting` without a spool
        self._unwritten: deque[Entry] = deque()
        self._waiting: deque[Entry] = deque()
        self._unread = spool is not None and spool.unread
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._offering = Offering(ledger, left, open_publisher, offered_bytes, self._wake.set)
        self._disk = ThreadPoolExecutor(1, "spool")
        self._writing_since_ns: int | None = None
        self._retry_at_ns = 0
        self._synced_at_ns = 0
        self._reads_failed = 0
        self._replaying = False
        self._task: asyncio.Task[None] | None = None
        self.failure: GputelError | None = None
        self.disk_problem = ""
        self.disk_errors = 0

    # -- what it says of itself ----------------------------------------------------------

    @property
    def publisher(self) -> Publisher | None:
        """The one that is in use."""
        return self._offering.publisher

    @property
    def pending_frames(self) -> int:
        """Frames that the broker has not acknowledged, wherever they are."""
        return self._offering.pending_frames

    @property
    def replayed_frames(self) -> int:
        """Frames that were read back from the disk and offered."""
        return self._offering.replayed_frames

    @property
    def memory_size_bytes(self) -> int:
        """Frames in memory: waiting, and offered."""
        offered = self.publisher.pending_size_bytes if self.publisher else 0
        return self._memory_bytes + offered

    @property
    def written(self) -> bool:
        """Is every frame on disk that is not acknowledged?"""
        return not self._unwritten and self._writing_since_ns is None

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
        offering = self._offering
        for entries in (offering.sent, offering.held, self._unwritten, self._waiting):
            if entries:
                age_ns = self._clock.time_ns() - entries[0].sealed_at_ns
                return max(0.0, age_ns / NS_PER_S)
        return 0.0

    # -- in and out ----------------------------------------------------------------------

    async def start(self) -> None:
        """Begin with what a predecessor left."""
        offering = self._offering
        # What it was acknowledged or had given up may lie in front of what it was not.
        while self._unread and not offering.held and await self._read():
            pass
        if offering.held:
            await offering.switch(offering.held[0].epoch)
        elif not self._unread:
            await offering.switch(self._ledger.epoch)
        # Else the disk can't be read for now: the broker must not know our epoch yet, it
        # would refuse those that lie there.
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
            rest = [
                entry for entry in self._unwritten if entry.key > max(behind, self._offering.done)
            ]
            if rest:
                spool.append(rest)
            spool.sync()
            spool.release(self._offering.done, all=True)
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
        self._offering.settle()
        while self._unwritten and self._unwritten[0].key <= self._offering.done:
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
                self._writing_since_ns = None
            self._disk_is("")
            self._ledger.secured(batch[0].sequence, batch[-1].sequence)
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
            self._offering.expose(newest)
            self._offering.drop(self._offering.not_given_up(unread), "spool_full")
            await self._in_thread(spool.delete_oldest)

    def _bound_memory(self) -> None:
        queue = self._unwritten if self._spool else self._waiting
        while self._memory_bytes > self._memory_bytes_max and len(queue) > 1:
            entry = queue.popleft()
            self._memory_bytes -= len(entry.payload)
            if self._spool is None:
                self._offering.drop([entry], "memory_full")
            elif entry.key > self._offering.reached:
                self._waiting.remove(entry)  # near the front: behind what is being written
                self._offering.drop([entry], "memory_full")

    def _is_disk_bad(self) -> bool:
        """Does it hang, or has it failed a moment ago? After that a frame tries it again."""
        now_ns, since_ns = self._clock.monotonic_ns(), self._writing_since_ns
        hangs = since_ns is not None and now_ns - since_ns > HANGING_S * NS_PER_S
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
        if spool.releasable(self._offering.done):
            await self._in_thread(spool.release, self._offering.done)
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
        offering = self._offering
        while await offering.offer_held():
            if self._unread:
                away = not (offering.publisher and offering.publisher.connected)
                if (offering.epoch and away) or not await self._read():
                    return
                continue
            self._replayed()
            if not offering.current:
                if offering.sent:
                    return
                await offering.switch(self._ledger.epoch)
            if self._spool is None or self._is_disk_bad():
                self._offer_waiting()
            return

    def _replayed(self) -> None:
        if self._replaying:
            self._replaying = False
            log.info("the spool is replayed: %d frames since the start", self.replayed_frames)

    def _offer_waiting(self) -> None:
        while self._waiting and not self._unread and self._offer_one_waiting():
            pass

    def _offer_one_waiting(self) -> bool:
        if not self._offering.current or not self._offering.offer(self._waiting[0]):
            return False
        entry = self._waiting.popleft()
        if self._spool is None:
            self._memory_bytes -= len(entry.payload)
        return True

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
        if self._offering.hold(entries) and not self._replaying:
            self._replaying = True
            log.info("replaying the spool: %d frames wait", self.pending_frames)
        self._unread = self._spool.unread
        return True
