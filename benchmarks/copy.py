"""COPY into the embedded PostgreSQL: hot rows and chunks, and the same beside others' ways.

    python -m benchmarks.copy [--json] [--rounds N]

A sample is one value of one metric. Each round stores into empty tables and reads back by SQL
how much is there, the sum of every metric, and the chunks' bytes. The best round counts.

    copy.stream_values_per_s      our COPY stream alone, into memory; beside a memcpy of its size
    copy.hot_samples_per_s        decoded samples to committed rows of sample_hot_fast
    copy.chunk_samples_per_s      decoded samples and their chunks to committed rows of
                                  sample_chunk and rollup_1m, statistics included; also with 60
                                  samples a chunk
    copy.vs_psql                  the hot stream by asyncpg, against `psql \\copy` of the same bytes
    copy.asyncpg_samples_per_s    asyncpg's copy_records_to_table of tuples that are there already
    copy.pgcopy_samples_per_s     pgcopy's CopyManager, likewise
    copy.ingest_*_samples_per_s   the sink's whole way: frames, decoded, exactly once, by three
                                  workers; decode_us: of it the time a chunk takes to decode
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks import report
from benchmarks.copy_load import CHUNK_FACTS, HOT_FACTS, METRIC_SET, START_NS, Load, facts
from gputel import store as store_package
from gputel import wire
from gputel.clock import SYSTEM_CLOCK
from gputel.kernels import CopyStream
from gputel.store import Store, chunks, hot, schema
from gputel.store.chunks import Chunk
from gputel.store.claim import Claims
from gputel.store.embedded import EmbeddedPostgres
from gputel.store.ingest import Ingest
from gputel.store.partitions import Partitions
from gputel.store.settings import DatabaseSettings, StoreSettings
from gputel.store.times import to_datetime

WORKERS = 3
FRAMES_A_COMMIT = 100  # the sink's default batch_size
MS = 1_000_000
HOT = Load(gpus=4000, rows=10, chunks=1, step_ns=100 * MS)
CHUNKS = Load(gpus=400, rows=600, chunks=4, step_ns=100 * MS)
SMALL_CHUNKS = Load(gpus=800, rows=60, chunks=5, step_ns=1000 * MS)
INGEST_HOT = Load(gpus=800, rows=10, chunks=12, step_ns=100 * MS)
TABLES = (
    "sample_hot_fast, sample_chunk, rollup_1m, sink_offset, producer_mark, gpu RESTART IDENTITY"
)
NAMES, TYPES = hot.layout(METRIC_SET)


@asynccontextmanager
async def server() -> AsyncGenerator[tuple[Store, DatabaseSettings]]:
    """An embedded PostgreSQL of this run's own, with the schema and partitions made ahead."""
    with tempfile.TemporaryDirectory(prefix="gputel-bench-") as name:
        root = Path(name)
        root.chmod(0o711)  # noqa: ASYNC240  # a server of root's has a user of its own
        postgres = EmbeddedPostgres(root / "data", fallback_root=root / "fallback" / "embedded")
        try:
            settings = await postgres.start()
            store = await store_package.connect(settings)
            await store.migrate(StoreSettings())
            minutes = START_NS + np.arange(60, dtype=np.int64) * 60_000 * MS
            tables = (schema.hot_table(METRIC_SET), "sample_chunk", "rollup_1m")
            await Partitions(store, StoreSettings()).ensure({name: [minutes] for name in tables})
            yield store, settings
            await store.close()
        finally:
            await postgres.stop()


async def best(
    rounds: int,
    store: Store,
    query: str,
    expected: list[Any],
    work: Callable[[], Awaitable[float | None]],
) -> tuple[float, bool]:
    """(seconds of the best round, was every round's result right?).

    `work` may say itself how long it took.
    """
    best_s, correct = float("inf"), True
    for _ in range(rounds):
        async with store.session() as session:
            await session.execute(f"TRUNCATE {TABLES}")
        started = time.perf_counter()
        said_s = await work()
        best_s = min(best_s, time.perf_counter() - started if said_s is None else said_s)
        async with store.session() as session:
            correct &= await facts(session, query) == expected
    return best_s, correct


def hot_stream(load: Load) -> CopyStream:
    stream = CopyStream(TYPES)
    for gpu, batch in load.batches():
        stream.append(
            len(batch), (gpu + 1, batch.time_ns, 1, batch.sequence, *batch.columns), batch.valid
        )
    return stream


def stream_alone(rounds: int) -> None:
    """The kernel without a database."""
    batches = HOT.batches()
    best_s = float("inf")
    for _ in range(rounds * 3):
        started = time.perf_counter()
        stream = CopyStream(TYPES)
        for gpu, batch in batches:
            stream.append(
                len(batch), (gpu + 1, batch.time_ns, 1, batch.sequence, *batch.columns), batch.valid
            )
        data = stream.finish()
        best_s = min(best_s, time.perf_counter() - started)
    source = np.frombuffer(data, np.uint8)
    target = np.empty_like(source)
    copy_s = float("inf")
    for _ in range(rounds * 3):
        started = time.perf_counter()
        target[:] = source
        copy_s = min(copy_s, time.perf_counter() - started)
    rows = HOT.gpus * HOT.rows * HOT.chunks
    correct = len(data) == 19 + rows * (2 + 12 * len(TYPES)) + 2
    report.emit(
        "copy.stream_values_per_s",
        rows * len(TYPES) / best_s,
        "1/s",
        correct,
        vs_memcpy=round(copy_s / best_s, 3),
        rows_a_block=HOT.rows,
    )


async def hot_rows(store: Store, rounds: int) -> None:
    pieces = [(gpu + 1, 1, batch) for gpu, batch in HOT.batches()]

    async def work() -> None:
        async with store.session() as session, session.transaction():
            await hot.write(session, METRIC_SET, pieces)

    seconds, correct = await best(rounds, store, HOT_FACTS, HOT.hot_facts(), work)
    report.emit("copy.hot_samples_per_s", HOT.samples / seconds, "1/s", correct, target=6e6)


async def chunk_rows(store: Store, rounds: int, figure: str, load: Load) -> None:
    pieces = [(gpu + 1, batch, wire.encode_batch(batch)) for gpu, batch in load.batches()]

    async def work() -> None:
        async with store.session() as session, session.transaction():
            items = [
                (gpu_id, Chunk.of(1, batch, int(batch.time_ns[0]), int(batch.time_ns[-1]), payload))
                for gpu_id, batch, payload in pieces
            ]
            await chunks.write(session, items)

    seconds, correct = await best(rounds, store, CHUNK_FACTS, load.chunk_facts(), work)
    rate = load.samples / seconds
    report.emit(figure, rate, "1/s", correct, samples_a_chunk=load.rows, target=30e6)


async def against_psql(store: Store, settings: DatabaseSettings, rounds: int) -> None:
    if shutil.which("psql") is None:
        report.skip("copy.vs_psql", "there is no psql; Debian has it in postgresql-client")
        return
    data = hot_stream(HOT).finish()
    command = ["psql", "--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", settings.dbname]
    command += ["-h", settings.host, "-p", str(settings.port), "-U", settings.user]
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        copy = f"\\copy sample_hot_fast ({', '.join(NAMES)}) from '{file.name}' (format binary)"

        async def by_psql() -> float:
            done = await asyncio.to_thread(
                subprocess.run,
                [*command, "-c", "\\timing on", "-c", copy],
                env={"PGPASSWORD": settings.password, "PATH": "/usr/bin:/bin"},
                capture_output=True,
                text=True,
                check=True,
            )
            return float(re.findall(r"Time: ([0-9.]+) ms", done.stdout)[-1]) / 1000

        async def by_asyncpg() -> None:
            async with store.session() as session:
                await session.copy_to_table(
                    "sample_hot_fast",
                    source=data,  # type: ignore[arg-type]  # any buffer will do
                    columns=list(NAMES),
                    format="binary",
                )

        expected = HOT.hot_facts()
        psql_s, ours_s, correct = float("inf"), float("inf"), True
        for _ in range(rounds):  # by turns, so that both meet the same noise
            for work in (by_psql, by_asyncpg):
                seconds, right = await best(1, store, HOT_FACTS, expected, work)
                correct &= right
                if work is by_psql:
                    psql_s = min(psql_s, seconds)
                else:
                    ours_s = min(ours_s, seconds)
    report.emit("copy.vs_psql", psql_s / ours_s, "", correct, target=0.95)


def tuples(load: Load) -> list[tuple[Any, ...]]:
    """The rows of `load` as the peers want them."""
    found: list[tuple[Any, ...]] = []
    for gpu, batch in load.batches():
        times = [to_datetime(t) for t in batch.time_ns.tolist()]
        columns = [column.tolist() for column in batch.columns]
        ids, epochs = [gpu + 1] * len(batch), [1] * len(batch)
        found += zip(ids, times, epochs, batch.sequence.tolist(), *columns, strict=True)
    return found


async def peers(store: Store, settings: DatabaseSettings, rounds: int) -> None:
    rows = tuples(HOT)
    expected = HOT.hot_facts()

    async def by_asyncpg() -> None:
        async with store.session() as session:
            await session.copy_records_to_table(
                "sample_hot_fast", records=rows, columns=list(NAMES)
            )

    seconds, correct = await best(rounds, store, HOT_FACTS, expected, by_asyncpg)
    report.emit("copy.asyncpg_samples_per_s", HOT.samples / seconds, "1/s", correct)
    try:
        import pgcopy
        import psycopg2
    except ImportError:
        report.skip("copy.pgcopy_samples_per_s", "pip install 'gputel[peers]' brings pgcopy")
        return

    def copy() -> None:
        connection = psycopg2.connect(
            host=settings.host,
            port=settings.port,
            user=settings.user,
            password=settings.password,
            dbname=settings.dbname,
        )
        with connection:
            pgcopy.CopyManager(connection, "sample_hot_fast", list(NAMES)).copy(rows)
        connection.close()

    async def by_pgcopy() -> None:
        await asyncio.to_thread(copy)

    seconds, correct = await best(rounds, store, HOT_FACTS, expected, by_pgcopy)
    report.emit("copy.pgcopy_samples_per_s", HOT.samples / seconds, "1/s", correct)


async def ingest(
    store: Store, rounds: int, figure: str, load: Load, query: str, expected: list[Any]
) -> None:
    parts = [load.messages(worker, WORKERS) for worker in range(WORKERS)]
    frame = wire.decode_frame(parts[0][0].payload)
    payloads = [chunk for gpu in frame.gpus for chunk in gpu.chunks]
    decode_s = float("inf")
    for _ in range(rounds * 3):
        started = time.perf_counter()
        for payload in payloads:
            wire.decode_chunk(payload)
        decode_s = min(decode_s, (time.perf_counter() - started) / len(payloads))

    async def work() -> float:
        target = Ingest(store, StoreSettings())
        claims = Claims(store, SYSTEM_CLOCK)

        async def one(worker: int) -> None:
            claim = await claims.acquire("bench", worker)
            assert claim is not None
            mine = parts[worker]
            for start in range(0, len(mine), FRAMES_A_COMMIT):
                await target.commit(claim, mine[start : start + FRAMES_A_COMMIT])

        started = time.perf_counter()
        await asyncio.gather(*(one(worker) for worker in range(WORKERS)))
        elapsed_s = time.perf_counter() - started
        await claims.close()
        return elapsed_s

    seconds, correct = await best(rounds, store, query, expected, work)
    report.emit(
        f"copy.{figure}_samples_per_s",
        load.samples / seconds,
        "1/s",
        correct,
        samples_a_chunk=load.rows,
        decode_us=round(decode_s * 1e6, 1),
    )


async def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.copy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5)
    report.add_arguments(parser)
    rounds = parser.parse_args().rounds
    stream_alone(rounds)
    async with server() as (store, settings):
        await hot_rows(store, rounds)
        await chunk_rows(store, rounds, "copy.chunk_samples_per_s", CHUNKS)
        await chunk_rows(store, rounds, "copy.chunk_60_samples_per_s", SMALL_CHUNKS)
        await against_psql(store, settings, rounds)
        await peers(store, settings, rounds)
        expected = INGEST_HOT.hot_facts()
        await ingest(store, rounds, "ingest_hot", INGEST_HOT, HOT_FACTS, expected)
        for figure, load in (("ingest_chunk_60", SMALL_CHUNKS), ("ingest_chunk", CHUNKS)):
            await ingest(store, rounds, figure, load, CHUNK_FACTS, load.chunk_facts())


if __name__ == "__main__":
    uvloop.run(main())
