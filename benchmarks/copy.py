"""COPY into the embedded PostgreSQL: hot rows and chunks, and the same beside others' ways.

    python -m benchmarks.copy [--json] [--rounds N]

A sample is one value of one metric. Each round stores into empty tables and reads back by SQL
how much is there, the sum of every metric, and the chunks' bytes. The best round counts;
`per_core_s` is what a second of a core stores, ours and the server's counted together, which
says more than time does where others use the cores too.

    copy.stream_values_per_s      our COPY stream alone, into memory; beside a memcpy of its size
    copy.hot_samples_per_s        decoded samples to committed rows of sample_hot_fast, on one
                                  connection, as one partition of the broker is stored: what the
                                  target speaks of
    copy.hot_two_samples_per_s    the same samples on two connections at once, as a sink with two
                                  partitions stores them: half of the GPUs each
    copy.chunk_samples_per_s      decoded samples and their chunks to committed rows of
                                  sample_chunk and rollup_1m, statistics included; also with 60
                                  samples a chunk
    copy.vs_psql                  the hot stream by asyncpg, beside psql's \\copy of the same bytes:
                                  the median of pairs, in which each is first by turns, and the
                                  quartiles
    copy.asyncpg_samples_per_s    asyncpg's copy_records_to_table into the same table, of tuples
                                  that are there already, their cells packed by our kernel
    copy.pgcopy_samples_per_s     pgcopy's CopyManager, likewise
    copy.*_columns_samples_per_s  both into a table with a column a metric, as the store had it
                                  before and as who has no such kernel would, of tuples of numbers
    copy.ingest_*_samples_per_s   the sink's whole way: frames, decoded, exactly once, by three
                                  workers; decode_us: of it the time a chunk takes to decode;
                                  ingest_one: one sample a chunk, 8 GPUs a frame
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import uvloop

from benchmarks import report
from benchmarks.copy_load import (
    CHUNK_FACTS,
    COLUMNS_FACTS,
    HOT_FACTS,
    METRIC_SET,
    START_NS,
    Facts,
    Load,
    facts,
    packed,
)
from gputel import store as store_package
from gputel import wire
from gputel.batch import Batch
from gputel.clock import NS_PER_S, SYSTEM_CLOCK
from gputel.kernels import HotStream, hot_places
from gputel.store import Store, chunks, hot, schema
from gputel.store.chunks import Chunk
from gputel.store.claim import Claims
from gputel.store.copying import copy_in
from gputel.store.embedded import EmbeddedPostgres
from gputel.store.ingest import Ingest
from gputel.store.partitions import Partitions
from gputel.store.settings import DatabaseSettings, StoreSettings
from gputel.store.times import to_datetime

CONNECTIONS = 2
WORKERS = 3
PAIRS_A_ROUND = 5
FRAMES_A_COMMIT = 100  # the sink's default batch_size
MS = 1_000_000
HOT = Load(gpus=4000, rows=10, chunks=1, step_ns=100 * MS)
CHUNKS = Load(gpus=400, rows=600, chunks=4, step_ns=100 * MS)
SMALL_CHUNKS = Load(gpus=800, rows=60, chunks=5, step_ns=1000 * MS)
INGEST_ONE = Load(gpus=1600, rows=1, chunks=20, step_ns=1000 * MS)
INGEST_HOT = Load(gpus=800, rows=10, chunks=12, step_ns=100 * MS)
TABLES = (
    "sample_hot_fast, sample_columns, sample_chunk, rollup_1m, rollup_1h_part, sink_offset, "
    "producer_mark, gpu RESTART IDENTITY"
)
CELLS_BYTES = hot_places(METRIC_SET.storages)[-1]
COLUMN_NAMES = (*hot.NAMES[:4], *(metric.name for metric in METRIC_SET.metrics))


class Database(NamedTuple):
    """An embedded PostgreSQL of this run's own."""

    store: Store
    settings: DatabaseSettings
    postmaster: int  # pid


@asynccontextmanager
async def server() -> AsyncGenerator[Database]:
    """One with the schema, and with partitions made ahead."""
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
            await make_columns(store)
            assert postgres.pid is not None
            yield Database(store, settings, postgres.pid)
            await store.close()
        finally:
            await postgres.stop()


async def make_columns(store: Store) -> None:
    """A table as hot rows had it, partitioned and keyed like theirs."""
    columns = ", ".join(
        f"{metric.name} {schema.SQL_TYPES[metric.storage]}" for metric in METRIC_SET.metrics
    )
    async with store.session() as session:
        await session.execute(
            "CREATE TABLE sample_columns (gpu_id bigint NOT NULL, time timestamptz NOT NULL, "
            f"epoch bigint NOT NULL, sequence bigint NOT NULL, {columns}, "
            "PRIMARY KEY (gpu_id, time, epoch, sequence)) PARTITION BY RANGE (time)"
        )
        for name, lower, upper in await session.fetch(
            "SELECT name, lower, upper FROM store_partition WHERE parent = $1",
            schema.hot_table(METRIC_SET),
        ):
            await session.execute(
                f"CREATE TABLE {name}_columns PARTITION OF sample_columns "
                f"FOR VALUES FROM ('{lower.isoformat()}') TO ('{upper.isoformat()}')"
            )


class Outcome(NamedTuple):
    """The best of some rounds. core_s: of this process and of the server's, together."""

    seconds: float
    core_s: float
    correct: bool

    def emit(self, figure: str, load: Load, **extra: float | str) -> None:
        """Tell samples a second, and a second of a core."""
        per_core = f"{load.samples / self.core_s:.3g}"
        report.emit(
            f"copy.{figure}_samples_per_s",
            load.samples / self.seconds,
            "1/s",
            self.correct,
            per_core_s=per_core,
            **extra,
        )


def core_seconds(postmaster: int) -> float:
    """What this process and the server's backends have used so far, also those that have ended.

    See proc(5): stat, schedstat.
    """
    fields = Path(f"/proc/{postmaster}/stat").read_text().rpartition(")")[2].split()
    total_ns = (int(fields[13]) + int(fields[14])) * NS_PER_S // os.sysconf("SC_CLK_TCK")
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == postmaster:
                total_ns += int((place / "schedstat").read_text().split()[0])
        except OSError:
            continue  # it has ended
    return time.process_time() + total_ns / NS_PER_S


async def best(
    rounds: int,
    database: Database,
    query: str,
    expected: Facts,
    work: Callable[[], Awaitable[float | None]],
) -> Outcome:
    """Store into empty tables, `rounds` times. `work` may say itself how long it took."""
    outcome = Outcome(float("inf"), float("inf"), True)
    for _ in range(rounds):
        async with database.store.session() as session:
            await session.execute(f"TRUNCATE {TABLES}")
        started, core_started = time.perf_counter(), core_seconds(database.postmaster)
        said_s = await work()
        seconds = time.perf_counter() - started if said_s is None else said_s
        core_s = core_seconds(database.postmaster) - core_started
        async with database.store.session() as session:
            right = await facts(session, query) == expected
        outcome = Outcome(
            min(outcome.seconds, seconds), min(outcome.core_s, core_s), outcome.correct and right
        )
    return outcome


def hot_stream(batches: Sequence[tuple[int, Batch]]) -> HotStream:
    stream = HotStream(METRIC_SET.storages)
    for gpu, batch in batches:
        stream.append(gpu + 1, 1, batch.time_ns, batch.sequence, batch.columns, batch.valid)
    return stream


def stream_alone(rounds: int) -> None:
    """The kernel without a database."""
    batches = HOT.batches()
    best_s = float("inf")
    for _ in range(rounds * 3):
        started = time.perf_counter()
        data = hot_stream(batches).finish()
        best_s = min(best_s, time.perf_counter() - started)
    source = np.frombuffer(data, np.uint8)
    target = np.empty_like(source)
    copy_s = float("inf")
    for _ in range(rounds * 3):
        started = time.perf_counter()
        target[:] = source
        copy_s = min(copy_s, time.perf_counter() - started)
    rows = HOT.gpus * HOT.rows * HOT.chunks
    correct = len(data) == 19 + rows * (2 + 12 * 4 + 4 + CELLS_BYTES) + 2
    report.emit(
        "copy.stream_values_per_s",
        HOT.samples / best_s,
        "1/s",
        correct,
        vs_memcpy=round(copy_s / best_s, 3),
        rows_a_block=HOT.rows,
    )


async def hot_rows(database: Database, rounds: int) -> None:
    """Ours and the peers' by turns: all meet the same noise, and none the first files of WAL."""
    pieces = [hot.Piece(gpu + 1, 1, batch) for gpu, batch in HOT.batches()]
    rows, column_rows = tuples(HOT), column_tuples(HOT)

    async def ours() -> None:
        async with database.store.session() as session, session.transaction():
            await hot.write(session, METRIC_SET, pieces)

    async def by_two() -> None:
        async def one(number: int) -> None:
            async with database.store.session() as session, session.transaction():
                await hot.write(session, METRIC_SET, pieces[number::CONNECTIONS])

        await asyncio.gather(*(one(number) for number in range(CONNECTIONS)))

    async def by_asyncpg() -> None:
        async with database.store.session() as session:
            await session.copy_records_to_table("sample_hot_fast", records=rows, columns=hot.NAMES)

    async def columns_by_asyncpg() -> None:
        async with database.store.session() as session:
            await session.copy_records_to_table(
                "sample_columns", records=column_rows, columns=COLUMN_NAMES
            )

    works: dict[str, Callable[[], Awaitable[None]]] = {
        "hot": ours,
        "hot_two": by_two,
        "asyncpg": by_asyncpg,
        "asyncpg_columns": columns_by_asyncpg,
    }
    if importlib.util.find_spec("pgcopy") is None:
        report.skip("copy.pgcopy_samples_per_s", "pip install 'gputel[peers]' brings pgcopy")
    else:
        settings = database.settings
        works["pgcopy"] = pgcopy_of(settings, "sample_hot_fast", hot.NAMES, rows)
        works["pgcopy_columns"] = pgcopy_of(settings, "sample_columns", COLUMN_NAMES, column_rows)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in works}
    expected = HOT.hot_facts()
    for _ in range(rounds):
        for name, work in works.items():
            query = COLUMNS_FACTS if name.endswith("_columns") else HOT_FACTS
            outcomes[name].append(await best(1, database, query, expected, work))
    for name, found in outcomes.items():
        extra = {"target": 6e6} if name == "hot" else {}
        Outcome(
            min(one.seconds for one in found),
            min(one.core_s for one in found),
            all(one.correct for one in found),
        ).emit(name, HOT, **extra)


async def chunk_rows(database: Database, rounds: int, figure: str, load: Load) -> None:
    store = database.store
    pieces = [(gpu + 1, batch, wire.encode_batch(batch)) for gpu, batch in load.batches()]

    async def work() -> None:
        async with store.session() as session, session.transaction():
            items = [
                (gpu_id, Chunk.of(1, batch, int(batch.time_ns[0]), int(batch.time_ns[-1]), payload))
                for gpu_id, batch, payload in pieces
            ]
            await chunks.write(session, items)

    outcome = await best(rounds, database, CHUNK_FACTS, load.chunk_facts(), work)
    outcome.emit(figure, load, samples_a_chunk=load.rows, target=30e6)


async def against_psql(database: Database, rounds: int) -> None:
    store, settings, _ = database
    if shutil.which("psql") is None:
        report.skip("copy.vs_psql", "there is no psql; Debian has it in postgresql-client")
        return
    stream = hot_stream(HOT.batches())
    command = ["psql", "--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", settings.dbname]
    command += ["-h", settings.host, "-p", str(settings.port), "-U", settings.user]
    with tempfile.NamedTemporaryFile() as file:
        file.write(stream.finish())
        file.flush()
        copy = f"\\copy sample_hot_fast ({', '.join(hot.NAMES)}) from '{file.name}' (format binary)"

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

        async def by_us() -> None:
            async with store.session() as session:
                await copy_in(session, "sample_hot_fast", hot.NAMES, stream)

        expected = HOT.hot_facts()
        works: dict[str, Callable[[], Awaitable[float | None]]] = {"psql": by_psql, "ours": by_us}
        ratios, correct = [], True
        for number in range(PAIRS_A_ROUND * rounds):
            # So that neither always meets what the other leaves behind.
            names = ("psql", "ours") if number % 2 else ("ours", "psql")
            pair = {n: await best(1, database, HOT_FACTS, expected, works[n]) for n in names}
            correct &= all(one.correct for one in pair.values())
            ratios.append(pair["psql"].seconds / pair["ours"].seconds)
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    report.emit(
        "copy.vs_psql",
        float(middle),
        "",
        correct,
        quartiles=f"{low:.2f} to {high:.2f}",
        pairs=len(ratios),
        target=0.95,
    )


def tuples(load: Load) -> list[tuple[Any, ...]]:
    """The rows of `load` as the peers want them, packed."""
    found: list[tuple[Any, ...]] = []
    for gpu, batch in load.batches():
        found += zip(*keys_of(gpu, batch), packed(batch), strict=True)
    return found


def column_tuples(load: Load) -> list[tuple[Any, ...]]:
    """The same with a number a column."""
    found: list[tuple[Any, ...]] = []
    for gpu, batch in load.batches():
        columns = [column.tolist() for column in batch.columns]
        found += zip(*keys_of(gpu, batch), *columns, strict=True)
    return found


def keys_of(gpu: int, batch: Batch) -> tuple[list[Any], ...]:
    times = [to_datetime(t) for t in batch.time_ns.tolist()]
    return [gpu + 1] * len(batch), times, [1] * len(batch), batch.sequence.tolist()


def pgcopy_of(
    settings: DatabaseSettings, table: str, names: Sequence[str], rows: list[tuple[Any, ...]]
) -> Callable[[], Awaitable[None]]:
    """Stores `rows` by pgcopy."""
    import pgcopy
    import psycopg2

    def copy() -> None:
        connection = psycopg2.connect(
            host=settings.host,
            port=settings.port,
            user=settings.user,
            password=settings.password,
            dbname=settings.dbname,
        )
        with connection:
            pgcopy.CopyManager(connection, table, list(names)).copy(rows)
        connection.close()

    async def by_pgcopy() -> None:
        await asyncio.to_thread(copy)

    return by_pgcopy


async def ingest(
    database: Database, rounds: int, figure: str, load: Load, query: str, expected: Facts
) -> None:
    store = database.store
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

    outcome = await best(rounds, database, query, expected, work)
    decode_us = round(decode_s * 1e6, 1)
    outcome.emit(figure, load, samples_a_chunk=load.rows, decode_us=decode_us)


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
    async with server() as database:
        await hot_rows(database, rounds)
        await chunk_rows(database, rounds, "chunk", CHUNKS)
        await chunk_rows(database, rounds, "chunk_60", SMALL_CHUNKS)
        await against_psql(database, rounds)
        for figure, load in (("ingest_one", INGEST_ONE), ("ingest_hot", INGEST_HOT)):
            await ingest(database, rounds, figure, load, HOT_FACTS, load.hot_facts())
        for figure, load in (("ingest_chunk_60", SMALL_CHUNKS), ("ingest_chunk", CHUNKS)):
            await ingest(database, rounds, figure, load, CHUNK_FACTS, load.chunk_facts())


if __name__ == "__main__":
    uvloop.run(main())
