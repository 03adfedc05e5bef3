"""When a failed partition may work again: what a broker waits for before it ends itself.

After a failed sync nobody knows what the page cache holds of a file, so a partition stays failed
until a new process reads its log anew. To end at once would take the healthy partitions away
too, and a start on a disk that still fails would not succeed: the disk is tried first.

    failed -> wait 1 s, 2 s, ... 60 s -> write and sync a file beside each failed log
                     ^                          |
                     +------- OSError ----------+--> all took it: return
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from gputel.broker.engine.disk import BLOCK_BYTES, Disk
from gputel.broker.engine.log_file import LogFile, Stage
from gputel.broker.engine.partition import Partition
from gputel.broker.engine.record import Record
from gputel.clock import Clock

log = logging.getLogger(__name__)

PROBE_FIRST_S: Final = 1.0
PROBE_LAST_S: Final = 60.0


async def until_mendable(
    partitions: Callable[[], Iterable[Partition]], disk: Disk, clock: Clock
) -> list[Partition]:
    """Return the failed partitions once there are some and the disk takes writes for each."""
    delay_s = PROBE_FIRST_S
    while True:
        await clock.sleep(delay_s)
        failed = [of for of in partitions() if of.failure]
        if not failed:
            continue
        try:
            for of in failed:
                await asyncio.to_thread(probe, of.directory, disk)
        except OSError as error:
            delay_s = min(delay_s * 2, PROBE_LAST_S)
            log.warning("the disk still fails (%s); tried again in %.0f s", error, delay_s)
        else:
            return failed


def probe(directory: Path, disk: Disk) -> None:
    """Write and sync a file in `directory` as a commit would, and remove it. Blocks; OSError."""
    path = directory / "probe"
    try:
        file = LogFile(disk, path, 0, Stage(2 * BLOCK_BYTES))
        try:
            file.append([Record(0, 0, "", 0, 0, b"", bytes(BLOCK_BYTES))], 0, durably=True)
            file.sync()
        finally:
            file.close()
    finally:
        path.unlink(missing_ok=True)
