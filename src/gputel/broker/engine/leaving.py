"""What is done with segments that are no longer written, while the committer goes on.

    committer  ... commit | roll: a new file | commit, its name synced | commit ...
    janitor                  the producers known at its begin, the old file's end, both synced

PERF(roll): a commit of a busy partition waits for one sync, and for two behind a roll. All that
is left takes four more, and every message that came meanwhile waited for them.

Nothing is lost by a crash before that is done: without the snapshot the next start reads one
segment more, and it cuts the end, where there is less than a block of zeros.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from gputel.broker.engine.disk import Disk
from gputel.broker.engine.log_file import LogFile
from gputel.broker.engine.segment import Segment

log = logging.getLogger(__name__)


class Leaving:
    """A file that was left for the next one: its end is to be cut, and a snapshot written."""

    def __init__(self, disk: Disk, file: LogFile, snapshot_path: Path, snapshot: bytes) -> None:
        self._disk = disk
        self._file = file
        self._snapshot_path = snapshot_path
        self._snapshot = snapshot
        self._done: Future[None] | None = None

    def begin(self, janitor: ThreadPoolExecutor) -> None:
        """Let `janitor` do it."""
        self._done = janitor.submit(self._finish)

    def settle(self) -> None:
        """Return once all of it is done; what failed is tried once more. OSError."""
        assert self._done is not None
        try:
            self._done.result()
        except OSError:
            self._finish()

    def close(self) -> None:
        """Let go of the file, whatever is done."""
        try:
            self.settle()
        except OSError as error:
            log.warning("%s: %s; the next start goes on with it", self._file.path, error)
            self._file.close()

    def _finish(self) -> None:
        self._disk.replace(self._snapshot_path, self._snapshot)
        self._file.seal()
        self._file.close()


class Janitor:
    """The thread that does it, for all partitions, in the order in which they come."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "janitor")

    def leave(self, leaving: Leaving) -> None:
        """Do what is left to do with a file."""
        leaving.begin(self._thread)

    def delete(self, disk: Disk, directory: Path, segments: Sequence[Segment]) -> None:
        """Delete the files of `segments`, which nobody knows of any more, durably."""
        self._thread.submit(_delete, disk, directory, segments)

    def stop(self) -> None:
        """Do what was asked for, and end. Blocks."""
        self._thread.shutdown()


def _delete(disk: Disk, directory: Path, segments: Sequence[Segment]) -> None:
    try:
        for segment in segments:
            segment.path.unlink(missing_ok=True)
            segment.snapshot_path.unlink(missing_ok=True)
        disk.sync_dir(directory)
    except OSError as error:
        log.warning("%s: retention failed: %s; the next start goes on", directory, error)
