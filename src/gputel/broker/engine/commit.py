"""The committer: one thread that makes accepted messages durable, many at once.

While one commit waits for the disk, messages gather for the next: a busy partition gets
large commits, an idle one does not wait. One round takes up to 4 MiB of a partition.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue

from gputel import limits
from gputel.broker.engine.disk import Disk, SyncFailed
from gputel.broker.engine.leaving import Janitor, Leaving
from gputel.broker.engine.log_file import LogFile, Stage
from gputel.broker.engine.memory import Block
from gputel.broker.engine.partition import Partition
from gputel.broker.engine.producers import Mark, Producers
from gputel.broker.engine.segment import Segment
from gputel.broker.settings import BrokerSettings
from gputel.clock import NS_PER_S, Clock

log = logging.getLogger(__name__)

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
HOUSEKEEPING_S = 0.25


class Writer:
    """The writing end of one partition; lives on the committer's thread."""

    def __init__(
        self,
        partition: Partition,
        producers: Producers,
        disk: Disk,
        stage: Stage,
        janitor: Janitor,
    ) -> None:
        self.partition = partition
        self._durable = producers  # only what is synced, unlike the partition's own table
        self._disk = disk
        self._stage = stage
        self._janitor = janitor
        self._file = LogFile(disk, self._active.path, self._active.size_bytes, stage)
        self._named = True  # the file's name is durable
        self._left: Leaving | None = None  # the file before, until nothing is left to do with it
        self._held: list[Block] = []
        self._next_offset = self._unsynced_offset = partition.next_offset
        self.unsynced = False
        self.failed = False
        # What was read from the files may be in the page cache only.
        self._file.sync()

    @property
    def _active(self) -> Segment:
        return self.partition.segments_held[-1]

    def take(self, bytes_max: int = limits.COMMIT_BYTES_MAX) -> list[Block]:
        """The next commit's blocks: what could not be written before, or what is pending.

        At least one block where there is one, else `bytes_max` of them.
        """
        if not self._held:
            size_bytes = 0
            pending = self.partition.pending
            while pending:
                size_bytes += pending[0].size_bytes
                if self._held and size_bytes > bytes_max:
                    break
                self._held.append(pending.popleft())
        return self._held

    def write(self, blocks: list[Block], segment_bytes: int, *, sync: bool) -> int:
        """Append the records of `blocks` and sync; returns their size in bytes. OSError.

        After an error nothing is left of them in the file, and they are held; writing may be
        tried again, except after SyncFailed.
        """
        records = [record for block in blocks for record in block.records]
        added_bytes = sum(block.record_bytes for block in blocks)
        active = self._active
        if active.size_bytes and active.size_bytes + added_bytes > segment_bytes:
            active = self._roll(records[0].offset)
        try:
            sizes = self._file.append(records, self._unsynced_offset, durably=sync)
            if sync:
                self.sync()
        except OSError as error:
            # Also after a failed sync: the next start must not take it for stored.
            try:
                self._file.cut(active.size_bytes)
            except OSError:
                raise SyncFailed(error.errno, error.strerror) from None
            raise
        self._held = []
        self._next_offset = records[-1].offset + 1
        self.unsynced = not sync
        if sync:
            self._unsynced_offset = self._next_offset
        active.note_all(records, sizes)
        for block in blocks:
            newest = block.records[-1]
            mark = Mark(newest.epoch, newest.sequence, newest.offset)
            self._durable.rebuild(newest.producer, mark)
        return added_bytes

    def sync(self) -> None:
        """Make durable what was written. SyncFailed."""
        try:
            self._file.sync()
            if not self._named:
                self._disk.sync_dir(self.partition.directory)
                self._named = True
        except OSError as error:
            raise SyncFailed(error.errno, error.strerror) from error
        self._unsynced_offset = self._next_offset
        self.unsynced = False

    def _roll(self, base_offset: int) -> Segment:
        """Go on in a new file. Nobody waits for what is still to be done with the old one."""
        if self.unsynced:
            self.sync()
        if self._left is not None:
            self._left.settle()
            self._left = None
        path = Segment.named(self.partition.directory, base_offset)
        fresh = Segment(path, base_offset, 0)
        file = LogFile(self._disk, path, 0, self._stage)
        self._left = Leaving(self._disk, self._file, fresh.snapshot_path, self._durable.snapshot())
        self._janitor.leave(self._left)
        self._file, self._named = file, False
        self.partition.segments_held += (fresh,)
        return fresh

    def retain(self, bytes_max: int, stored_after_ns: int) -> int:
        """Delete the oldest segments that are too much or too old; returns how many."""
        segments = self.partition.segments_held
        kept = sum(segment.size_bytes for segment in segments)
        gone = 0
        while gone + 1 < len(segments) and (
            kept > bytes_max or 0 < segments[gone + 1].first_time() <= stored_after_ns
        ):
            kept -= segments[gone].size_bytes
            gone += 1
        if gone:
            self.partition.segments_held = segments[gone:]
            self._janitor.delete(self._disk, self.partition.directory, segments[:gone])
        return gone

    def close(self) -> None:
        """Let go of the files."""
        if self._left is not None:
            self._left.close()
        self._file.close()


class Committer:
    """The thread. Methods are called on the event loop's thread."""

    def __init__(
        self,
        settings: BrokerSettings,
        data_dir: Path,
        disk: Disk,
        clock: Clock,
        observe_commit_s: Callable[[float], None],
    ) -> None:
        self._settings = settings
        self._data_dir = data_dir
        self._disk = disk
        self._clock = clock
        self._observe_commit_s = observe_commit_s
        self.stage = Stage()
        self.janitor = Janitor()
        self._queue: SimpleQueue[Partition | None] = SimpleQueue()
        self._writers: dict[Partition, Writer] = {}
        self._full: set[Writer] = set()  # they wait for disk space; the thread alone changes it
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name="committer", daemon=True)
        self._ended = asyncio.Event()
        #: How the thread has ended, by a mistake of ours; empty while it works.
        self.problem = ""
        self._next_housekeeping_ns = 0
        self._next_sync_ns = 0
        self.commits = 0
        self.sync_errors = 0
        self.segments_retired = 0
        self.free_bytes = disk.free_bytes(data_dir)

    def start(self) -> None:
        """Begin; call inside the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def add(self, writer: Writer) -> None:
        """Take care of a partition from now on."""
        self._writers[writer.partition] = writer

    def accepted(self, partition: Partition) -> None:
        """A partition has pending records."""
        self._queue.put(partition)

    def stop(self) -> None:
        """Commit what is pending and end the thread. Blocks."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        self.janitor.stop()

    @property
    def is_full(self) -> bool:
        """Whether a partition waits for disk space, or the reserve is touched."""
        return self.free_bytes < self._settings.disk_reserve_bytes or bool(self._full)

    async def until_ended(self) -> str:
        """Return the `problem` once there is one."""
        await self._ended.wait()
        return self.problem

    def _work(self) -> None:
        try:
            self._run()
        except BaseException as error:
            log.exception("the committer has ended by itself")
            self.problem = f"the committer has ended: {error!r}"
            self._tell(self._ended.set)

    def _run(self) -> None:
        stopping = False
        period_s = min(HOUSEKEEPING_S, self._settings.fsync_interval_ms / 1000)
        while not stopping:
            with contextlib.suppress(Empty):
                partition = self._queue.get(timeout=period_s)
                if partition is None:
                    stopping = True
                else:
                    # Cleared first: what is accepted from now on is announced again.
                    partition.queued = False
                    self._commit(self._writers[partition])
            self._housekeep()
        for writer in tuple(self._writers.values()):
            while self._commit(writer):
                pass
            if writer.unsynced and not writer.failed:
                self._try_sync(writer)

    def _commit(self, writer: Writer) -> bool:
        """One commit; returns whether it was done."""
        partition = writer.partition
        blocks = writer.take(min(limits.COMMIT_BYTES_MAX, self._settings.segment_bytes))
        if not blocks or writer.failed:
            return False
        started_ns = time.monotonic_ns()
        try:
            sync = self._settings.fsync == "always"
            size_bytes = writer.write(blocks, self._settings.segment_bytes, sync=sync)
        except OSError as error:
            if error.errno in _NO_SPACE and not isinstance(error, SyncFailed):
                if writer not in self._full:
                    log.warning("%s: %s; producers wait", partition.directory, error.strerror)
                self._full.add(writer)
            else:
                self._fail(writer, error)
            return False
        ended_ns = time.monotonic_ns()
        self._full.discard(writer)
        self._tell(partition.committed, blocks, size_bytes)
        self._observe_commit_s((ended_ns - started_ns) / NS_PER_S)
        self.commits += 1
        if partition.pending and not partition.queued:
            partition.queued = True
            self._queue.put(partition)
        return True

    def _fail(self, writer: Writer, error: OSError) -> None:
        partition = writer.partition
        writer.failed = True
        self._full.discard(writer)
        self.sync_errors += 1
        reason = f"{error.strerror or error} while writing {partition.directory}"
        self._tell(partition.failed, reason)

    def _tell(self, call: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(call, *arguments)

    def _try_sync(self, writer: Writer) -> None:
        try:
            writer.sync()
        except OSError as error:
            self._fail(writer, error)

    def _housekeep(self) -> None:
        now_ns = time.monotonic_ns()
        if self._settings.fsync == "interval" and now_ns >= self._next_sync_ns:
            self._next_sync_ns = now_ns + self._settings.fsync_interval_ms * 1_000_000
            for writer in tuple(self._writers.values()):
                if writer.unsynced and not writer.failed:
                    self._try_sync(writer)
        if now_ns < self._next_housekeeping_ns:
            return
        self._next_housekeeping_ns = now_ns + round(HOUSEKEEPING_S * NS_PER_S)
        stored_after_ns = self._clock.time_ns() - self._settings.retention_seconds * NS_PER_S
        with contextlib.suppress(OSError):
            self.free_bytes = self._disk.free_bytes(self._data_dir)
        for writer in tuple(self._writers.values()):
            try:
                gone = writer.retain(self._settings.retention_bytes, stored_after_ns)
                self.segments_retired += gone
            except OSError as error:
                log.warning("%s: retention failed: %s", writer.partition.directory, error)
        for writer in tuple(self._full):
            self._commit(writer)
