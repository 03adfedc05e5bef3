"""A disk of PostgreSQL's that is really full, and then is not."""

from __future__ import annotations

import os
import subprocess
import tempfile
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from gputel import store as store_package
from gputel.clock import SYSTEM_CLOCK
from gputel.errors import DatabaseUnavailable
from gputel.store import Store
from gputel.store.claim import Claims
from gputel.store.ingest import Ingest
from gputel.store.query import Query
from gputel.store.settings import DatabaseSettings, StoreSettings
from support.database import START_NS, TEMPLATE

if TYPE_CHECKING:
    from gputel.store.embedded import EmbeddedPostgres
    from support.database import Producer

pytestmark = pytest.mark.fault

DISK_BYTES = 32 * 1024 * 1024
MESSAGES_MAX = 2000


@pytest.fixture
def disk(_server: tuple[EmbeddedPostgres, DatabaseSettings]) -> Generator[Path]:
    """A small file system of the server's user."""
    with tempfile.TemporaryDirectory(prefix="gputel-disk-") as name:
        place = Path(name)
        place.chmod(0o711)
        mounted = place / "disk"
        mounted.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(mounted)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
            pytest.skip("mounting a small disk takes root's rights")
        try:
            owner = Path(f"/proc/{_server[0].pid}").stat()
            (mounted / "tablespace").mkdir()
            os.chown(mounted / "tablespace", owner.st_uid, owner.st_gid)
            yield mounted
        finally:
            subprocess.run(["umount", "--lazy", str(mounted)], check=True)


@pytest.fixture
async def store(
    disk: Path, postgres: DatabaseSettings, as_admin: Callable[..., Awaitable[None]]
) -> AsyncGenerator[Store]:
    name = f"small_{uuid.uuid4().hex}"
    await as_admin(
        f"CREATE TABLESPACE {name} LOCATION '{disk / 'tablespace'}'",
        f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} OWNER {postgres.user} TABLESPACE {name}",
    )
    connected = await store_package.connect(msgspec.structs.replace(postgres, dbname=name))
    try:
        yield connected
    finally:
        await connected.close()
        await as_admin(f"DROP DATABASE {name} WITH (FORCE)", f"DROP TABLESPACE {name}")


async def test_nothing_is_lost_or_doubled_when_the_disk_is_full(
    store: Store, disk: Path, producer: Producer
) -> None:
    claims, ingest = Claims(store, SYSTEM_CLOCK), Ingest(store, StoreSettings())
    claim = await claims.acquire("telemetry", 0)
    assert claim is not None
    await ingest.commit(claim, [producer.publish([START_NS])])
    ballast = disk / "ballast"
    free_bytes = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    ballast.write_bytes(bytes(free_bytes - 256 * 1024))

    refused = None
    for i in range(1, MESSAGES_MAX):
        message = producer.publish([START_NS + (i * 20 + j) * 1_000_000 for j in range(20)])
        try:
            await ingest.commit(claim, [message])
        except DatabaseUnavailable:
            refused = message
            break
    assert refused is not None
    assert claim.next_offset == refused.offset
    with pytest.raises(DatabaseUnavailable, match=r"its disk is full.*make room"):
        await ingest.commit(claim, [refused])

    ballast.unlink()
    await ingest.commit(claim, [refused])
    await claims.close()
    query = Query(store)
    for index in range(producer.gpus):
        row = await query.gpu(producer.gpu(index).uuid)
        metrics = [metric for uuid_, metric in producer.points if uuid_ == row.gpu.uuid]
        page = await query.telemetry(
            row, start_ns=0, end_ns=START_NS * 2, metrics=metrics, limit=10_000_000
        )
        for series in page.series:
            found = list(zip(series.time_ns.tolist(), series.values.tolist(), strict=True))
            assert found == producer.expected(row.gpu.uuid, series.metric, 0, START_NS * 2)
