"""The way to PostgreSQL: one pool, and its errors in our words."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg

from gputel.errors import DatabaseUnavailable
from gputel.store import citus, schema
from gputel.store.settings import DatabaseSettings, StoreSettings

CONNECT_TIMEOUT_S: Final = 10.0
COMMAND_TIMEOUT_S: Final = 120.0
POOL_SIZE_DEFAULT: Final = 8

# Whatever asyncpg and the network raise.
_FOREIGN: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)

# asyncpg's classes are generic in its stubs only.
if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection


class Store:
    """A pool of sessions on one database. Made by `connect`."""

    def __init__(
        self,
        settings: DatabaseSettings,
        pool: asyncpg.Pool[asyncpg.Record],
        cluster: citus.Cluster | None = None,
    ) -> None:
        self.settings = settings
        #: What the database was part of when it was connected to; None: plain PostgreSQL.
        self.cluster = cluster
        self._pool = pool

    @property
    def workers(self) -> int:
        """Over how many nodes Citus distributes the tables; 0: plain PostgreSQL."""
        return self.cluster.workers if self.cluster else 0

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncGenerator[Connection]:
        """A session from the pool; whatever says that the server is away, refuses us or
        lacks rights becomes DatabaseUnavailable, errors of the data pass unchanged."""
        with _opening(self.settings):
            acquired = await self._pool.acquire(timeout=CONNECT_TIMEOUT_S)
        try:
            with translated(self.settings), unbroken(acquired):  # type: ignore[arg-type]
                yield acquired  # type: ignore[misc]  # a proxy with the same methods
        finally:
            with translated(self.settings):
                await self._pool.release(acquired, timeout=CONNECT_TIMEOUT_S)

    async def dedicated(self) -> Connection:
        """A session outside the pool, for locks that live as long as it; the caller closes it."""
        return await _open(self.settings, self.cluster)

    async def migrate(self, settings: StoreSettings) -> None:
        """Bring the schema up to date; safe with several processes at once."""
        connection = await self.dedicated()
        try:
            with translated(self.settings):
                await schema.migrate(connection)
        finally:
            await _close(connection)

    def unavailable(self, error: BaseException) -> DatabaseUnavailable:
        """`error` for whoever may try again later."""
        return _unavailable(error, self.settings)

    async def close(self) -> None:
        """Close all sessions, those in use after a moment."""
        try:
            async with asyncio.timeout(5):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()


async def connect(settings: DatabaseSettings, *, size_max: int = POOL_SIZE_DEFAULT) -> Store:
    """Connect and check that the server answers; DatabaseUnavailable with what to do.

    `size_max` bounds the sessions held; they are opened when needed, and again after the
    server was away.
    """
    first = await _open(settings)
    try:
        with translated(settings):
            cluster = await citus.find(first)
    finally:
        await _close(first)
    with translated(settings):
        pool = await asyncpg.create_pool(
            **_arguments(settings, cluster),
            min_size=0,
            max_size=size_max,
            max_inactive_connection_lifetime=60,
        )
    return Store(settings, pool, cluster)


@contextlib.contextmanager
def translated(settings: DatabaseSettings) -> Generator[None]:
    """Turn errors about the server, not about the data, into DatabaseUnavailable."""
    try:
        yield
    except _FOREIGN as error:
        explained = explain(error, settings)
        if explained is None:
            raise
        raise explained from error


@contextlib.contextmanager
def unbroken(session: Connection) -> Generator[None]:
    """End `session` when what is done with it is interrupted.

    A task that is cancelled leaves a statement behind whose answer nobody has read: whoever
    used the session next would get it. The cancellation passes on, whatever error cleaning
    up has put in its place: swallowed, it would leave a task that can't be stopped.
    """
    try:
        yield
    except Exception as error:
        if _out_of_step(error):
            _end(session)
            raise
        task = asyncio.current_task()
        if task is None or not task.cancelling():
            raise
        _end(session)
        raise asyncio.CancelledError from error
    except BaseException:
        _end(session)
        raise


def _end(session: Connection) -> None:
    # The pool's proxy of a session that was lost meanwhile refuses even that.
    with contextlib.suppress(asyncpg.InterfaceError):
        session.terminate()


def _out_of_step(error: BaseException) -> bool:
    """Does asyncpg no longer know what its session is at? A rollback that it then refuses
    hides its first error."""
    return isinstance(error, asyncpg.InternalClientError) or (
        isinstance(error, asyncpg.InterfaceError)
        and ("operation is in progress" in str(error) or "released back" in str(error))
    )


@contextlib.contextmanager
def _opening(settings: DatabaseSettings) -> Generator[None]:
    """Whatever goes wrong before the first statement is the server's."""
    try:
        yield
    except _FOREIGN as error:
        raise _unavailable(error, settings) from error


def _unavailable(error: BaseException, settings: DatabaseSettings) -> DatabaseUnavailable:
    return explain(error, settings) or DatabaseUnavailable(
        f"{settings!r}: {' '.join(str(error).split())}", hint="it is tried again"
    )


def explain(error: BaseException, settings: DatabaseSettings) -> DatabaseUnavailable | None:
    """`error` as DatabaseUnavailable with what to do; None when it is about the data."""
    message, hint = _explanation(error, settings)
    if not message:
        return None
    return DatabaseUnavailable(f"{settings!r}: {message}", hint=hint)


def _explanation(error: BaseException, settings: DatabaseSettings) -> tuple[str, str]:
    where = f"{settings.host}:{settings.port}"
    # PostgreSQL's own details and hints come as lines of their own.
    said = " ".join(str(error).split())
    match error:
        case asyncpg.InvalidAuthorizationSpecificationError():  # wrong password included
            return said, "check database.user and database.password, and pg_hba.conf"
        case asyncpg.InvalidCatalogNameError():
            return said, f"create it: createdb -O {settings.user} {settings.dbname}"
        case asyncpg.InsufficientPrivilegeError():
            return said, (
                f"gputel needs its own database: ALTER DATABASE {settings.dbname} "
                f"OWNER TO {settings.user}"
            )
        case asyncpg.ReadOnlySQLTransactionError():
            return said, "this is a standby or read-only: point `database` to the primary"
        case asyncpg.TooManyConnectionsError():
            return said, "raise max_connections of the server"
        case asyncpg.DiskFullError():
            return f"its disk is full: {said}", (
                "make room on the database server; nothing is lost meanwhile"
            )
        case asyncpg.OutOfMemoryError():
            return said, "the database server needs more memory, or fewer connections"
        case asyncpg.InsufficientResourcesError():
            return said, "raise the limit of the database server that it names"
        case asyncpg.PostgresSystemError() | asyncpg.DataCorruptedError():
            return said, "look at the server's log: its disk may be failing"
        case asyncpg.CannotConnectNowError() | asyncpg.OperatorInterventionError():
            return said, "the server is starting or stopping: it is tried again"
        case asyncpg.PostgresConnectionError():
            return said or "the connection was lost", "is the server running?"
        case asyncpg.ClientConfigurationError():
            return said, "check database.sslmode and its certificates"
        case asyncpg.InterfaceError() if "clos" in str(error):
            return said, "is the server running?"
        case _ if _out_of_step(error):
            return f"the session is out of step: {said}", "it is opened anew and tried again"
        case TimeoutError():
            return f"no answer from {where}", "is the server running, and is the port right?"
        case OSError():
            reason = error.strerror or str(error)
            return f"can't connect to {where}: {reason}", "is PostgreSQL running there?"
    return "", ""


def _arguments(settings: DatabaseSettings, cluster: citus.Cluster | None) -> dict[str, Any]:
    return {
        "host": settings.host,
        "port": settings.port,
        "user": settings.user,
        "password": settings.password,
        "database": settings.dbname,
        "ssl": settings.sslmode,
        "timeout": CONNECT_TIMEOUT_S,
        "command_timeout": COMMAND_TIMEOUT_S,
        # A sink whose machine is gone must not hold its locks for long.
        "server_settings": {
            "application_name": "gputel",
            "timezone": "UTC",
            "tcp_keepalives_idle": "3",
            "tcp_keepalives_interval": "1",
            "tcp_keepalives_count": "2",
            # Nor one that is gone while its statement waits for another's lock.
            "client_connection_check_interval": "1s",
            **(citus.SESSION if cluster else {}),
        },
    }


async def _open(settings: DatabaseSettings, cluster: citus.Cluster | None = None) -> Connection:
    with _opening(settings):
        connection: Connection = await asyncpg.connect(**_arguments(settings, cluster))
        return connection


async def _close(connection: Connection) -> None:
    try:
        await connection.close(timeout=2)
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()
