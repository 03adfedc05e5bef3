"""Citus: what was stored is found once, whatever happens to the nodes.

The other tests of the store run on a distributed database, too, where GPUTEL_TEST_CITUS is set.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import msgspec
import pytest

from gputel import store as store_package
from gputel.catalog import BY_NAME, METRIC_SETS, SET_BY_CADENCE, Cadence
from gputel.clock import SYSTEM_CLOCK, ManualClock
from gputel.errors import DatabaseUnavailable
from gputel.inventory import Event, EventKind
from gputel.store import Store, citus, partitions, schema
from gputel.store.claim import ClaimLost, Claims
from gputel.store.frames import Message
from gputel.store.frozen import FrozenWalk
from gputel.store.ingest import Ingest
from gputel.store.late import frozen_ranges
from gputel.store.maintain import Maintainer
from gputel.store.partitions import drop_partition
from gputel.store.query import Query
from gputel.store.settings import DatabaseSettings, StoreSettings
from support import columns
from support.citus import WORKERS, CitusCluster

if TYPE_CHECKING:
    from support.database import Producer

pytestmark = pytest.mark.usefixtures("cluster")

S: Final = 1_000_000_000
START_NS: Final = 1_760_000_000 * S
SETTINGS: Final = StoreSettings(hot_partition_minutes=10, seal_after_minutes=1)
POWER: Final = BY_NAME["power_watts"]
TIMEOUT_S: Final = 120
RETRY_S: Final = 0.1


@pytest.fixture
async def bare(cluster: CitusCluster) -> AsyncGenerator[DatabaseSettings]:
    """A database on each node, without the extension."""
    settings = await cluster.create(extension=False)
    try:
        yield settings
    finally:
        await cluster.drop(settings.dbname)


async def store_all(store: Store, messages: list[Message], ingest: Ingest | None = None) -> None:
    """Commit what is not stored yet, as often as the database is away, as the sink does."""
    ingest = ingest or Ingest(store, SETTINGS)
    claims = Claims(store, SYSTEM_CLOCK)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                try:
                    claim = await claims.acquire("telemetry", 0)
                    assert claim is not None
                    for first in range(claim.next_offset, len(messages), 5):
                        await ingest.commit(claim, messages[first : first + 5])
                    return
                except (DatabaseUnavailable, ClaimLost):
                    await claims.close()
                    await asyncio.sleep(RETRY_S)
    finally:
        await claims.close()


def mixed(producer: Producer, frames: int) -> list[Message]:
    """Rows, chunks, slow rows and events."""
    event = Event(START_NS + S, EventKind.XID, producer.gpu(1).uuid, 79, "fell off the bus")
    own = Event(START_NS + 2 * S, EventKind.XID, "", 0, "the collector's own")
    messages = [producer.publish([START_NS], events=[event, own])]
    for i in range(1, frames):
        if i % 10 == 0:
            messages.append(producer.publish([START_NS + i * S], cadence=Cadence.SLOW))
        elif i % 3 == 0:
            messages.append(producer.publish([START_NS + i * S + j * S // 64 for j in range(40)]))
        else:
            messages.append(producer.publish([START_NS + i * S]))
    return messages


async def check(store: Store, producer: Producer) -> None:
    """Every value is found once, in samples as in minutes."""
    query = Query(store)
    rows = await query.gpus()
    assert sorted(row.gpu.uuid for row in rows) == [
        producer.gpu(i).uuid for i in range(producer.gpus)
    ]
    expected = {}
    for row in rows:
        page = await query.telemetry(
            row, start_ns=0, end_ns=2 * START_NS, metrics=[POWER], limit=1_000_000
        )
        (series,) = page.series
        found = zip(series.time_ns.tolist(), series.values.tolist(), strict=True)
        published = producer.expected(row.gpu.uuid, POWER, 0, 2 * START_NS)
        assert sorted(found) == published
        expected[row.gpu.uuid] = len(published)
    async with store.session() as session:
        for view in ("gpu_minute", "gpu_hour"):
            counted = await session.fetch(
                f"SELECT uuid, sum(n)::int FROM {view} WHERE metric = 'power_watts' GROUP BY uuid"
            )
            assert {row[0]: row[1] for row in counted} == expected
        letters = await session.fetch("SELECT reason FROM dead_letter")
    assert letters == []


async def check_events(store: Store) -> None:
    """Both are there; maintenance deletes them, because they are so old."""
    async with store.session() as session:
        events = await session.fetch("SELECT gpu_id > 0, code FROM event ORDER BY time")
    assert [tuple(event) for event in events] == [(True, 79), (False, 0)]


async def distribution(store: Store) -> dict[str, tuple[str, int]]:
    """Table to (n: reference, h: distributed; colocation)."""
    async with store.session() as session:
        found = await session.fetch(
            "SELECT logicalrelid::regclass::text, CASE WHEN partkey IS NULL THEN 'n' ELSE 'h' END, "
            "colocationid FROM pg_dist_partition"
        )
    return {name: (method, colocation) for name, method, colocation in found}


async def test_a_new_database_is_distributed(store: Store) -> None:
    assert store.cluster is not None
    assert store.cluster.workers == WORKERS
    before = await distribution(store)
    assert {name for name, (method, _) in before.items() if method == "n"} == set(
        schema.REFERENCE_TABLES
    )
    assert {name for name, (method, _) in before.items() if method == "h"} == set(
        schema.DISTRIBUTED_TABLES
    )
    assert len({before[name] for name in schema.DISTRIBUTED_TABLES}) == 1
    await asyncio.gather(*(store.migrate(StoreSettings()) for _ in range(3)))
    assert await distribution(store) == before


async def test_partitions_are_distributed_with_their_tables(
    store: Store, producer: Producer
) -> None:
    await store_all(store, mixed(producer, 12))
    found = await distribution(store)
    async with store.session() as session:
        names = [row[0] for row in await session.fetch("SELECT name FROM store_partition")]
    assert names
    assert {found[name] for name in names} == {found["gpu_seen"]}


async def test_what_was_stored_before_is_distributed(
    bare: DatabaseSettings, cluster: CitusCluster, producer: Producer
) -> None:
    producer.gpus = 5
    messages = mixed(producer, 40)
    plain = await store_package.connect(bare)
    assert plain.cluster is None
    await plain.migrate(StoreSettings())
    await store_all(plain, messages[:30])
    await Maintainer(plain, SETTINGS, ManualClock(SYSTEM_CLOCK.time_ns() + 3600 * S)).round()
    await store_all(plain, messages[:35])
    # A maintainer that was killed left one frozen.
    async with plain.session() as session:
        hot = schema.hot_table(SET_BY_CADENCE[Cadence.FAST])
        name = await session.fetchval(f"SELECT tableoid::regclass::text FROM {hot} LIMIT 1")
    walk = await FrozenWalk.open(plain, SET_BY_CADENCE[Cadence.FAST], name)
    assert walk is not None
    await walk.close()
    async with plain.session() as session:
        assert await frozen_ranges(session)
    await cluster.extend(bare.dbname)
    # A sink that was connected before goes on, during and after.
    await asyncio.gather(plain.migrate(StoreSettings()), store_all(plain, messages[:38]))
    await plain.close()
    store = await store_package.connect(bare)
    try:
        assert store.cluster is not None
        await store_all(store, messages)
        await check(store, producer)
        async with store.session() as session:
            # Nothing is left on the coordinator.
            left = await session.fetch(
                "SELECT relname FROM pg_dist_partition p JOIN pg_class c ON c.oid = p.logicalrelid "
                "WHERE p.partkey IS NOT NULL AND c.relkind = 'r' AND pg_relation_size(c.oid) > 0"
            )
            assert not await session.fetchval(citus._FUNCTIONS_LACKING)
            shown = await session.fetch("SELECT * FROM gpu_latest")
            minutes = await session.fetchval("SELECT count(*) FROM gpu_minute")
        assert left == []
        assert len(shown) == producer.gpus
        assert minutes > 0
    finally:
        await store.close()


async def test_rows_of_columns_are_packed_where_they_are(
    bare: DatabaseSettings, cluster: CitusCluster
) -> None:
    await cluster.extend(bare.dbname)
    store = await store_package.connect(bare)
    try:
        async with store.session() as session:
            await columns.make(session)
            for statement in citus.statements(
                schema.REFERENCE_TABLES, schema.DISTRIBUTED_TABLES, ()
            ):
                await session.execute(statement)
            for metric_set in METRIC_SETS:
                await columns.fill(session, metric_set)
        await asyncio.gather(*(store.migrate(StoreSettings()) for _ in range(2)))
        for metric_set in METRIC_SETS:
            rows = columns.rows_of(metric_set)
            await columns.check(store, schema.hot_table(metric_set), metric_set, rows)
            newest = columns.newest_of(rows)
            await columns.check(store, schema.newest_table(metric_set), metric_set, newest)
        found = await distribution(store)
        async with store.session() as session:
            names = [row[0] for row in await session.fetch("SELECT name FROM store_partition")]
            left = await session.fetchval(
                "SELECT count(*) FROM pg_dist_partition "
                "WHERE logicalrelid::text LIKE 'sample%columns%'"
            )
        assert {found[name] for name in (*names, *schema.DISTRIBUTED_TABLES)} == {found["gpu_seen"]}
        assert left == 0
    finally:
        await store.close()


async def test_a_worker_is_no_place_to_connect_to(
    database: DatabaseSettings, cluster: CitusCluster
) -> None:
    worker = msgspec.structs.replace(database, port=cluster.workers[0].port)
    with pytest.raises(DatabaseUnavailable, match="point `database` to the coordinator"):
        await store_package.connect(worker)


async def test_the_sink_waits_for_a_worker(
    store: Store, cluster: CitusCluster, producer: Producer
) -> None:
    producer.gpus = 8  # on every worker
    messages = mixed(producer, 20)
    await store_all(store, messages[:10])
    await cluster.workers[1].end(signal.SIGKILL)
    claims = Claims(store, SYSTEM_CLOCK)
    claim = await claims.acquire("telemetry", 0)
    assert claim is not None
    with pytest.raises(DatabaseUnavailable, match=str(cluster.workers[1].port)):
        await Ingest(store, SETTINGS).commit(claim, messages[10:15])
    await claims.close()
    await cluster.workers[1].start()
    await store_all(store, messages)
    await check(store, producer)


@pytest.mark.parametrize("victim", ["coordinator", "worker"])
async def test_killed_while_frames_come(
    store: Store, cluster: CitusCluster, producer: Producer, victim: str
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    producer.gpus = 8
    messages = mixed(producer, 150)
    work = asyncio.create_task(store_all(store, messages))
    maintainer = Maintainer(store, SETTINGS, ManualClock(SYSTEM_CLOCK.time_ns() + 3600 * S))
    for _ in range(4):
        await asyncio.wait([work], timeout=chance.uniform(0.3, 1.5))
        round_of = asyncio.create_task(maintainer.round())
        node = cluster.coordinator if victim == "coordinator" else chance.choice(cluster.workers)
        await asyncio.wait([round_of], timeout=chance.uniform(0, 0.5))
        await node.end(signal.SIGKILL)
        await node.start()
        await asyncio.gather(round_of, return_exceptions=True)
    await work
    await prepared_are_settled(cluster, store.settings.dbname)
    await check(store, producer)
    for _ in range(3):
        await maintainer.round()
    await check(store, producer)


async def test_shards_move_while_frames_come(
    store: Store, cluster: CitusCluster, producer: Producer
) -> None:
    producer.gpus = 8
    messages = mixed(producer, 60)
    await store_all(store, messages[:20])
    async with store.session() as session:
        moved = await session.fetch(
            "SELECT min(shardid) AS shard, nodeport AS source FROM citus_shards "
            "WHERE table_name = 'gpu_seen'::regclass GROUP BY nodeport"
        )
    work = asyncio.create_task(store_all(store, messages))
    for shard, source in moved:
        (target,) = (worker.port for worker in cluster.workers if worker.port != source)
        await cluster.coordinator.execute(
            store.settings.dbname,
            f"SELECT citus_move_shard_placement({shard}, '127.0.0.1', {source}, '127.0.0.1', "
            f"{target}, shard_transfer_mode => 'block_writes')",
        )
    await work
    await check(store, producer)


@pytest.mark.timeout(300)
async def test_a_worker_is_added_while_frames_come_and_are_sealed(
    cluster: CitusCluster, producer: Producer
) -> None:
    """What docs/how-to/citus.md tells the operator to do; the sink and maintenance go on."""
    producer.gpus = 8
    messages = mixed(producer, 200)
    # No copy of another: Citus would tell the new node about the original's name.
    settings = await cluster.create()
    store = await store_package.connect(settings)
    await store.migrate(StoreSettings())
    await store_all(store, messages[:20])
    maintainer = Maintainer(store, SETTINGS, ManualClock(SYSTEM_CLOCK.time_ns() + 3600 * S))
    moving, moved = asyncio.Event(), asyncio.Event()

    async def store_while_moving() -> None:
        await moving.wait()
        for end in range(20, 181, 20):
            await store_all(store, messages[:end])
        await moved.wait()
        await store_all(store, messages)

    async def maintain() -> None:
        await moving.wait()
        while not moved.is_set():
            with contextlib.suppress(DatabaseUnavailable):
                await maintainer.round()
            # Moving a shard and making a partition exclude each other: Citus gets a turn, too.
            await asyncio.wait([moved_task], timeout=1)

    async def rebalance(port: int) -> None:
        job = await ask(
            cluster,
            settings.dbname,
            f"SELECT citus_add_node('127.0.0.1', {port})",
            "SELECT citus_rebalance_start(shard_transfer_mode => 'block_writes')",
        )
        moving.set()
        state = f"SELECT state::text FROM pg_dist_background_job WHERE job_id = {job}"
        while (now := await ask(cluster, settings.dbname, state)) != "finished":
            assert now not in ("failed", "cancelled"), await ask(
                cluster,
                settings.dbname,
                "SELECT string_agg(command || ': ' || message, chr(10)) "
                "FROM pg_dist_background_task",
            )
            await asyncio.sleep(RETRY_S)
        moved.set()

    try:
        async with cluster.another_worker(settings.dbname) as node:
            async with asyncio.timeout(2 * TIMEOUT_S), asyncio.TaskGroup() as group:
                moved_task = group.create_task(moved.wait())
                group.create_task(store_while_moving())
                group.create_task(maintain())
                group.create_task(rebalance(node.port))
            assert maintainer.counts.rounds > 0
            shards = (
                "SELECT count(*) FROM citus_shards WHERE citus_table_type = 'distributed' "
                f"AND nodeport = {node.port}"
            )
            assert await ask(cluster, settings.dbname, shards) > 0
            await check(store, producer)
            for _ in range(3):
                await maintainer.round()
            assert maintainer.counts.sealed_rows > 0
            await check(store, producer)
            again = await store_package.connect(settings)
            assert again.workers == WORKERS + 1
            await again.close()
            await store.close()
            await cluster.drop(settings.dbname)
    finally:
        await store.close()


async def ask(cluster: CitusCluster, dbname: str, *statements: str, port: int = 0) -> Any:
    """Run statements as the superuser, on the coordinator or at `port`; the last one's answer."""
    session = await asyncpg.connect(
        host="127.0.0.1",
        port=port or cluster.coordinator.port,
        user="postgres",
        database=dbname,
        ssl=False,
    )
    try:
        for statement in statements:
            answer = await session.fetchval(statement)
    finally:
        await session.close()
    return answer


async def prepared_are_settled(cluster: CitusCluster, dbname: str) -> None:
    """Wait until no node has a transaction that was prepared, and neither committed nor undone."""
    prepared = "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()"
    async with asyncio.timeout(TIMEOUT_S):
        for node in cluster.workers:
            while True:
                if not await ask(cluster, dbname, prepared, port=node.port):
                    break
                await asyncio.sleep(RETRY_S)


async def test_a_partition_with_rows_that_a_worker_has_yet_to_commit_is_not_dropped(
    store: Store, cluster: CitusCluster, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are prepared, their coordinator has committed, and the second phase did not arrive."""
    monkeypatch.setattr(partitions, "DROP_WAIT_DISTRIBUTED_MS", 30_000)
    await store_all(store, [producer.publish([START_NS])])
    async with store.session() as session:
        name = await session.fetchval(
            "SELECT name FROM store_partition WHERE parent = 'sample_hot_fast'"
        )
        await session.execute(f"DELETE FROM {name}")
        placement = await session.fetchrow(
            "SELECT shard_name, nodeport FROM citus_shards WHERE table_name = $1::text::regclass "
            "ORDER BY shard_name LIMIT 1",
            name,
        )
    assert placement is not None
    shard, port = placement
    worker = await asyncpg.connect(
        host="127.0.0.1", port=port, user="postgres", database=store.settings.dbname, ssl=False
    )
    try:
        await worker.execute("SET citus.enable_manual_changes_to_shards = on")
        await worker.execute("BEGIN")
        await worker.execute(
            f"INSERT INTO {shard} (gpu_id, time, epoch, sequence, cells) "
            f"VALUES (1, to_timestamp({START_NS // S}), 7, 7, '\\x0000000000000000')"
        )
        await worker.execute("PREPARE TRANSACTION 'late'")

        async def drop() -> bool:
            async with store.session() as session:
                return await drop_partition(session, name, only_empty=True)

        dropping = asyncio.create_task(drop())
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                if await worker.fetchval(
                    "SELECT count(*) FROM pg_locks WHERE NOT granted "
                    "AND relation = $1::text::regclass",
                    shard,
                ):
                    break
                assert not dropping.done()
                await asyncio.sleep(RETRY_S)
        await worker.execute("COMMIT PREPARED 'late'")
        assert await dropping is False
        assert await worker.fetchval(f"SELECT count(*) FROM {shard}") == 1
    finally:
        await worker.close()


async def test_a_step_of_sealing_and_reading_is_one_snapshot_of_a_gpu(
    store: Store, producer: Producer
) -> None:
    """Samples are read again and again while they move from rows to chunks."""
    producer.gpus = 4
    messages = [producer.publish([START_NS + i * S]) for i in range(60)]
    await store_all(store, messages)
    maintainer = Maintainer(store, SETTINGS, ManualClock(SYSTEM_CLOCK.time_ns() + 3600 * S))
    query = Query(store)
    rows = await query.gpus()
    work = asyncio.create_task(maintainer.round())
    async with asyncio.timeout(TIMEOUT_S):
        while not work.done():
            for row in rows:
                page = await query.telemetry(
                    row, start_ns=0, end_ns=2 * START_NS, metrics=[POWER], limit=1_000_000
                )
                found = page.series[0].time_ns.tolist()
                expected = producer.expected(row.gpu.uuid, POWER, 0, 2 * START_NS)
                assert found == [time_ns for time_ns, _ in expected]
    await work
    assert maintainer.counts.sealed_rows == 4 * 60
