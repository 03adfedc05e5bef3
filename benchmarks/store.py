"""The store's tiers: how fast they are made, who waits meanwhile, and how large they are.

    python -m benchmarks.store [--json] [--rounds N] [--gpus N]

A sample is one value of one metric, of simulated GPUs at 1 Hz (benchmarks.day_trace). What is
stored afterwards is compared with what was before: values by metric and their sums, in chunks,
minutes and hours.

    store.compaction_samples_per_s  hot rows of an hour to chunks, minutes and hours, and their
                                    partitions dropped; by one maintainer that has made those of
                                    the time ahead before; best round, all are told; per_core_s:
                                    for a second of a core, ours and the server's
    store.compaction_vs_read        how long PostgreSQL alone takes to hand over the same rows, as
                                    sealing reads them (as many sessions, COPY ... TO STDOUT
                                    BINARY, GPUs of a step at a time) to a client that drops them,
                                    against the whole of compaction: 1 would be the limit;
                                    core_s_vs_read: the same of core seconds
    store.insert_block_ms           the longest of inserts, one row each and one after the other,
                                    into a partition while it is sealed, as a sink stores late rows:
                                    of the best round, as the processes here also wait for cores;
                                    alone_ms: the same without maintenance
    store.disk_bytes_per_sample     sample_chunk and the hot tables with all that belongs to them,
                                    a day of GPUs that was sealed hour by hour, and merged
    store.minute_bytes_per_sample, store.hour_bytes_per_sample
                                    the rollups of that day, likewise
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection as Pipe
from multiprocessing.context import SpawnProcess
from typing import NamedTuple

import asyncpg
import numpy as np
import uvloop

from benchmarks import day_trace, machine, report
from benchmarks.copy import Database, core_seconds, server
from benchmarks.day_trace import Trace
from gputel import wire
from gputel.batch import DTYPES, Batch
from gputel.catalog import METRIC_SETS, SET_BY_CADENCE, Cadence
from gputel.clock import NS_PER_S, SYSTEM_CLOCK, ManualClock
from gputel.kernels import RowBlock
from gputel.store import Store, chunks, connect, hot, late, schema, seal, sealing
from gputel.store.maintain import Maintainer
from gputel.store.partitions import Partitions
from gputel.store.settings import DatabaseSettings, StoreSettings
from gputel.store.times import DAY_NS, HOUR_NS

HOUR_S = 3600
COMPACTED_GPUS = 64
LATE_SET = SET_BY_CADENCE[Cadence.FAST]
BLOCK_TARGET_MS = 50.0
TIERS = {
    "disk": ["sample_chunk", *(schema.hot_table(metric_set) for metric_set in METRIC_SETS)],
    "minute": ["rollup_1m"],
    "hour": ["rollup_1h", "rollup_1h_part"],
}
_TABLES = [name for tables in TIERS.values() for name in tables]


class Facts(NamedTuple):
    """Of each metric: how many values, and their sum."""

    counts: dict[str, int]
    sums: dict[str, float]

    def with_zeros(self, metric: str, count: int) -> Facts:
        """And as many values of 0."""
        return self._replace(counts=self.counts | {metric: self.counts[metric] + count})

    def same(self, other: Facts) -> bool:
        """But for the order of adding."""
        names = sorted(self.counts)
        return self.counts == other.counts and np.allclose(
            [self.sums[name] for name in names], [other.sums[name] for name in names], rtol=1e-9
        )


def facts(batches: Sequence[Batch], gpus: int) -> Facts:
    """What `gpus` GPUs come to that carry the same."""
    counts: dict[str, int] = {}
    sums: dict[str, float] = {}
    for batch in batches:
        for j, metric in enumerate(batch.metric_set.metrics):
            values = batch.columns[j][batch.mask(j)].astype(np.float64)
            if len(values):
                counts[metric.name] = counts.get(metric.name, 0) + gpus * len(values)
                sums[metric.name] = sums.get(metric.name, 0.0) + gpus * float(values.sum())
    return Facts(counts, sums)


async def stored(store: Store, view: str) -> Facts:
    """What a view of the rollups says."""
    async with store.session() as session:
        rows = await session.fetch(
            f"SELECT metric, sum(n)::bigint, sum(sum) FROM {view} GROUP BY metric"
        )
    return Facts({row[0]: row[1] for row in rows}, {row[0]: row[2] for row in rows})


async def decoded(store: Store) -> Facts:
    """What the chunks hold."""
    total = Facts({}, {})
    async with store.session() as session, session.transaction():
        async for row in session.cursor("SELECT payload FROM sample_chunk"):
            one = facts([wire.decode_chunk(row[0])], 1)
            for name in one.counts:
                total.counts[name] = total.counts.get(name, 0) + one.counts[name]
                total.sums[name] = total.sums.get(name, 0.0) + one.sums[name]
    return total


async def empty(store: Store, gpus: int) -> None:
    """No samples and no partitions; the GPUs are known."""
    async with store.session() as session:
        for (name,) in await session.fetch("SELECT name FROM store_partition"):
            await session.execute(f"DROP TABLE {name}")
        await session.execute(
            "TRUNCATE store_partition, rollup_1h_part, gpu, gpu_seen RESTART IDENTITY"
        )
        await session.execute(
            "INSERT INTO gpu (uuid, node, gpu_index, first_seen) "
            f"SELECT 'GPU-' || i, 'n', i, now() FROM generate_series(1, {gpus}) AS i"
        )
        await session.execute("INSERT INTO gpu_seen SELECT gpu_id, now() FROM gpu")


async def load(store: Store, batches: Sequence[Batch], gpus: int) -> None:
    """Hot rows, as of frames that carry less than the store keeps as chunks."""
    needs = {schema.hot_table(batch.metric_set): [batch.time_ns] for batch in batches}
    await Partitions(store, StoreSettings()).ensure(needs)
    for batch in batches:
        async with store.session() as session:
            pieces = [hot.Piece(gpu_id, 1, batch) for gpu_id in range(1, gpus + 1)]
            await hot.write(session, batch.metric_set, pieces)


class Reading(NamedTuple):
    """PostgreSQL alone, handing the hot rows over. core_s: of this process and of the server's."""

    rows: int
    seconds: float
    core_s: float


async def read_alone(database: Database, gpus: int) -> Reading:
    """Have all hot rows sent, by as many sessions and in such portions as sealing asks for."""
    store = database.store
    portions: list[tuple[str, int, int]] = []
    async with store.session() as session:
        for metric_set in METRIC_SETS:
            names = ", ".join(hot.NAMES)
            for (name,) in await session.fetch(
                "SELECT name FROM store_partition WHERE parent = $1 ORDER BY lower",
                schema.hot_table(metric_set),
            ):
                rows = await session.fetchval(f"SELECT count(*) FROM {name}")
                step = max(1, seal.ROWS_A_STEP // 2 * gpus // max(1, rows))
                query = f"SELECT {names} FROM {name} WHERE gpu_id BETWEEN $1 AND $2"
                portions += [(query, first, first + step - 1) for first in range(1, gpus + 1, step)]
    left = iter(portions)

    async def drop(_: bytes) -> None:
        pass

    async def one() -> int:
        rows = 0
        async with store.session() as session:
            for query, first, last in left:
                said = await session.copy_from_query(
                    query, first, last, output=drop, format="binary"
                )
                rows += int(said.rpartition(" ")[2])
        return rows

    started, core_started = time.perf_counter(), core_seconds(database.postmaster)
    rows = sum(await asyncio.gather(*(one() for _ in range(sealing.STEPS_AT_ONCE))))
    return Reading(
        rows,
        time.perf_counter() - started,
        core_seconds(database.postmaster) - core_started,
    )


def insert_until_told(settings: DatabaseSettings, time_ns: int, pipe: Pipe) -> None:
    """A process of its own: late rows one by one, as a sink stores them. How long each took, ms."""

    async def run() -> list[float]:
        store = await connect(settings, size_max=1)
        partitions = Partitions(store, StoreSettings())
        frozen = late.FrozenRanges(store, SYSTEM_CLOCK)
        valid = np.zeros((len(LATE_SET.metrics), 1), np.uint8)
        valid[0] = 1
        columns = [np.zeros(1, DTYPES[metric.storage.value]) for metric in LATE_SET.metrics]

        async def insert(number: int) -> None:
            time, sequence = np.array([time_ns]), np.array([number])
            pieces = [hot.Piece(1, 2, RowBlock(time, sequence, tuple(columns), valid))]
            while True:
                ranges = frozen.known()
                hot_pieces, others = late.divide(LATE_SET, pieces, ranges)
                await partitions.ensure(late.needed_partitions(ranges))
                await partitions.ensure({schema.hot_table(LATE_SET): [time]})
                try:
                    async with store.session() as session, session.transaction():
                        await session.execute("SET LOCAL synchronous_commit = off")
                        await hot.write(session, LATE_SET, hot_pieces)
                        await chunks.write(session, others)
                    return
                except asyncpg.SerializationError:
                    await frozen.look()
                except (asyncpg.CheckViolationError, asyncpg.UndefinedTableError):
                    partitions.forget()  # dropped

        took = list[float]()
        await insert(0)
        pipe.send("ready")
        while not pipe.poll():
            started = time.perf_counter()
            await insert(len(took) + 1)
            took.append((time.perf_counter() - started) * 1000)
        await store.close()
        return took

    pipe.send(asyncio.run(run()))


async def inserting(settings: DatabaseSettings, time_ns: int) -> tuple[Pipe, SpawnProcess]:
    """The process and the way to it; it inserts already."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=insert_until_told, args=(settings, time_ns, theirs))
    process.start()
    theirs.close()  # when the process ends, so does what it would say
    assert await asyncio.to_thread(ours.recv) == "ready"
    return ours, process


async def compaction(database: Database, batches: Sequence[Batch], rounds: int) -> None:
    """An hour of many GPUs, with and without somebody who inserts into it."""
    store = database.store
    expected = facts(batches, COMPACTED_GPUS)
    samples = sum(expected.counts.values())
    taken: list[dict[str, float]] = []
    core_s, correct = float("inf"), True
    read_s, read_core_s = float("inf"), float("inf")
    longest, alone, inserts = float("inf"), float("inf"), 0
    for number in range(2 * rounds):
        present = expected
        await empty(store, COMPACTED_GPUS)
        clock = ManualClock(SYSTEM_CLOCK.time_ns() + 2 * HOUR_NS)
        maintainer = Maintainer(store, StoreSettings(), clock)
        await maintainer.round()  # as half a minute before: partitions of the time ahead are there
        await load(store, batches, COMPACTED_GPUS)
        if number % 2 == 0:
            reading = await read_alone(database, COMPACTED_GPUS)
            read_s = min(read_s, reading.seconds)
            read_core_s = min(read_core_s, reading.core_s)
            correct &= reading.rows == sum(len(batch) for batch in batches) * COMPACTED_GPUS
            stolen_s = machine.stolen_s()
            started, core_started = time.perf_counter(), core_seconds(database.postmaster)
            await maintainer.round()
            took_s = time.perf_counter() - started
            stolen_s = machine.stolen_s() - stolen_s
            taken.append({"seconds": took_s, "stolen_percent": stolen_s / took_s * 100})
            core_s = min(core_s, core_seconds(database.postmaster) - core_started)
            correct &= maintainer.counts.postponed == 0
            correct &= maintainer.counts.sealed_rows == reading.rows
            correct &= expected.same(await decoded(store))
        else:
            pipe, process = await inserting(database.settings, int(batches[0].time_ns[0]))
            await asyncio.sleep(taken[-1]["seconds"])  # as long as maintenance will take
            pipe.send("stop")
            before = await asyncio.to_thread(pipe.recv)
            process.join()
            alone = min(alone, max(before))
            pipe, process = await inserting(database.settings, int(batches[0].time_ns[0]) + 1000)
            while maintainer.counts.sealed_rows == 0 or maintainer.counts.rounds < 3:
                await maintainer.round()
            pipe.send("stop")
            took = await asyncio.to_thread(pipe.recv)
            process.join()
            longest, inserts = min(longest, max(took)), len(took)
            # Each process inserts one before it says that it is ready.
            present = expected.with_zeros(LATE_SET.metrics[0].name, len(before) + 1 + len(took) + 1)
            correct &= maintainer.counts.sealed_rows >= sum(len(b) for b in batches)
        correct &= present.same(await stored(store, "gpu_minute"))
        correct &= present.same(await stored(store, "gpu_hour"))
    best_s = min(one["seconds"] for one in taken)
    report.emit(
        "store.compaction_samples_per_s",
        samples / best_s,
        "1/s",
        correct,
        per_core_s=f"{samples / core_s:.3g}",
        gpus=COMPACTED_GPUS,
        samples=samples,
        target=10e6,
        rounds=taken,
    )
    report.emit(
        "store.compaction_vs_read",
        read_s / best_s,
        "",
        correct,
        core_s_vs_read=f"{read_core_s / core_s:.2f}",
        read_samples_per_s=f"{samples / read_s:.3g}",
        read_per_core_s=f"{samples / read_core_s:.3g}",
    )
    report.emit(
        "store.insert_block_ms",
        longest,
        "ms",
        correct,
        alone_ms=round(alone, 1),
        inserts=inserts,
        target=BLOCK_TARGET_MS,
    )


async def sizes(database: Database, day: Sequence[Trace], gpus: int) -> None:
    """A day, hour by hour, as the sink and the maintainer keep it."""
    store = database.store
    await empty(store, gpus)
    batches: list[Batch] = []
    clock = ManualClock(SYSTEM_CLOCK.time_ns())
    maintainer = Maintainer(store, StoreSettings(), clock)
    first_ns = int(day[0].time_ns[0]) // HOUR_NS * HOUR_NS
    for hour_ns in range(first_ns, first_ns + DAY_NS + HOUR_NS, HOUR_NS):
        hour = [trace.between(hour_ns, hour_ns + HOUR_NS) for trace in day]
        batches += hour
        await load(store, hour, gpus)
        clock.advance(2 * HOUR_S)
        await maintainer.round()
    for _ in range(2):
        clock.advance(DAY_NS / NS_PER_S)
        await maintainer.round()
    expected = facts(batches, gpus)
    correct = all([expected.same(await stored(store, view)) for view in ("gpu_minute", "gpu_hour")])
    correct &= expected.same(await decoded(store))
    samples = sum(expected.counts.values())
    for tier, tables in TIERS.items():
        # What partitions made ahead for today take is no sample's.
        async with store.session() as session:
            size_bytes = await session.fetchval(
                "SELECT sum(pg_total_relation_size(relid)) FROM unnest($1::regclass[]) AS t, "
                "pg_partition_tree(t) WHERE isleaf AND pg_relation_size(relid) > 0",
                tables,
            )
        target = {"target": 1.3} if tier == "disk" else {}
        figure = f"store.{tier}_bytes_per_sample"
        report.emit(figure, float(size_bytes) / samples, "B", correct, gpus=gpus, **target)


async def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.store",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpus", type=int, default=8, help="of the day whose size is measured")
    report.add_arguments(parser)
    arguments = parser.parse_args()
    day = day_trace.day()
    hour_ns = (int(day[0].time_ns[0]) // HOUR_NS + 1) * HOUR_NS
    hour = [trace.between(hour_ns, hour_ns + HOUR_NS) for trace in day]
    async with server() as database:
        await compaction(database, hour, arguments.rounds)
        await sizes(database, day, arguments.gpus)


if __name__ == "__main__":
    uvloop.run(main())
