"""Fixtures that several kinds of tests share.

One PostgreSQL for all, a database for each; and frames as a collector would publish them,
with an account of what must be found of them. With GPUTEL_TEST_CITUS the databases of `store`
are those of a Citus cluster instead (see support.citus).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import msgspec
import numpy as np
import pytest

from gputel import store as store_package
from gputel import wire
from gputel.batch import DTYPES, Batch
from gputel.catalog import SET_BY_CADENCE, Cadence, Metric, MetricSet
from gputel.inventory import Event, Gpu
from gputel.store import Store
from gputel.store.embedded import EmbeddedPostgres
from gputel.store.frames import Message
from gputel.store.settings import DatabaseSettings, StoreSettings
from support import citus
from support.citus import CitusCluster

TEMPLATE = "gputel_template"


async def admin_execute(admin: DatabaseSettings, *statements: str) -> None:
    """Run statements as the superuser, each outside a transaction."""
    connection = await asyncpg.connect(
        host=admin.host,
        port=admin.port,
        user=admin.user,
        password=admin.password,
        database=admin.dbname,
    )
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def _server() -> Generator[tuple[EmbeddedPostgres, DatabaseSettings]]:
    root = Path(tempfile.mkdtemp(prefix="gputel-test-"))
    # Others may pass through, so that the server's user reaches it when we are root.
    root.chmod(0o711)
    server = EmbeddedPostgres(root / "data", fallback_root=root / "fallback" / "embedded")

    async def start() -> DatabaseSettings:
        settings = await server.start()
        template = msgspec.structs.replace(settings, dbname=TEMPLATE)
        await admin_execute(server.admin, f"CREATE DATABASE {TEMPLATE} OWNER {settings.user}")
        store = await store_package.connect(template)
        await store.migrate(StoreSettings())
        await store.close()
        return settings

    try:
        yield server, asyncio.run(start())
    finally:
        asyncio.run(server.stop())
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(_server: tuple[EmbeddedPostgres, DatabaseSettings]) -> DatabaseSettings:
    """A running PostgreSQL; its database `gputel` is empty and shared."""
    return _server[1]


@pytest.fixture(scope="session")
def _cluster() -> Generator[CitusCluster | None]:
    binaries = os.environ.get(citus.VARIABLE)
    if not binaries:
        yield None
        return
    cluster = CitusCluster(Path(binaries))
    try:
        asyncio.run(cluster.start())
        yield cluster
    finally:
        asyncio.run(cluster.stop())


@pytest.fixture
def cluster(_cluster: CitusCluster | None) -> CitusCluster:
    """A Citus cluster, where there is one."""
    if _cluster is None:
        pytest.skip(f"{citus.VARIABLE} does not name the bin directory of a PostgreSQL with Citus")
    return _cluster


@pytest.fixture
def plain(_cluster: CitusCluster | None) -> None:
    """For a test that takes its database apart, which would take the extension with it."""
    if _cluster is not None:
        pytest.skip("only on plain PostgreSQL")


@pytest.fixture
async def database(
    _server: tuple[EmbeddedPostgres, DatabaseSettings], _cluster: CitusCluster | None
) -> AsyncGenerator[DatabaseSettings]:
    """A migrated database of this test's own."""
    if _cluster is not None:
        distributed = await _cluster.create_migrated()
        try:
            yield distributed
        finally:
            await _cluster.drop(distributed.dbname)
        return
    server, settings = _server
    name = f"test_{uuid.uuid4().hex}"
    await admin_execute(
        server.admin, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} OWNER {settings.user}"
    )
    try:
        yield msgspec.structs.replace(settings, dbname=name)
    finally:
        await admin_execute(server.admin, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def as_admin(
    _server: tuple[EmbeddedPostgres, DatabaseSettings], _cluster: CitusCluster | None
) -> Callable[..., Awaitable[None]]:
    """Runs statements as the superuser of the server that `database` is on."""
    admin = _server[0].admin if _cluster is None else _cluster.admin

    async def execute(*statements: str) -> None:
        await admin_execute(admin, *statements)

    return execute


@pytest.fixture
async def store(database: DatabaseSettings) -> AsyncGenerator[Store]:
    """A migrated store on a fresh database."""
    connected = await store_package.connect(database)
    try:
        yield connected
    finally:
        await connected.close()


START_NS = 1_760_000_000_000_000_000

Point = tuple[int, float]


def batch_of(
    rng: np.random.Generator, metric_set: MetricSet, time_ns: Sequence[int], first_sequence: int
) -> Batch:
    """Random values, a fifth of them missing."""
    n = len(time_ns)
    columns, masks = [], []
    for storage in metric_set.storages:
        mask = rng.random(n) < 0.8
        values = rng.integers(0, 2**40, n) if storage in "qQ" else rng.random(n) * 700
        columns.append(np.where(mask, values, 0).astype(DTYPES[storage]))
        masks.append(np.packbits(mask, bitorder="little"))
    return Batch(
        metric_set,
        np.array(time_ns, np.int64),
        np.arange(first_sequence, first_sequence + n, dtype=np.int64),
        tuple(columns),
        np.array(masks, np.uint8),
    )


@dataclass
class Producer:
    """Publishes frames of one node and keeps account of every value in them."""

    node: str = "node-a"
    gpus: int = 2
    epoch: int = 1
    seed: int = 1
    sequence: int = 0
    offset: int = 0
    points: dict[tuple[str, Metric], list[Point]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.next_row: dict[tuple[str, int], int] = {}

    @property
    def name(self) -> str:
        return f"collector:{self.node}"

    def gpu(self, index: int) -> Gpu:
        return Gpu(
            uuid=f"GPU-{self.node}-{index}",
            node=self.node,
            index=index,
            model="NVIDIA H100 80GB HBM3",
            memory_total_bytes=85_899_345_920,
        )

    def frame(
        self,
        time_ns: Sequence[int],
        *,
        cadence: Cadence = Cadence.FAST,
        events: Sequence[Event] = (),
        inventory: bool = True,
    ) -> wire.Frame:
        """The next frame: each GPU has one chunk with these times."""
        metric_set = SET_BY_CADENCE[cadence]
        gpus = []
        for index in range(self.gpus):
            gpu = self.gpu(index)
            first = self.next_row.get((gpu.uuid, metric_set.id), 0)
            batch = batch_of(self.rng, metric_set, time_ns, first)
            self.next_row[gpu.uuid, metric_set.id] = first + len(time_ns)
            self._account(gpu.uuid, batch)
            gpus.append(wire.GpuChunks(gpu.uuid, (wire.encode_batch(batch),)))
        self.sequence += 1
        return wire.Frame(
            self.name,
            self.epoch,
            self.sequence,
            self.node,
            max(time_ns),
            tuple(gpus),
            tuple(self.gpu(i) for i in range(self.gpus)) if inventory else (),
            tuple(events),
        )

    def message(self, frame: wire.Frame) -> Message:
        """`frame` as the broker delivers it, at the next offset."""
        self.offset += 1
        return Message(
            self.offset - 1, frame.producer, frame.epoch, frame.sequence, wire.encode_frame(frame)
        )

    def publish(self, time_ns: Sequence[int], **options: object) -> Message:
        """A frame as a message."""
        return self.message(self.frame(time_ns, **options))  # type: ignore[arg-type]

    def _account(self, uuid: str, batch: Batch) -> None:
        for i, metric in enumerate(batch.metric_set.metrics):
            mask = batch.mask(i)
            points = zip(batch.time_ns[mask].tolist(), batch.columns[i][mask].tolist(), strict=True)
            self.points.setdefault((uuid, metric), []).extend(points)

    def expected(self, uuid: str, metric: Metric, start_ns: int, end_ns: int) -> list[Point]:
        """Every value published in [start_ns, end_ns), by time."""
        return sorted(p for p in self.points.get((uuid, metric), []) if start_ns <= p[0] < end_ns)


@pytest.fixture
def producer() -> Producer:
    return Producer()


@pytest.fixture
def make_producer() -> Callable[..., Producer]:
    return Producer
