"""A Citus cluster for tests: a coordinator and two workers on loopback, killed and started at will.

GPUTEL_TEST_CITUS names the `bin` directory of a PostgreSQL that has the extension.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

import asyncpg
import msgspec

from gputel import store as store_package
from gputel.store import embedded_home, launch
from gputel.store.embedded_process import ENVIRONMENT, POLL_S, free_port, run, until
from gputel.store.settings import DatabaseSettings, StoreSettings

VARIABLE = "GPUTEL_TEST_CITUS"
WORKERS = 2
#: Few, so that a database is made quickly.
SHARDS = 4
STARTS_MAX = 500

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_preload_libraries": "citus",
    "max_connections": "200",
    "max_prepared_transactions": "200",
    "shared_buffers": "64MB",
    "fsync": "off",  # no test takes the power away
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    "citus.recover_2pc_interval": "1s",
    "citus.enable_statistics_collection": "off",
}


class Node:
    """One server of the cluster."""

    def __init__(self, binaries: Path, directory: Path) -> None:
        self.port = free_port()
        self._binaries = binaries
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def _command(self, program: str, *, dies_with_us: bool) -> list[str]:
        account = embedded_home._account()
        parent = os.getpid() if dies_with_us else 0
        ids = [str(number) for number in (account.uid, account.gid, parent)]
        return [sys.executable, "-I", "-S", launch.__file__, *ids, str(self._binaries / program)]

    async def initialise(self) -> None:
        """Make its cluster directory."""
        initdb = self._command("initdb", dies_with_us=False)
        options = ["-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        await run([*initdb, "-D", str(self._directory), *options])

    async def start(self) -> None:
        """Start it, or start it again after a kill."""
        for _ in range(STARTS_MAX):
            self._process = self._spawn()
            if await self._answers():
                return
            # Backends of a killed postmaster leave the shared memory a moment later.
            (self._directory / "postmaster.pid").unlink(missing_ok=True)
            await asyncio.sleep(POLL_S)
        raise AssertionError(self._log.read_text()[-2000:])

    @property
    def _log(self) -> Path:
        return self._directory.with_suffix(".log")

    def _spawn(self) -> subprocess.Popen[bytes]:
        settings = {**_SETTINGS, "port": str(self.port)}
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        postgres = self._command("postgres", dies_with_us=True)
        with self._log.open("ab") as output:
            return subprocess.Popen(
                [*postgres, "-D", str(self._directory), *flags],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=ENVIRONMENT,
                start_new_session=True,
            )

    async def _answers(self) -> bool:
        assert self._process is not None
        async with asyncio.timeout(60):
            while self._process.poll() is None:
                try:
                    await self.execute("postgres", "SELECT 1")
                except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    await asyncio.sleep(POLL_S)
                else:
                    return True
        return False

    async def end(self, number: signal.Signals) -> None:
        """Send the signal and wait until the postmaster is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            assert await until(lambda: process.poll() is not None, 20)

    async def execute(self, dbname: str, *statements: str) -> None:
        """Run statements as the superuser, each outside a transaction."""
        connection = await asyncpg.connect(
            host="127.0.0.1", port=self.port, user="postgres", database=dbname, ssl=False
        )
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def copy_database(self, statement: str) -> None:
        """Run it when nobody is in the template; Citus' daemon looks in now and then."""
        async with asyncio.timeout(60):
            while True:
                try:
                    return await self.execute("postgres", statement)
                except asyncpg.ObjectInUseError:
                    await asyncio.sleep(POLL_S)


class CitusCluster:
    """A coordinator and its workers; what the fixtures ask of a server."""

    def __init__(self, binaries: Path) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="gputel-citus-"))
        self._root.chmod(0o711)
        home = self._root / "nodes"
        home.mkdir()
        account = embedded_home._account()
        os.chown(home, account.uid, account.gid)
        self._binaries, self._home = binaries, home
        self.nodes = [Node(binaries, home / str(i)) for i in range(1 + WORKERS)]
        self.coordinator, *self.workers = self.nodes
        self._template = ""

    @property
    def admin(self) -> DatabaseSettings:
        """The superuser's way to the coordinator."""
        return DatabaseSettings(
            host="127.0.0.1", port=self.coordinator.port, dbname="postgres", sslmode="disable"
        )

    @property
    def settings(self) -> DatabaseSettings:
        """An owner's, without a database."""
        return msgspec.structs.replace(self.admin, user="gputel")

    async def start(self) -> None:
        """Make and start all nodes."""
        for node in self.nodes:
            await node.initialise()
            await node.start()
            await node.execute("postgres", "CREATE ROLE gputel LOGIN")

    async def stop(self) -> None:
        """End all nodes and remove them."""
        for node in self.nodes:
            await node.end(signal.SIGQUIT)
        shutil.rmtree(self._root, ignore_errors=True)

    async def create(self, *, extension: bool = True) -> DatabaseSettings:
        """An empty database on every node, with the extension unless that comes later."""
        return await self._create("template1", extension=extension)

    async def create_migrated(self) -> DatabaseSettings:
        """A migrated database: a copy, node by node, of one that is made once."""
        if not self._template:
            template = await self.create()
            store = await store_package.connect(template)
            await store.migrate(StoreSettings())
            await store.close()
            for node in self.nodes:
                # Citus' own daemon is to leave it, and nobody is to come.
                await node.execute(
                    "postgres",
                    f"ALTER DATABASE {template.dbname} ALLOW_CONNECTIONS false",
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    f"WHERE datname = '{template.dbname}'",
                )
            self._template = template.dbname
        return await self._create(self._template, extension=False)

    async def _create(self, template: str, *, extension: bool) -> DatabaseSettings:
        name = f"test_{secrets.token_hex(8)}"
        for node in self.nodes:
            # By files, and so with checkpoints: what a sequence of the template has logged ahead
            # is not logged in the copy, and a crash would turn it back.
            statement = f"CREATE DATABASE {name} OWNER gputel TEMPLATE {template}"
            await node.copy_database(f"{statement} STRATEGY file_copy")
        if extension:
            await self.extend(name)
        return msgspec.structs.replace(self.settings, dbname=name)

    async def extend(self, name: str) -> None:
        """What docs/how-to/citus.md tells the operator to do."""
        for node in self.nodes:
            await node.execute(name, "CREATE EXTENSION citus")
        await self.coordinator.execute(
            name,
            f"ALTER DATABASE {name} SET citus.shard_count = {SHARDS}",
            f"SELECT citus_set_coordinator_host('127.0.0.1', {self.coordinator.port})",
            *(f"SELECT citus_add_node('127.0.0.1', {worker.port})" for worker in self.workers),
        )

    @contextlib.asynccontextmanager
    async def another_worker(self, name: str) -> AsyncGenerator[Node]:
        """A server that is ready to become a worker of the database, and ends afterwards."""
        node = Node(self._binaries, self._home / secrets.token_hex(8))
        try:
            await node.initialise()
            await node.start()
            await node.execute("postgres", "CREATE ROLE gputel LOGIN")
            await node.execute("postgres", f"CREATE DATABASE {name} OWNER gputel")
            await node.execute(name, "CREATE EXTENSION citus")
            yield node
        finally:
            await node.end(signal.SIGQUIT)

    async def drop(self, name: str) -> None:
        """Remove the database everywhere."""
        for node in self.nodes:
            await node.execute("postgres", f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
