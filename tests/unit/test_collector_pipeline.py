"""The collector against a broker in memory: nothing lost uncounted, replays repeat themselves."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gputel import limits, wire
from gputel.catalog import METRIC_SETS, Cadence
from gputel.clock import NS_PER_S
from gputel.collector import Collector
from gputel.collector.exporter import Format
from gputel.collector.outbox import LiveOutbox
from gputel.collector.settings import CollectorSettings
from gputel.errors import ProducerFenced
from gputel.inventory import EventKind
from gputel.observe import Health, Telemetry
from gputel.sources.replay import Replay
from gputel.sources.sim import Simulator

HEADER = (
    "timestamp,metric_name,gpu_id,device,uuid,modelName,Hostname,container,pod,namespace,"
    "value,labels_raw"
)
Cell = tuple[str, int, int, int | float]
DEADLINE_S = 20


class MemoryPublisher:
    """Acknowledges at once, or nothing and takes `room` messages."""

    def __init__(self) -> None:
        self.room: int | None = None
        self.stored: dict[int, tuple[str, bytes]] = {}
        self.pending: dict[int, tuple[str, bytes]] = {}
        self.last_acked_sequence = 0
        self.connected = True
        self.fenced: ProducerFenced | None = None
        self.changed = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None

    @property
    def pending_messages(self) -> int:
        return len(self.pending)

    @property
    def pending_size_bytes(self) -> int:
        return sum(len(payload) for _, payload in self.pending.values())

    def offer(self, sequence: int, key: str, payload: bytes) -> bool:
        if self.room is not None and len(self.pending) >= self.room:
            return False
        self.pending[sequence] = (key, payload)
        if self.room is None:
            self.acknowledge()
        return True

    def acknowledge(self) -> None:
        self.room = None
        for sequence, message in self.pending.items():
            assert sequence > self.last_acked_sequence
            self.last_acked_sequence = sequence
            self.stored[sequence] = message
        self.pending.clear()
        self.changed.set()
        self.on_change()

    async def publish(self, sequence: int, key: str, payload: bytes) -> None:
        while not self.offer(sequence, key, payload):
            self.changed.clear()
            await self.changed.wait()

    async def flush(self, timeout_s: float) -> bool:
        return not self.pending

    async def close(self) -> None:
        pass


class MemoryBroker:
    def __init__(self, room: int | None = None) -> None:
        self.made = MemoryPublisher()
        self.made.room = room
        self.identity = ("", 0)

    async def publisher(
        self,
        topic: str,
        producer: str,
        epoch: int,
        *,
        pending_bytes: int,
        on_change: Callable[[], None] = lambda: None,
    ) -> MemoryPublisher:
        self.identity = (producer, epoch)
        self.made.on_change = on_change
        return self.made


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    telemetry = Telemetry("collector")
    yield telemetry
    telemetry.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - a deadline around any condition
            await asyncio.sleep(0.002)


def dump(tmp_path: Path, seconds: int = 12) -> Path:
    lines = [HEADER]
    for metric in ("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_GPU_TEMP"):
        for host in ("b", "a"):
            for gpu in range(3):
                for second in range(seconds):
                    value = (second * 7 + gpu * 3 + len(metric)) % 90 + 1
                    labels = f'pci_bus_id=""0000:0{gpu}"",gpu=""{gpu}""'
                    lines.append(
                        f'"2025-07-18T20:42:{second:02}Z","{metric}","{gpu}","nvidia{gpu}",'
                        f'"GPU-{host}-{gpu}","H100","{host}","","","","{value}","{labels}"'
                    )
    path = tmp_path / "dump.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def cells(stored: dict[int, tuple[str, bytes]]) -> Counter[Cell]:
    """Every value as (uuid, metric, time, value)."""
    found: Counter[Cell] = Counter()
    for key, payload in stored.values():
        frame = wire.decode_frame(payload)
        assert frame.node == key
        for gpu in frame.gpus:
            for chunk in gpu.chunks:
                batch = wire.decode_chunk(chunk)
                for j, metric in enumerate(batch.metric_set.metrics):
                    for i in np.flatnonzero(batch.mask(j)):
                        value = batch.columns[j][i].item()
                        found[gpu.uuid, metric.id, int(batch.time_ns[i]), value] += 1
    return found


def rows(stored: dict[int, tuple[str, bytes]]) -> list[tuple[str, int, int]]:
    """(uuid, set, row sequence) of every row."""
    return [
        (gpu.uuid, batch.metric_set.id, int(sequence))
        for _, payload in stored.values()
        for gpu in wire.decode_frame(payload).gpus
        for batch in map(wire.decode_chunk, gpu.chunks)
        for sequence in batch.sequence
    ]


def simulated(
    broker: Any,
    telemetry: Telemetry,
    health: Health,
    hz: float = 200,
    pending_bytes: int = limits.MIB,
) -> Collector:
    periods = {Cadence.FAST: int(NS_PER_S / hz), Cadence.MEDIUM: NS_PER_S, Cadence.SLOW: NS_PER_S}
    model = "NVIDIA H100 80GB HBM3"
    source = Simulator(node="n", gpus=3, model=model, seed=1, periods_ns=periods)
    settings = CollectorSettings(flush_ms=10, ring_rows=64, pending_bytes=pending_bytes)
    return Collector(settings, source, broker, "telemetry", telemetry, health)


def replayed(path: Path, broker: Any, telemetry: Telemetry) -> Collector:
    source = Replay(str(path), node="here", speed=0, once=True)
    settings = CollectorSettings(ring_rows=64)
    return Collector(settings, source, broker, "telemetry", telemetry, Health("collector"))


def dropped(collector: Collector) -> int:
    """Rows counted as lost, wherever."""
    outbox = collector.outbox
    frames = outbox.ledger.lost_rows.total() if isinstance(outbox, LiveOutbox) else 0
    return frames + sum(ring.dropped_rows for ring in collector.rings.values())


async def test_a_replay_publishes_each_value_once_and_the_same_frames_again(
    tmp_path: Path,
) -> None:
    path = dump(tmp_path)
    runs = []
    for _ in range(2):
        broker, telemetry = MemoryBroker(), Telemetry("collector")
        collector = replayed(path, broker, telemetry)
        await collector.start()
        await until(lambda collector=collector: collector.finished)  # type: ignore[misc]
        await collector.stop()
        telemetry.close()
        assert broker.identity == (collector.source.identity, 1)
        runs.append(broker.made.stored)
    assert runs[0] == runs[1]
    assert list(runs[0]) == list(range(1, len(runs[0]) + 1))
    found = cells(runs[0])
    assert set(found.values()) == {1}
    assert len(found) == 3 * 2 * 3 * 12
    announced = Counter(g.uuid for _, p in runs[0].values() for g in wire.decode_frame(p).inventory)
    assert set(announced.values()) == {1}
    assert len(announced) == 6


async def test_a_replay_waits_for_a_broker_that_is_away_and_repeats_itself_after_a_stop(
    tmp_path: Path,
) -> None:
    path = dump(tmp_path)
    telemetry, broker = Telemetry("collector"), MemoryBroker(room=3)
    collector = replayed(path, broker, telemetry)
    await collector.start()
    await until(lambda: broker.made.pending_messages == 3)
    assert not collector.finished
    await collector.stop()  # in the middle of a step, blocked
    telemetry.close()
    part = dict(broker.made.pending)
    assert list(part) == [1, 2, 3]
    assert dropped(collector) == 0

    telemetry, broker = Telemetry("collector"), MemoryBroker(room=3)
    collector = replayed(path, broker, telemetry)
    await collector.start()
    await until(lambda: broker.made.pending_messages == 3)
    broker.made.acknowledge()
    await until(lambda: collector.finished)
    await collector.stop()
    telemetry.close()
    assert {s: broker.made.stored[s] for s in part} == part
    found = cells(broker.made.stored)
    assert len(found) == 3 * 2 * 3 * 12
    assert set(found.values()) == {1}


async def test_live_rows_are_whole_and_stop_drains(telemetry: Telemetry) -> None:
    broker, health = MemoryBroker(), Health("collector")
    collector = simulated(broker, telemetry, health)
    await collector.start()
    await until(lambda: len(broker.made.stored) >= 5)
    assert not any(health.readiness().values())
    assert b"DCGM_FI_DEV_GPU_TEMP{" in collector.exporter.page("dcgm", Format.TEXT)
    assert b"gputel_collector_rows_total" in telemetry.exposition()[0]
    await collector.stop()
    found = rows(broker.made.stored)
    assert len(set(found)) == len(found)
    swept = sum(ring.pushed_rows + ring.dropped_rows for ring in collector.rings.values())
    assert swept == len(found) + dropped(collector)
    assert broker.identity[0] == "collector:n"


async def test_live_losses_are_counted_and_told(telemetry: Telemetry) -> None:
    broker, health = MemoryBroker(room=2), Health("collector")
    broker.made.connected = False
    collector = simulated(broker, telemetry, health, pending_bytes=16 * limits.KIB)
    await collector.start()
    outbox = collector.outbox
    assert isinstance(outbox, LiveOutbox)
    await until(lambda: outbox.ledger.lost_frames["memory_full"] >= 5)
    assert broker.made.pending_messages <= 2
    assert "away" in str(health.readiness()["broker"])
    assert health.liveness()["sampler"] is None
    broker.made.acknowledge()
    first_stored = max(broker.made.stored)
    await until(lambda: broker.made.last_acked_sequence > first_stored + 2)
    await collector.stop()
    found = rows(broker.made.stored)
    lost = dropped(collector)
    swept = sum(ring.pushed_rows + ring.dropped_rows for ring in collector.rings.values())
    assert swept == len(found) + lost
    told = [
        event.code
        for _, payload in broker.made.stored.values()
        for event in wire.decode_frame(payload).events
        if event.kind is EventKind.GAP
    ]
    assert sum(told) == lost > 0


async def test_without_a_broker_it_is_an_exporter(telemetry: Telemetry) -> None:
    collector = simulated(None, telemetry, Health("collector"))
    await collector.start()
    await until(lambda: b"DCGM_FI_DEV_POWER_USAGE{" in collector.exporter.page("dcgm", Format.TEXT))
    await collector.stop()
    assert all(not collector.rings[s].pending_rows for s in METRIC_SETS)


async def test_values_of_a_source_that_stops_go_stale(telemetry: Telemetry) -> None:
    collector = simulated(None, telemetry, Health("collector"))
    await collector.start()
    await until(lambda: b"DCGM_FI_DEV_POWER_USAGE{" in collector.exporter.page("dcgm", Format.TEXT))
    up = re.compile(rb"^gputel_gpu_up{.*} (\d)$", re.MULTILINE)
    assert up.findall(collector.exporter.page("dcgm", Format.TEXT)) == [b"1"] * 3
    await collector.stop()
    await until(lambda: up.findall(collector.exporter.page("dcgm", Format.TEXT)) == [b"0"] * 3)
    assert b"POWER_USAGE" not in collector.exporter.page("dcgm", Format.TEXT)
