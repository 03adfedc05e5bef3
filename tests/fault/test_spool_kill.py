"""kill -9 of the collector while the broker comes and goes: what was spooled arrives once,
in order, and what was not is told to the row."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gputel import broker, wire
from gputel.broker import BrokerSettings, Delivery
from gputel.broker.engines import make_engine
from gputel.broker.server import BrokerServer
from gputel.collector.spool.files import Spool
from gputel.collector.spool.watermark import Watermark
from gputel.inventory import EventKind
from gputel.limits import MIB
from gputel.observe import Health, Telemetry

pytestmark = [pytest.mark.fault, pytest.mark.slow]

KILLS = 20
GPUS = 3
ROWS_PER_SWEEP = GPUS
PRODUCER = "collector:n"
DEADLINE_S = 60
# The witness is told of every row by the source itself, past everything under test.
COLLECTOR = """
import asyncio, os, signal, sys
from pathlib import Path
from gputel import broker
from gputel.catalog import Cadence
from gputel.collector import Collector
from gputel.collector.spool.place import SpoolPlace
from gputel.collector.settings import CollectorSettings
from gputel.observe import Health, Telemetry
from gputel.sources.sim import Simulator

address, place, witness, gpus = sys.argv[1:]

class Witnessed(Simulator):
    def sweep(self, cadence, time_ns, rings, lateness_us=0):
        sealed = super().sweep(cadence, time_ns, rings, lateness_us)
        rows = sum(ring.pushed_rows for ring in rings.values())
        os.pwrite(fd, rows.to_bytes(8, "little"), 0)
        return sealed

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    periods = {cadence: 10**9 for cadence in Cadence} | {Cadence.FAST: 5 * 10**6}
    model = "NVIDIA H100 80GB HBM3"
    source = Witnessed(node="n", gpus=int(gpus), model=model, seed=1, periods_ns=periods)
    client = await broker.connect(address)
    collector = Collector(
        CollectorSettings(flush_ms=10), source, client, "telemetry",
        Telemetry("collector"), Health("collector"),
        spool=SpoolPlace(Path(place), 256 << 20),
    )
    await collector.start()
    print("started", flush=True)
    while not stop.is_set():
        await asyncio.sleep(0.02)
        if collector.outbox.pending_frames == 0:
            print("settled", flush=True)
    await collector.stop()
    await client.close()

fd = os.open(witness, os.O_WRONLY | os.O_CREAT, 0o600)
asyncio.run(main())
"""


class Broker:
    """A broker on one data directory that can be stopped and started."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._server: BrokerServer | None = None
        self._telemetry: Telemetry | None = None
        self.address = "127.0.0.1:0"

    @property
    def up(self) -> bool:
        return self._server is not None

    async def start(self) -> None:
        self._telemetry = Telemetry("broker")
        settings = BrokerSettings(listen=self.address, partitions=3, disk_reserve_bytes=0)
        engine = make_engine(settings, self._place)
        self._server = BrokerServer(settings, engine, self._telemetry, Health("broker"))
        await self._server.start()
        self.address = self._server.address

    async def stop(self) -> None:
        if self._server is not None and self._telemetry is not None:
            await self._server.stop()
            self._telemetry.close()
            self._server = None


@asynccontextmanager
async def collecting(
    address: str, place: Path, witness: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    arguments = (address, str(place), str(witness), str(GPUS))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        COLLECTOR,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def said(process: asyncio.subprocess.Process, word: bytes) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        while (line := await process.stdout.readline()).strip() != word:
            assert line, "the collector has ended by itself"


async def all_of(address: str) -> list[Delivery]:
    """Everything the topic holds."""
    client = await broker.connect(address)
    taken: list[Delivery] = []
    start = broker.StartAt.EARLIEST
    async with client.consumer("telemetry", messages=10_000, start_at=start) as consumer:
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(2):
                    delivery = await anext(aiter(consumer))
                taken.append(delivery)
                await consumer.ack(delivery.partition, [delivery.offset])
    await client.close()
    return taken


def on_disk(place: Path) -> set[tuple[int, int]]:
    """The frames that a dead collector has left."""
    spool = Spool(place / "collector%3An", PRODUCER, 256 * MIB)
    spool.open()
    keys = set()
    while entries := spool.read(MIB):
        keys |= {entry.key for entry in entries}
    spool.close()
    return keys


def rows_of(frame: wire.Frame) -> int:
    chunks = [chunk for gpu in frame.gpus for chunk in gpu.chunks]
    return sum(len(wire.decode_chunk(chunk)) for chunk in chunks)


class Account:
    """What the broker holds, against what was swept."""

    def __init__(self, deliveries: list[Delivery]) -> None:
        self.keys = [(d.epoch, d.sequence) for d in deliveries]
        self.stored: Counter[int] = Counter()
        self.told: Counter[int] = Counter()
        self.rows: Counter[tuple[int, str, int, int]] = Counter()
        for delivery in deliveries:
            frame = wire.decode_frame(delivery.payload)
            assert (frame.epoch, frame.sequence) == (delivery.epoch, delivery.sequence)
            self.stored[frame.epoch] += rows_of(frame)
            for gpu in frame.gpus:
                for batch in map(wire.decode_chunk, gpu.chunks):
                    for sequence in batch.sequence:
                        row = (frame.epoch, gpu.uuid, batch.metric_set.id, int(sequence))
                        self.rows[row] += 1
            for event in frame.events:
                if event.kind is EventKind.GAP:
                    found = re.search(r"of epoch (\d+)", event.message)
                    assert found is not None
                    self.told[int(found[1])] += event.code


async def toggled(queue: Broker, dice: random.Random) -> None:
    """The broker comes or goes, sometimes."""
    if dice.random() < 0.5:
        await (queue.stop() if queue.up else queue.start())


@pytest.mark.timeout(300)
async def test_kill_9_of_the_collector_at_random_moments(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    queue, place = Broker(tmp_path / "broker"), tmp_path / "spool"
    await queue.start()
    spooled: set[tuple[int, int]] = set()
    swept: dict[int, int] = {}
    for run in range(KILLS):
        witness = tmp_path / f"witness-{run}"
        await toggled(queue, dice)
        async with collecting(queue.address, place, witness) as process:
            if dice.random() < 0.85:
                await said(process, b"started")
                await asyncio.sleep(dice.uniform(0, 0.4))
                await toggled(queue, dice)
                await asyncio.sleep(dice.uniform(0, 0.4))
            else:  # while it starts
                await asyncio.sleep(dice.uniform(0.3, 1.2))
            process.send_signal(signal.SIGKILL)
            await process.wait()
        if not witness.exists() or not (place / "collector%3An" / "watermark").exists():
            continue
        found = Watermark(place / "collector%3An" / "watermark").found
        if found is None or found.progress.epoch in swept:
            continue
        spooled |= on_disk(place)
        swept[found.progress.epoch] = found.swept_rows
        seen = int.from_bytes(witness.read_bytes() or b"\0", "little")
        assert 0 <= seen - found.swept_rows <= ROWS_PER_SWEEP * 2, "the kill fell between the two"
    if not queue.up:
        await queue.start()
    async with collecting(queue.address, place, tmp_path / "last") as process:
        await said(process, b"settled")
        process.send_signal(signal.SIGTERM)
        await process.communicate()
        assert process.returncode == 0
    account = Account(await all_of(queue.address))
    await queue.stop()
    assert account.keys == sorted(set(account.keys)), "in order, each once"
    assert set(account.rows.values()) == {1}
    assert spooled <= set(account.keys)
    assert len(swept) >= KILLS // 2
    assert sum(account.stored[epoch] for epoch in swept) > 0
    for epoch, rows in swept.items():
        stored, told = account.stored[epoch], account.told[epoch]
        # Rows may be framed before the sampler's thread has counted them.
        assert rows <= stored + told <= rows + ROWS_PER_SWEEP, (epoch, stored, told, rows)
    lost = sum(account.told[epoch] for epoch in swept)
    print(f"{sum(swept.values())} rows swept, {lost} lost by {len(swept)} kills, all told")
    assert list(place.glob("*/*.log")) == []
