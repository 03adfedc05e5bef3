"""Load test: many nodes simulated in one process against the real pipeline.

    python -m benchmarks.pipeline --nodes 100 --gpus 8 --hz 10 --seconds 30 [--json]

Every simulated node publishes frames over gRPC as a collector does; then every sample is read
back through the REST API and compared with what was sent. Without `--broker` and `--api` an
ephemeral pipeline is started and stopped. A sample is one value of one metric of one GPU.

    pipeline.samples_per_s   samples sent, until the last was found committed, per second
    pipeline.behind_s        how late the last frame left against its schedule (0: kept the pace)
    pipeline.commit_p99_ms   from a frame's sealing to its commit, as the sink measured it
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import uvloop

from benchmarks import report
from gputel import broker, wire
from gputel.batch import DTYPES, Batch
from gputel.catalog import SET_BY_CADENCE, Cadence
from gputel.clock import NS_PER_S, NS_PER_US
from gputel.inventory import Gpu, synthetic_uuid

METRIC_SET = SET_BY_CADENCE[Cadence.FAST]
VARIANTS = 16  # distinct series; GPUs of one variant carry the same values
CONNECTIONS_MAX = 32
VERIFY_METRICS = ("gpu_utilization_percent", "power_watts", "energy_millijoules")
SETTLE_DEADLINE_S = 120


@dataclass(frozen=True)
class Load:
    """What is sent: `nodes` x `gpus` x `hz` x `seconds`, `frame_s` seconds in each frame."""

    nodes: int
    gpus: int
    hz: float
    seconds: float
    frame_s: float
    start_ns: int

    @property
    def ticks(self) -> int:
        return round(self.hz * self.seconds)

    @property
    def ticks_per_frame(self) -> int:
        return max(1, round(self.hz * self.frame_s))

    @property
    def samples(self) -> int:
        return self.nodes * self.gpus * self.ticks * len(METRIC_SET.metrics)

    def time_ns(self, ticks: np.ndarray) -> np.ndarray:
        """int64[n]: the time of each tick, in whole microseconds."""
        step_us = round(1_000_000 / self.hz)
        return (self.start_ns // NS_PER_US + ticks * step_us) * NS_PER_US

    def values(self, variant: int, column: int, ticks: np.ndarray) -> np.ndarray:
        """What `column` of a GPU of `variant` reads at `ticks`: known, and never constant."""
        base = (ticks * (column + 3) + variant * 131) % 997 + ticks
        storage = METRIC_SET.metrics[column].storage.value
        read: np.ndarray = (base / 8 if storage in "fd" else base).astype(DTYPES[storage])
        return read

    def frames(self) -> Iterator[tuple[float, int, np.ndarray]]:
        """(seconds after the start, frame number, its ticks), in order."""
        for number, first in enumerate(range(0, self.ticks, self.ticks_per_frame)):
            ticks = np.arange(first, min(first + self.ticks_per_frame, self.ticks), dtype=np.int64)
            yield (first + len(ticks)) / self.hz, number, ticks


def encode_variants(load: Load, ticks: np.ndarray) -> list[bytes]:
    """One chunk of `ticks` for each variant."""
    n = len(ticks)
    valid = np.tile(
        np.packbits(np.ones(n, np.uint8), bitorder="little"), (len(METRIC_SET.metrics), 1)
    )
    return [
        wire.encode_batch(
            Batch(
                METRIC_SET,
                load.time_ns(ticks),
                ticks,
                tuple(load.values(variant, c, ticks) for c in range(len(METRIC_SET.metrics))),
                valid,
            )
        )
        for variant in range(VARIANTS)
    ]


class Node:
    """One simulated node and its frames."""

    def __init__(self, run: str, number: int, load: Load) -> None:
        self.name = f"load-{run}-{number:05d}"
        self.number = number
        self.gpus = tuple(
            Gpu(synthetic_uuid(self.name, str(i)), self.name, i, f"nvidia{i}", model="simulated")
            for i in range(load.gpus)
        )

    def variant(self, gpu: int) -> int:
        return (self.number * 7 + gpu) % VARIANTS

    def frame(
        self, producer: str, epoch: int, sequence: int, number: int, chunks: list[bytes]
    ) -> bytes:
        return wire.encode_frame(
            wire.Frame(
                producer=producer,
                epoch=epoch,
                sequence=sequence,
                node=self.name,
                sealed_at_ns=time.time_ns(),
                gpus=tuple(
                    wire.GpuChunks(gpu.uuid, (chunks[self.variant(gpu.index)],))
                    for gpu in self.gpus
                ),
                inventory=self.gpus if number == 0 else (),
            )
        )


async def publish(address: str, load: Load, nodes: list[Node], run: str) -> float:
    """Send everything on schedule; return how many seconds the last frame was late."""
    client = await broker.connect(address)
    epoch = time.time_ns()
    count = min(CONNECTIONS_MAX, len(nodes))
    producers = [f"{run}:{i}" for i in range(count)]
    publishers = [await client.publisher("telemetry", name, epoch) for name in producers]
    sequences = [0] * count
    started = time.monotonic()
    behind = 0.0
    try:
        for due_s, number, ticks in load.frames():
            wait_s = started + due_s - time.monotonic()
            behind = max(0.0, -wait_s)
            await asyncio.sleep(max(0.0, wait_s))
            chunks = encode_variants(load, ticks)
            for node in nodes:
                i = node.number % count
                sequences[i] += 1
                frame = node.frame(producers[i], epoch, sequences[i], number, chunks)
                await publishers[i].publish(sequences[i], node.name, frame)
        for publisher in publishers:
            if not await publisher.flush(SETTLE_DEADLINE_S):
                raise SystemExit("the broker did not acknowledge everything in time")
    finally:
        for publisher in publishers:
            await publisher.close()
        await client.close()
    return behind


def get(url: str, **query: str | int) -> dict[str, Any]:
    with urlopen(f"{url}?{urlencode(query)}" if query else url, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def read_back(api: str, load: Load, uuid: str, metric: str) -> list[float]:
    """All values of one GPU and metric, page by page."""
    query: dict[str, str | int] = {
        "metrics": metric,
        "start_time": str(load.start_ns / NS_PER_S - 1),
        "end_time": str(load.start_ns / NS_PER_S + load.seconds + 1),
        "limit": 100_000,
    }
    values: list[float] = []
    while True:
        page = get(f"{api}/api/v1/gpus/{uuid}/telemetry", **query)
        for series in page["series"]:
            values += series["value"]
        if not page.get("next_cursor"):
            return values
        query["cursor"] = page["next_cursor"]


def verify(api: str, load: Load, nodes: list[Node]) -> tuple[int, int]:
    """Compare every sample of VERIFY_METRICS of every GPU; (values checked, values wrong)."""
    ticks = np.arange(load.ticks, dtype=np.int64)
    names = [metric.name for metric in METRIC_SET.metrics]
    checked = wrong = 0
    for node in nodes:
        for gpu in node.gpus:
            for name in VERIFY_METRICS:
                expected = load.values(node.variant(gpu.index), names.index(name), ticks)
                found = np.array(read_back(api, load, gpu.uuid, name), dtype=expected.dtype)
                checked += len(expected)
                if not np.array_equal(found, expected):
                    wrong += max(abs(len(found) - len(expected)), 1)
    return checked, wrong


def settle(api: str, load: Load, nodes: list[Node]) -> None:
    """Wait until the last sample of every node is readable; bounded by SETTLE_DEADLINE_S."""
    deadline = time.monotonic() + SETTLE_DEADLINE_S
    waiting = [node.gpus[-1].uuid for node in nodes]
    last_s = (load.start_ns // NS_PER_US + (load.ticks - 1) * round(1_000_000 / load.hz)) / 1e6
    while waiting and time.monotonic() < deadline:
        try:
            page = get(
                f"{api}/api/v1/gpus/{waiting[-1]}/telemetry",
                metrics=VERIFY_METRICS[0],
                start_time=str(last_s - 0.0005),
                end_time=str(last_s + 1),
            )
        except OSError:
            page = {"series": []}
        if any(series["value"] for series in page["series"]):
            waiting.pop()
        else:
            time.sleep(0.02)
    if waiting:
        raise SystemExit(f"{len(waiting)} nodes' last samples are not in the store")


@asynccontextmanager
async def pipeline(arguments: argparse.Namespace) -> AsyncIterator[tuple[str, str, str | None]]:
    """(broker address, API URL, sink URL) of the given pipeline, or of one started for this run."""
    if arguments.broker and arguments.api:
        yield arguments.broker, arguments.api.rstrip("/"), None
        return
    command = [
        sys.executable,
        "-m",
        "gputel",
        "up",
        "--ephemeral",
        "--json",
        "--source",
        "sim",
        "--gpus",
        "1",
    ]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 120))
        yield ready["broker"], ready["api"].rstrip("/"), ready["sink"].rstrip("/")
    finally:
        if process.returncode is None:
            process.send_signal(2)
        await process.wait()


def commit_p99_ms(sink: str) -> float:
    """The 99th percentile of the sink's sealed-to-commit histogram (upper bound of its bucket)."""
    with urlopen(f"{sink}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    buckets = [
        (float(line.split('le="')[1].split('"')[0]), float(line.rsplit(" ", 1)[1]))
        for line in lines
        if line.startswith("gputel_sink_delay_seconds_bucket")
    ]
    total = buckets[-1][1] if buckets else 0
    return next((bound * 1000 for bound, count in buckets if count >= 0.99 * total), float("inf"))


async def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--gpus", type=int, default=8, help="GPUs of each node")
    parser.add_argument("--hz", type=float, default=10)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--frame-seconds", type=float, default=1, help="seconds of samples a frame")
    parser.add_argument("--broker", help="HOST:PORT of a running pipeline")
    parser.add_argument("--api", help="URL of a running pipeline")
    report.add_arguments(parser)
    arguments = parser.parse_args()
    if min(arguments.nodes, arguments.gpus, arguments.hz, arguments.seconds) <= 0:
        parser.error("--nodes, --gpus, --hz and --seconds must be positive")

    async with pipeline(arguments) as (address, api, sink):
        now_ns = time.time_ns() // NS_PER_S * NS_PER_S
        load = Load(
            arguments.nodes,
            arguments.gpus,
            arguments.hz,
            arguments.seconds,
            arguments.frame_seconds,
            now_ns,
        )
        run = f"{now_ns // NS_PER_S:x}"
        nodes = [Node(run, number, load) for number in range(load.nodes)]
        started = time.monotonic()
        behind_s = await publish(address, load, nodes, run)
        await asyncio.to_thread(settle, api, load, nodes)
        elapsed_s = time.monotonic() - started
        checked, wrong = await asyncio.to_thread(verify, api, load, nodes)
        correct = wrong == 0 and checked == load.nodes * load.gpus * load.ticks * len(
            VERIFY_METRICS
        )
        shape = {"nodes": load.nodes, "gpus": load.gpus, "hz": load.hz, "seconds": load.seconds}
        report.emit(
            "pipeline.samples_per_s",
            load.samples / elapsed_s,
            "1/s",
            correct,
            samples=load.samples,
            checked=checked,
            wrong=wrong,
            **shape,
        )
        report.emit("pipeline.behind_s", behind_s, "s", correct, **shape)
        if sink:
            report.emit("pipeline.commit_p99_ms", commit_p99_ms(sink), "ms", correct, **shape)
    if not correct:
        raise SystemExit(1)


if __name__ == "__main__":
    uvloop.run(main())
