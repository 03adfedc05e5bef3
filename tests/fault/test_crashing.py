"""The troubles that the random histories rely on do happen: else those prove nothing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from gputel import broker
from gputel._reference.records import encode_record
from gputel.broker import StartAt
from gputel.broker.engine.disk import BLOCK_BYTES, SyncFailed
from gputel.broker.engine.log_file import LogFile, Stage
from gputel.broker.engine.record import Record
from support.crashing import FULL_S, JUMPS_S, SECTOR_BYTES, CrashingDisk, Plan, write_short
from support.proxy import Proxy

pytestmark = pytest.mark.fault


def disk(tmp_path: Path, **chances: float) -> tuple[CrashingDisk, LogFile]:
    """A disk and a file `log` on it that is written."""
    broken = CrashingDisk(Plan(str(tmp_path), **chances))  # type: ignore[arg-type]
    return broken, LogFile(broken, tmp_path / "log", 0, Stage(16 * BLOCK_BYTES))


def record(payload: bytes, offset: int = 0) -> Record:
    return Record(offset, 1, "p", 1, offset + 1, b"", payload)


@pytest.mark.parametrize(
    ("chance", "number"), [("full_chance", errno.ENOSPC), ("write_error_chance", errno.EIO)]
)
def test_writes_fail_and_leave_a_part(tmp_path: Path, chance: str, number: int) -> None:
    _, file = disk(tmp_path, **{chance: 1})
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number says which
        file.append([record(b"x" * 3 * BLOCK_BYTES)], 0)
    assert caught.value.errno == number
    assert (tmp_path / "log").stat().st_size <= 4 * BLOCK_BYTES
    assert file.size_bytes == 0
    file.close()
    assert (tmp_path / "log").stat().st_size == 0


def test_a_full_disk_stays_full_for_a_while(tmp_path: Path) -> None:
    broken, file = disk(tmp_path, full_chance=1)
    started = time.monotonic()
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            file.append([record(b"x")], 0)
    assert broken._full_until >= started + FULL_S
    file.close()


def test_syncs_fail(tmp_path: Path) -> None:
    _, file = disk(tmp_path, sync_error_chance=1)
    file.append([record(b"x")], 0)
    with pytest.raises(OSError, match="Input/output"):
        file.sync()
    with pytest.raises(SyncFailed, match="Input/output"):
        file.append([record(b"x", 1)], 0, durably=True)
    file.close()


def test_writes_come_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def put_back_at_the_end() -> None:
        for name in ("writev", "pwrite", "pwritev"):
            monkeypatch.setattr(os, name, getattr(os, name))

    put_back_at_the_end()
    write_short(Plan(str(tmp_path), short_write_chance=1))
    fd = os.open(tmp_path / "short", os.O_WRONLY | os.O_CREAT)
    assert os.writev(fd, [b"x" * 50, b"y" * 50]) < 100
    assert os.pwrite(fd, b"x" * 100, 0) < 100
    assert os.pwritev(fd, [b"x" * 100], 0, 0) < 100
    os.close(fd)
    monkeypatch.undo()
    put_back_at_the_end()
    write_short(Plan(str(tmp_path), short_write_chance=0.7))
    _, file = disk(tmp_path)
    data = random.Random(1).randbytes(13 * BLOCK_BYTES)
    records = [record(data[:5000]), record(data[5000:], 1)]
    file.append(records, 0)  # goes on until all is written
    file.close()
    expected = encode_record(records[0], 0) + encode_record(records[1], 1)
    assert (tmp_path / "log").read_bytes() == expected


class PowerLost(BaseException):
    """Instead of the process's end."""


def test_the_power_cut_drops_what_was_not_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was synced stays; of the rest sectors are missing, and the end is anywhere."""

    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (os.getpid(), signal.SIGKILL)
        raise PowerLost

    monkeypatch.setattr(os, "kill", kill)
    seed = random.randrange(2**16)
    print(f"seed {seed}")
    torn = unnamed = 0
    synced = record(b"s" * 1000)
    for number in range(200):
        path = tmp_path / str(number)
        path.mkdir()
        broken, file = disk(path, seed=seed + number, power_loss_after=6)
        file.append([synced], 0)
        file.sync()
        if number % 2:
            broken.sync_dir(path)
        file.append([record(b"u" * 8 * SECTOR_BYTES, 1)], 1)
        with pytest.raises(PowerLost):
            file.sync()
        if not number % 2 and not (path / "log").exists():
            unnamed += 1  # its directory was not synced
            file.close()
            continue
        data = (path / "log").read_bytes()
        file.close()
        kept = encode_record(synced, 0)
        assert data[: len(kept)] == kept
        lost = data[-8 * SECTOR_BYTES :].rstrip(b"\0")
        torn += lost != b"u" * 8 * SECTOR_BYTES
    assert torn >= 90
    assert 20 <= unnamed <= 80


async def test_the_clock_jumps_by_an_hour(tmp_path: Path) -> None:
    """What is stored carries the broker's time: hours apart within seconds."""
    plan = Plan(str(tmp_path / "broker"), partitions=1, clock_jumps=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "support.crashing",
        plan.argument(),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            address = (await process.stdout.readline()).decode().strip()
            client = await broker.connect(address)
            publisher = await client.publisher("t", "p", 1)
            seen: set[int] = set()
            async with client.consumer("t", start_at=StartAt.EARLIEST) as consumer:
                sequence = 0
                while seen != set(JUMPS_S):
                    sequence += 1
                    await publisher.publish(sequence, "k", b"x")
                    delivery = await anext(consumer)
                    assert delivery.sequence == sequence
                    seen.add(round((delivery.stored_at_ns / 1e9 - time.time()) / 3600) * 3600)
            await publisher.close()
            await client.close()
    finally:
        process.kill()
        await process.wait()


async def test_the_proxy_cuts_and_stalls() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while block := await reader.read(100):
            writer.write(block)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, Proxy() as proxy, asyncio.timeout(10):
        proxy.target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        host, _, port = proxy.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"1")
        assert await reader.read(10) == b"1"
        stalled = asyncio.create_task(proxy.stall(0.2))
        await asyncio.sleep(0)
        writer.write(b"2")
        answer = asyncio.create_task(reader.read(10))
        await asyncio.wait({answer, stalled}, return_when=asyncio.FIRST_COMPLETED)
        assert stalled.done()
        assert await answer == b"2"  # nothing is lost by a stall
        proxy.cut()
        with contextlib.suppress(ConnectionResetError):  # a cut need not be a clean end
            assert await reader.read(10) == b""
        writer.close()
