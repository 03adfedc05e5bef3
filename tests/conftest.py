"""Fixtures that several kinds of tests share: one PostgreSQL for all, a database for each."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import uuid
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import asyncpg
import msgspec
import pytest

from gputel import store as store_package
from gputel.store import Store
from gputel.store.embedded import EmbeddedPostgres
from gputel.store.settings import DatabaseSettings, StoreSettings

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


@pytest.fixture
async def database(
    _server: tuple[EmbeddedPostgres, DatabaseSettings],
) -> AsyncGenerator[DatabaseSettings]:
    """A migrated database of this test's own."""
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
async def store(database: DatabaseSettings) -> AsyncGenerator[Store]:
    """A migrated store on a fresh database."""
    connected = await store_package.connect(database)
    try:
        yield connected
    finally:
        await connected.close()
