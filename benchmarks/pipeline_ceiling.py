"""`python -m benchmarks.pipeline --flat-out`: as fast as the pipeline takes it, and what it costs.

A `gputel up` runs beside an embedded PostgreSQL of the benchmark's own, which is asked by SQL for
how much is there. A generator in a process of its own has encoded everything before it begins.
Time runs from the first frame until the store's group has acknowledged the last, which it does
behind the commit. Where others use the cores too, `sink_waited_s` says for how long the sink
could run and had none: of the elapsed seconds those are not the pipeline's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks import pipeline_generator, report
from benchmarks.pipeline_load import METRIC_SET, Load, Node, wrong_values
from benchmarks.processes import Process, family_cpu_s
from gputel import broker
from gputel import store as store_package
from gputel.broker import BrokerClient
from gputel.clock import NS_PER_S
from gputel.store import Store
from gputel.store.embedded import EmbeddedPostgres
from gputel.store.settings import SINK_GROUP, DatabaseSettings

TOPIC: Final = "telemetry"
STAGES: Final = ("broker", "sink", "streamer", "api", "collector")
START_DEADLINE_S: Final = 120
STORED_DEADLINE_S: Final = 300
POLL_S: Final = 0.02
AGO_S: Final = 60  # when the last sample was taken
GPUS_READ_BACK: Final = 64
STORED: Final = """
SELECT (SELECT count(*) FROM sample_hot_fast JOIN gpu USING (gpu_id) WHERE node LIKE $1),
       (SELECT coalesce(sum(samples), 0) FROM sample_chunk JOIN gpu USING (gpu_id)
        WHERE node LIKE $1)
"""


class Pipeline(NamedTuple):
    """A running one."""

    broker: str
    api: str
    store: Store
    pids: dict[str, int]  # by stage
    postmaster: int

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far, by stage."""
        found = {stage: Process(self.pids[stage]).cpu_s() for stage in STAGES}
        found["postgres"] = family_cpu_s(self.postmaster)
        return found


@asynccontextmanager
async def running() -> AsyncGenerator[Pipeline]:
    """One that is started and stopped, with a source that hardly ever speaks."""
    with tempfile.TemporaryDirectory(prefix="gputel-bench-") as name:
        root = Path(name)
        root.chmod(0o711)  # noqa: ASYNC240  # a server of root's has a user of its own
        postgres = EmbeddedPostgres(root / "data", fallback_root=root / "fallback" / "embedded")
        try:
            settings = await postgres.start()
            assert postgres.pid is not None
            async with _up(root, settings) as ready:
                state = json.loads((root / "up" / "run" / "up.json").read_text())
                pids = {stage: state["services"][stage]["pid"] for stage in STAGES}
                store = await store_package.connect(settings)
                api = ready["api"].rstrip("/")
                yield Pipeline(ready["broker"], api, store, pids, postgres.pid)
                await store.close()
        finally:
            await postgres.stop()


@asynccontextmanager
async def _up(root: Path, settings: DatabaseSettings) -> AsyncGenerator[dict[str, str]]:
    listen = {"listen": "127.0.0.1:0"}
    hz = dict.fromkeys(("fast_hz", "medium_hz", "slow_hz"), 0.1)
    config = {
        "broker": {**listen, "metrics_listen": "127.0.0.1:0"},
        "message_queue": {"address": "127.0.0.1:0"},
        **dict.fromkeys(("sink", "api", "stream"), listen),
        "collector": {**listen, **hz},
        "source": {"kind": "sim", "gpus": 1},
        "database": {key: getattr(settings, key) for key in settings.__struct_fields__},
    }
    file = root / "config.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    command = [sys.executable, "-m", "gputel", "up", "--json"]
    process = await asyncio.create_subprocess_exec(
        *command, "--config", file, "--data-dir", root / "up", stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield json.loads(await asyncio.wait_for(process.stdout.readline(), START_DEADLINE_S))
    finally:
        if process.returncode is None:
            process.send_signal(2)
        await process.wait()


async def _drained(client: BrokerClient) -> None:
    """Return once the store's group is done with all that is in the log now."""
    [topic] = [topic for topic in await client.topics() if topic.name == TOPIC]
    ends = {of.partition: of.next_offset for of in topic.partitions}
    async with asyncio.timeout(STORED_DEADLINE_S):
        while ends:
            for group in await client.groups():
                if (group.topic, group.group) == (TOPIC, SINK_GROUP):
                    for position in group.positions:
                        if position.next_offset >= ends.get(position.partition, 0):
                            ends.pop(position.partition, None)
            await asyncio.sleep(POLL_S)


async def measure(arguments: argparse.Namespace) -> bool:
    """Load a pipeline and tell the figures; False: something was lost, doubled or wrong."""
    start_ns = time.time_ns() // NS_PER_S * NS_PER_S
    start_ns -= round((arguments.seconds + AGO_S) * NS_PER_S)
    load = Load(
        arguments.nodes,
        arguments.gpus,
        arguments.hz,
        arguments.seconds,
        arguments.frame_seconds,
        start_ns,
    )
    run = f"{start_ns // NS_PER_S:x}"
    async with running() as pipeline:
        client = await broker.connect(pipeline.broker)
        generator = await asyncio.create_subprocess_exec(
            *pipeline_generator.command(pipeline.broker, run, arguments.producers, load),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert generator.stdin is not None
        assert generator.stdout is not None
        try:
            await asyncio.wait_for(generator.stdout.readline(), START_DEADLINE_S)
            sink = Process(pipeline.pids["sink"])
            waited_s = sink.waited_s()
            before_s, started = pipeline.cpu_s(), time.perf_counter()
            generator.stdin.write(b"\n")
            line = await asyncio.wait_for(generator.stdout.readline(), STORED_DEADLINE_S)
            said = json.loads(line)
            await _drained(client)
            elapsed_s = time.perf_counter() - started
            waited_s = sink.waited_s() - waited_s
            used_s = {name: s - before_s[name] for name, s in pipeline.cpu_s().items()}
        finally:
            generator.stdin.close()
            await generator.wait()
            await client.close()
        peaks = {stage: Process(pipeline.pids[stage]).peak_rss_mb() for stage in STAGES}
        async with pipeline.store.session() as session:
            row = await session.fetchrow(STORED, f"load-{run}-%")
        nodes = [Node(run, number, load) for number in range(load.nodes)]
        step = max(1, len(nodes) * load.gpus // GPUS_READ_BACK)
        checked, wrong = await asyncio.to_thread(wrong_values, pipeline.api, load, nodes, step)
    assert row is not None
    stored = sum(row)
    correct = stored == load.rows and checked > 0 and wrong == 0
    said["sink_waited_s"] = round(waited_s, 2)
    _tell(load, said, elapsed_s, used_s, peaks, correct, stored=stored, checked=checked)
    return correct


def _tell(
    load: Load,
    said: dict[str, float],
    elapsed_s: float,
    used_s: dict[str, float],
    peaks_mb: dict[str, float],
    correct: bool,
    **counts: int,
) -> None:
    million = load.samples / 1e6
    core_s = sum(used_s.values())
    report.emit(
        "pipeline.samples_per_s",
        load.samples / elapsed_s,
        "1/s",
        correct,
        seconds=round(elapsed_s, 2),
        samples=load.samples,
        rows_expected=load.rows,
        rows_a_chunk=load.ticks_per_frame,
        gpus_a_frame=load.gpus,
        frames=said["frames"],
        mb=round(said["bytes"] / 1e6, 1),
        sink_waited_s=said["sink_waited_s"],
        **counts,
    )
    per_core = load.samples / core_s
    report.emit("pipeline.samples_per_core_s", per_core, "1/s", correct, cores=core_s / elapsed_s)
    metrics = len(METRIC_SET.metrics)
    for stage, seconds in used_s.items():
        name = f"pipeline.{stage}_cpu_s_per_million"
        memory = {"peak_rss_mb": round(peaks_mb[stage])} if stage in peaks_mb else {}
        us = {"us_per_row": round(seconds / million * metrics, 2)}
        report.emit(name, seconds / million, "s", correct, **us, **memory)
    name = "pipeline.generator_cpu_s_per_million"
    report.emit(name, said["cpu_s"] / million, "s", correct, seconds=round(said["seconds"], 2))
