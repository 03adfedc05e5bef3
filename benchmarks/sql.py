"""Raw samples by SQL: what gpu_samples takes to decode an hour of a GPU inside PostgreSQL.

    python -m benchmarks.sql [--json] [--rounds N]

The fast metric set of a simulated GPU (benchmarks.day_trace), sealed as the store does it. Every
time and value is compared with what was stored.

    store.sql_raw_samples_per_s  power_watts of an hour at 10 Hz, 36,000 samples; the best round
    store.sql_hour_10hz_ms       the slowest metric of that hour: those before it are passed over
    store.sql_hour_1hz_ms        the same at 1 Hz, 3,600 samples
    store.sql_all_samples_per_s  all metrics of the hour at 1 Hz together, by gpu_all_samples
    store.sql_latest_ms          a row of gpu_latest for which a chunk of 3,600 samples is decoded;
                                 kept_ms: for which sealing has kept the newest row

core_ms is what the server's process used, whatever else ran on the machine.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import uvloop

from benchmarks import day_trace, report
from benchmarks.copy import Database, server
from benchmarks.copy_load import packed
from gputel.batch import Batch
from gputel.catalog import SET_BY_CADENCE, Cadence, Metric
from gputel.clock import NS_PER_S
from gputel.store import Store, chunks, hot
from gputel.store.partitions import Partitions
from gputel.store.seal import chunks_of
from gputel.store.settings import StoreSettings
from gputel.store.times import HOUR_NS, to_datetime

if TYPE_CHECKING:
    from gputel.store.connection import Connection

FAST = SET_BY_CADENCE[Cadence.FAST]
SAMPLES = 36_000
T0 = day_trace.T0 // HOUR_NS * HOUR_NS


class Load(NamedTuple):
    """A GPU, and the samples that it has."""

    gpu_id: int
    batches: list[Batch]

    def expected(self, metric: Metric) -> tuple[list[float], list[float]]:
        """Times (us) and values."""
        j = FAST.column(metric)
        masks = [batch.mask(j) for batch in self.batches]
        pairs = list(zip(self.batches, masks, strict=True))
        times = np.concatenate([batch.time_ns[mask] // 1000 for batch, mask in pairs])
        values = np.concatenate([batch.columns[j][mask] for batch, mask in pairs])
        return times.tolist(), values.astype(np.float64).tolist()


def loads() -> list[Load]:
    """GPU 1 at 10 Hz and GPU 2 at 1 Hz, an hour each."""
    trace = next(t for t in day_trace.day(seconds=SAMPLES) if t.metric_set is FAST)
    found = []
    for gpu_id, rows, hz in ((1, SAMPLES, 10), (2, SAMPLES // 10, 1)):
        times = T0 + (trace.time_ns[:rows] - day_trace.T0) // hz // 1000 * 1000
        whole = day_trace.Trace(
            FAST, times, tuple(c[:rows] for c in trace.columns), trace.masks[:, :rows]
        )
        found.append(Load(gpu_id, list(whole.chunks(4096))))
    return found


async def fill(store: Store, found: list[Load]) -> None:
    """Sealed chunks of each GPU."""
    minutes = T0 + np.arange(60, dtype=np.int64) * 60 * NS_PER_S
    await Partitions(store, StoreSettings()).ensure(
        {"sample_chunk": [minutes], "rollup_1m": [minutes]}
    )
    async with store.session() as session:
        for load in found:
            await session.execute(
                "INSERT INTO gpu (uuid, node, gpu_index, first_seen, metric_ids) "
                "SELECT $1, 'n', $2, now(), array_agg(metric_id) FROM metric",
                f"GPU-{load.gpu_id}",
                load.gpu_id,
            )
            await session.execute(
                "INSERT INTO gpu_seen SELECT gpu_id, now() FROM gpu WHERE uuid = $1",
                f"GPU-{load.gpu_id}",
            )
            for batch in load.batches:
                rows = hot.from_batch(batch, 1, FAST.metrics)
                made = [(load.gpu_id, chunk) for chunk in chunks_of(FAST, rows)]
                await chunks.write(session, made)


class Took(NamedTuple):
    """The best of some rounds: on the clock, and of a core."""

    seconds: float
    core_s: float


def core_ns(pid: int) -> int:
    """What a process has used of a core so far (proc(5), schedstat)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


async def timed(session: Connection, rounds: int, query: str, *arguments: object) -> Took:
    """Run the query some times."""
    pid = session.get_server_pid()
    seconds, core_s = [], []
    for _ in range(rounds):
        started, used_ns = time.perf_counter(), core_ns(pid)
        await session.fetch(query, *arguments)
        seconds.append(time.perf_counter() - started)
        core_s.append((core_ns(pid) - used_ns) / NS_PER_S)
    return Took(min(seconds), min(core_s))


async def one_metric(store: Store, load: Load, metric: Metric, rounds: int) -> tuple[Took, bool]:
    """(how long it took, is it right)."""
    arguments = (f"GPU-{load.gpu_id}", metric.name, to_datetime(T0), to_datetime(T0 + HOUR_NS))
    async with store.session() as session:
        rows = await session.fetch(
            "SELECT (extract(epoch FROM time) * 1000000)::bigint, value "
            "FROM gpu_samples($1, $2, $3, $4)",
            *arguments,
        )
        took = await timed(
            session, rounds, "SELECT sum(value) FROM gpu_samples($1, $2, $3, $4)", *arguments
        )
    times, values = load.expected(metric)
    return took, [row[0] for row in rows] == times and [row[1] for row in rows] == values


async def all_metrics(store: Store, load: Load, rounds: int) -> None:
    """gpu_all_samples of an hour."""
    counts = {m.name: len(load.expected(m)[0]) for m in FAST.metrics}
    sums = {m.name: sum(load.expected(m)[1]) for m in FAST.metrics if counts[m.name]}
    query = "SELECT metric, count(*), sum(value) FROM gpu_all_samples($1, $2, $3) GROUP BY 1"
    arguments = (str(load.gpu_id), to_datetime(T0), to_datetime(T0 + HOUR_NS))
    async with store.session() as session:
        found = await session.fetch(query, *arguments)
        took = await timed(session, rounds, query, *arguments)
    correct = {r[0] for r in found} == sums.keys() and all(
        r[1] == counts[r[0]] and np.isclose(r[2], sums[r[0]], rtol=1e-9) for r in found
    )
    samples = sum(counts.values())
    emit("all_samples_per_s", samples / took.seconds, "1/s", correct, took, samples=samples)


async def latest(store: Store, load: Load, rounds: int) -> None:
    """gpu_latest, of what is in a chunk only, and of a row that is kept."""
    query = "SELECT * FROM gpu_latest WHERE gpu_id = $1"
    batch = load.batches[-1]
    last = len(batch) - 1
    expected = {
        metric.name: batch.columns[j][last].item() if batch.mask(j)[last] else None
        for j, metric in enumerate(FAST.metrics)
    }
    expected["fast_time"] = to_datetime(int(batch.time_ns[last]))
    correct, tooks = True, []
    async with store.session() as session:
        for _ in range(2):
            (row,) = await session.fetch(query, load.gpu_id)
            correct &= {name: row[name] for name in expected} == expected
            tooks.append(await timed(session, rounds, query, load.gpu_id))
            await session.execute(
                f"INSERT INTO sample_newest_fast ({', '.join(hot.NAMES)}) "
                "VALUES ($1, $2, 1, 1, $3) ON CONFLICT DO NOTHING",
                load.gpu_id,
                expected["fast_time"],
                packed(batch)[last],
            )
    kept_ms = round(tooks[1].seconds * 1e3, 2)
    emit("latest_ms", tooks[0].seconds * 1e3, "ms", correct, tooks[0], kept_ms=kept_ms)


def emit(
    figure: str, value: float, unit: str, correct: bool, took: Took, **extra: float | str
) -> None:
    """Tell one figure, with what the server used."""
    core_ms = round(took.core_s * 1e3, 1)
    report.emit(f"store.sql_{figure}", value, unit, correct, core_ms=core_ms, **extra)


async def measure(database: Database, rounds: int) -> None:
    """All figures."""
    found = loads()
    await fill(database.store, found)
    for load, name, target in zip(found, ("10hz", "1hz"), (1000.0, 150.0), strict=True):
        worst, slowest, right = Took(0, 0), "", True
        for metric in FAST.metrics:
            took, correct = await one_metric(database.store, load, metric, rounds)
            right &= correct
            if took.core_s > worst.core_s:
                worst, slowest = took, metric.name
            if metric.name == "power_watts" and name == "10hz":
                emit("raw_samples_per_s", SAMPLES / took.seconds, "1/s", correct, took)
        emit(
            f"hour_{name}_ms",
            worst.seconds * 1e3,
            "ms",
            right,
            worst,
            metric=slowest,
            target=target,
        )
    await all_metrics(database.store, found[1], rounds)
    await latest(database.store, found[1], rounds)


async def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sql",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    report.add_arguments(parser)
    arguments = parser.parse_args()
    async with server() as database:
        await measure(database, arguments.rounds)


if __name__ == "__main__":
    uvloop.run(main())
