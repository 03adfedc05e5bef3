"""Load test: many nodes simulated against the real pipeline.

    python -m benchmarks.pipeline --nodes 100 --gpus 8 --hz 10 --seconds 30 [--json]
    python -m benchmarks.pipeline --flat-out --nodes 12500 --seconds 10 --hz 1 [--json]

Simulated nodes publish frames over gRPC as a collector does, at their pace, or `--flat-out` as
fast as the pipeline takes them; then samples are read back through the REST API and compared with
what was sent. Without `--broker` and `--api` an ephemeral pipeline is started and stopped. A
sample is one value of one metric of one GPU.

    pipeline.samples_per_s       flat out: samples from the first frame to the last commit, a
                                 second; beside it the CPU seconds that a million of them costs
                                 each process, and the most memory it held
    pipeline.paced_samples_per_s samples sent, until the last was found committed, per second
    pipeline.behind_s            how late the last frame left against its schedule (0: kept it)
    pipeline.commit_p99_ms       from a frame's sealing to its commit, as the sink measured it
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.request import urlopen

import uvloop

from benchmarks import pipeline_ceiling, report
from benchmarks.pipeline_load import (
    VERIFY_METRICS,
    Load,
    Node,
    encode_variants,
    get,
    wrong_values,
)
from gputel import broker
from gputel.clock import NS_PER_S, NS_PER_US

CONNECTIONS_MAX = 32
SETTLE_DEADLINE_S = 120


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
    parser.add_argument("--flat-out", action="store_true", help="find the ceiling")
    parser.add_argument("--producers", type=int, default=32, help="streams, with --flat-out")
    report.add_arguments(parser)
    arguments = parser.parse_args()
    if min(arguments.nodes, arguments.gpus, arguments.hz, arguments.seconds) <= 0:
        parser.error("--nodes, --gpus, --hz and --seconds must be positive")
    if arguments.flat_out:
        if not await pipeline_ceiling.measure(arguments):
            raise SystemExit(1)
        return
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
        checked, wrong = await asyncio.to_thread(wrong_values, api, load, nodes)
        correct = wrong == 0 and checked == load.nodes * load.gpus * load.ticks * len(
            VERIFY_METRICS
        )
        shape = {"nodes": load.nodes, "gpus": load.gpus, "hz": load.hz, "seconds": load.seconds}
        report.emit(
            "pipeline.paced_samples_per_s",
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
