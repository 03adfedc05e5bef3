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

from gputel.broker.engine.disk import Disk
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
        self._paths: dict[int, Path] = {}  # of descriptors that append
        self._durable: dict[Path, int] = {}  # bytes
        self._unnamed: set[Path] = set()  # made, and their directory not synced since

    def _step(self) -> None:
        """Count an operation; at its own one the power goes."""
        self._operations += 1
        if self._operations == self._plan.power_loss_after:
            self._lose_power()

    def _lose_power(self) -> None:
        for path, durable in self._durable.items():
            with contextlib.suppress(FileNotFoundError):
                self._tear(path, durable)
        for path in self._unnamed:
            if self._random.random() < 0.5:
                path.unlink(missing_ok=True)
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # never returns

    def _tear(self, path: Path, durable: int) -> None:
        """Behind what is durable each sector was written or not, and the end is anywhere."""
        size_bytes = path.stat().st_size
        if size_bytes <= durable:
            return
        end = self._random.randint(durable, size_bytes)
        with path.open("r+b") as file:
            first = durable
            while first < end:
                behind = min((first // SECTOR_BYTES + 1) * SECTOR_BYTES, end)
                if self._random.random() < 0.3:
                    file.seek(first)
                    file.write(bytes(behind - first))
                first = behind
            file.truncate(end)

    def open_append(self, path: Path) -> int:
        with self._lock:
            self._step()
            if not path.exists():
                self._unnamed.add(path)
            fd = super().open_append(path)
            self._paths[fd] = path
            self._durable.setdefault(path, os.fstat(fd).st_size)
            return fd

    def append(self, fd: int, buffers: Sequence[bytes]) -> None:
        with self._lock:
            if time.monotonic() < self._full_until:
                raise OSError(errno.ENOSPC, "No space left on device")
            if self._random.random() < self._plan.full_chance:
                self._full_until = time.monotonic() + FULL_S
                super().append(fd, [buffers[0][: self._random.randrange(64)]])
                raise OSError(errno.ENOSPC, "No space left on device")
            if self._random.random() < self._plan.write_error_chance:
                super().append(fd, [buffers[0][: self._random.randrange(64)]])
                raise OSError(errno.EIO, "Input/output error")
            # Power may go in the middle of a write, too.
            half = self._random.randint(0, len(buffers))
            super().append(fd, buffers[:half])
            self._step()
            super().append(fd, buffers[half:])

    def sync(self, fd: int) -> None:
        with self._lock:
            self._step()
            if self._random.random() < self._plan.sync_error_chance:
                raise OSError(errno.EIO, "Input/output error")
            super().sync(fd)
            path = self._paths.get(fd)
            if path is not None:
                self._durable[path] = os.fstat(fd).st_size
            self._step()

    def truncate(self, path: Path, size_bytes: int) -> None:
        with self._lock:
            self._step()
            super().truncate(path, size_bytes)
            self._durable[path] = size_bytes

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
    whole = os.writev
    draw = random.Random(plan.seed + 1)

    def writev(fd: int, buffers: Sequence[Any], *rest: int) -> int:
        total = sum(map(len, buffers))
        if total > 1 and draw.random() < plan.short_write_chance:
            return os.write(fd, b"".join(buffers)[: draw.randrange(1, total)])
        return whole(fd, buffers, *rest)

    os.writev = writev  # type: ignore[assignment]


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
