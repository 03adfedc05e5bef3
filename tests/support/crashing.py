"""A broker process that breaks: `python -m support.crashing` with a JSON object of `Plan`.

It loses power at a random one of its disk operations: what was not synced by then is torn as
a disk tears it, sector by sector, and the process is gone. Before, writes come short, the disk
fills up for a while, syncs fail, and the clock jumps.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gputel.broker.engine.disk import BLOCK_BYTES, Disk, is_direct
from gputel.broker.engines import make_engine
from gputel.broker.server import BrokerServer
from gputel.broker.settings import BrokerSettings
from gputel.clock import SystemClock
from gputel.observe import Health, Telemetry

SECTOR_BYTES = 512
FULL_S = 0.3
JUMPS_S = (-3600, 0, 3600)


@dataclass(frozen=True)
class Plan:
    """What shall happen to one broker process. Chances are per disk operation; 0: never."""

    data_dir: str
    seed: int = 0
    partitions: int = 3
    power_loss_after: int = 0  # disk operations
    full_chance: float = 0
    sync_error_chance: float = 0
    write_error_chance: float = 0
    short_write_chance: float = 0
    clock_jumps: bool = False
    fsync: str = "always"

    def argument(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))


class CrashingDisk(Disk):
    """Real files, of which the power cut leaves what a disk may leave."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._random = random.Random(plan.seed)
        self._lock = threading.RLock()  # the committer and savers of positions
        self._operations = 0
        self._full_until = 0.0
        self._paths: dict[int, Path] = {}  # of the logs' descriptors
        #: Where a log may lose what was written, and what it durably held from there on.
        self._at_risk: dict[Path, tuple[int, bytes]] = {}
        self._unnamed: set[Path] = set()  # made, and their directory not synced since

    def _step(self) -> None:
        """Count an operation; at its own one the power goes."""
        self._operations += 1
        if self._operations == self._plan.power_loss_after:
            self._lose_power()

    def _lose_power(self) -> None:
        for path, (position, old) in self._at_risk.items():
            with contextlib.suppress(FileNotFoundError):
                self._tear(path, position, old)
        for path in self._unnamed:
            if self._random.random() < 0.5:
                path.unlink(missing_ok=True)
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # never returns

    def _tear(self, path: Path, position: int, old: bytes) -> None:
        """From `position` on each sector was written or not, and the end is anywhere."""
        new = path.read_bytes()[position:]
        size_bytes = self._random.randint(len(old), max(len(new), len(old)))
        old += bytes(size_bytes - len(old))
        with path.open("r+b") as file:
            first = position
            while first < position + size_bytes:
                behind = min((first // SECTOR_BYTES + 1) * SECTOR_BYTES, position + size_bytes)
                if self._random.random() < 0.3:
                    file.seek(first)
                    file.write(old[first - position : behind - position])
                first = behind
            file.truncate(position + size_bytes)

    def _risk(self, path: Path, position: int) -> None:
        begin, old = self._at_risk.get(path, (path.stat().st_size, b""))
        if position < begin:
            with path.open("rb") as file:
                file.seek(position)
                old = file.read(begin - position) + old
        self._at_risk[path] = min(position, begin), old

    def _made(self, path: Path) -> None:
        self._step()
        if not path.exists():
            self._unnamed.add(path)

    def open_append(self, path: Path) -> int:
        with self._lock:
            self._made(path)
            return super().open_append(path)

    def open_log(self, path: Path) -> int:
        with self._lock:
            self._made(path)
            fd = super().open_log(path)
            self._paths[fd] = path
            return fd

    def _trouble(self) -> OSError | None:
        """What happens in the middle of this write, if anything."""
        if self._random.random() < self._plan.full_chance:
            self._full_until = time.monotonic() + FULL_S
            return OSError(errno.ENOSPC, "No space left on device")
        if self._random.random() < self._plan.write_error_chance:
            return OSError(errno.EIO, "Input/output error")
        return None

    def _check_full(self) -> None:
        if time.monotonic() < self._full_until:
            raise OSError(errno.ENOSPC, "No space left on device")

    def append(self, fd: int, buffers: Sequence[bytes | bytearray]) -> None:
        with self._lock:
            self._check_full()
            trouble = self._trouble()
            if trouble is not None:
                super().append(fd, [buffers[0][: self._random.randrange(64)]])
                raise trouble
            super().append(fd, buffers)

    def write(self, fd: int, data: memoryview, position: int) -> None:
        with self._lock:
            self._check_full()
            self._risk(self._paths[fd], position)
            trouble = self._trouble()
            # Power may go in the middle of a write, too.
            half = self._random.randint(0, len(data))
            if is_direct(fd):
                half -= half % BLOCK_BYTES
            super().write(fd, data[:half], position)
            if trouble is not None:
                raise trouble
            self._step()
            super().write(fd, data[half:], position + half)

    def sync(self, fd: int) -> None:
        with self._lock:
            self._step()
            if self._random.random() < self._plan.sync_error_chance:
                raise OSError(errno.EIO, "Input/output error")
            super().sync(fd)
            path = self._paths.get(fd)
            if path is not None:
                self._at_risk.pop(path, None)
            self._step()

    def truncate(self, path: Path, size_bytes: int) -> None:
        with self._lock:
            self._step()
            super().truncate(path, size_bytes)
            self._at_risk.pop(path, None)

    def replace(self, path: Path, data: bytes) -> None:
        with self._lock:
            self._step()
            super().replace(path, data)
            self._step()

    def sync_dir(self, path: Path) -> None:
        with self._lock:
            super().sync_dir(path)
            self._unnamed = {made for made in self._unnamed if made.parent != path}


class JumpingClock(SystemClock):
    """Wall time that somebody sets now and then."""

    offset_s = 0

    def time_ns(self) -> int:
        return super().time_ns() + self.offset_s * 1_000_000_000


def write_short(plan: Plan) -> None:
    """Let the kernel take less than it is given, as it may."""
    writev, pwrite, pwritev = os.writev, os.pwrite, os.pwritev
    draw = random.Random(plan.seed + 1)

    def part(total: int, unit: int = 1) -> int:
        """How many of `total` bytes are taken; a disk takes whole sectors."""
        if total <= unit or draw.random() >= plan.short_write_chance:
            return total
        return draw.randrange(unit, total, unit)

    def short_writev(fd: int, buffers: Sequence[Any]) -> int:
        total = sum(map(len, buffers))
        taken = part(total)
        return writev(fd, buffers) if taken == total else os.write(fd, b"".join(buffers)[:taken])

    def short_pwrite(fd: int, data: Any, position: int) -> int:
        return pwrite(fd, data[: part(len(data))], position)

    def short_pwritev(fd: int, buffers: Sequence[Any], position: int, flags: int) -> int:
        unit = SECTOR_BYTES if is_direct(fd) else 1
        (data,) = buffers
        return pwritev(fd, (data[: part(len(data), unit)],), position, flags)

    os.writev = short_writev  # type: ignore[assignment]
    os.pwrite = short_pwrite
    os.pwritev = short_pwritev  # type: ignore[assignment]


async def main(plan: Plan) -> None:
    """Serve until killed; a partition that failed ends the process, as a supervisor would."""
    write_short(plan)
    clock = JumpingClock()
    settings = BrokerSettings(
        listen="127.0.0.1:0",
        partitions=plan.partitions,
        segment_bytes=1 << 20,
        disk_reserve_bytes=0,
        fsync=plan.fsync,  # type: ignore[arg-type]
        fsync_interval_ms=60_000,
    )
    engine = make_engine(settings, Path(plan.data_dir), clock=clock, disk=CrashingDisk(plan))
    server = BrokerServer(settings, engine, Telemetry("broker"), Health("broker"), clock)
    await server.start()
    print(server.address, flush=True)
    failing = asyncio.create_task(server.until_failed())
    draw = random.Random(plan.seed + 2)
    while True:
        await asyncio.sleep(0.2)
        if plan.clock_jumps:
            clock.offset_s = draw.choice(JUMPS_S)
        partitions = [p for topic in server._engine.topics.values() for p in topic.partitions]
        if any(partition.failure for partition in partitions):
            os.kill(os.getpid(), signal.SIGKILL)
        if failing.done():
            failing.result()


if __name__ == "__main__":
    asyncio.run(main(Plan(**json.loads(sys.argv[1]))))
