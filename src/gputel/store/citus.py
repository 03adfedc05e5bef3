"""Citus: where the database has the extension, it keeps the large tables on its workers.

    reference       a copy on every node, changed on all of them at once
    distributed     by gpu_id, colocated: what is known of one GPU is on one node, so that a
                    statement about it, and a join of two such tables, never leaves that node
    the rest        on the coordinator: offsets, marks, dead letters, the list of partitions

A transaction of several nodes is committed in two phases, so what is said of transactions
elsewhere holds; but snapshots are a node's own: one statement about many GPUs may see one GPU
before a transaction and another after it, never half of one GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import asyncpg

from gputel.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from gputel.store.connection import Connection

log = logging.getLogger(__name__)

#: It hands a transaction's isolation level on to the workers (since 11.2) and takes identity
#: columns of partitioned tables.
VERSION_MIN: Final = (12, 0)
DISTRIBUTION_COLUMN: Final = "gpu_id"

#: One connection a session and node: one snapshot, and one prepared transaction a commit. Several
#: would only compete for the cores that a few sinks and queries keep busy anyway. And timeouts
#: that a transaction sets for itself hold on the workers, too.
SESSION: Final = {
    "citus.max_adaptive_executor_pool_size": "1",
    "citus.propagate_set_commands": "local",
}

# How messages begin that COPY passes on from a worker without their SQLSTATE.
_OF_COPY: Final[tuple[tuple[str, type[asyncpg.PostgresError]], ...]] = (
    ("duplicate key value", asyncpg.UniqueViolationError),
    ("no partition of relation", asyncpg.CheckViolationError),
    ("deadlock detected", asyncpg.DeadlockDetectedError),
    ("could not serialize access", asyncpg.SerializationError),
    ("canceling statement due to lock timeout", asyncpg.LockNotAvailableError),
)

# Tables that are distributed, and have rows of their own or of a partition beside.
_LEFT: Final = """
SELECT name FROM unnest($1::text[]) AS name JOIN pg_dist_partition p
    ON p.logicalrelid = name::regclass
WHERE pg_relation_size(name::regclass) > 0 OR EXISTS (
    SELECT FROM pg_inherits WHERE inhparent = name::regclass AND pg_relation_size(inhrelid) > 0)
"""


# Is one of our functions on the coordinator alone?
_FUNCTIONS_LACKING: Final = """
SELECT EXISTS (
    SELECT FROM pg_proc p
    WHERE p.pronamespace = current_schema()::regnamespace AND p.proname LIKE 'gputel%'
        AND NOT EXISTS (SELECT FROM pg_dist_object o
                        WHERE o.classid = 'pg_proc'::regclass AND o.objid = p.oid)
)
"""


class Cluster(NamedTuple):
    """What a coordinator says of its cluster."""

    version: str
    #: Nodes that hold shards; the coordinator is one only if it was asked to be.
    workers: int


async def find(connection: Connection) -> Cluster | None:
    """The cluster whose coordinator this is; None: plain PostgreSQL.

    DatabaseUnavailable: a worker, or an extension that is too old.
    """
    version = await connection.fetchval(
        "SELECT extversion FROM pg_extension WHERE extname = 'citus'"
    )
    if version is None:
        return None
    if _numbers(version) < VERSION_MIN:
        raise DatabaseUnavailable(
            f"Citus {version} is too old",
            hint=f"gputel needs Citus {'.'.join(map(str, VERSION_MIN))} or later: ALTER EXTENSION "
            "citus UPDATE, after its package",
        )
    if await connection.fetchval("SELECT groupid FROM pg_dist_local_group") != 0:
        raise DatabaseUnavailable(
            "this is a worker of a Citus cluster, and offsets are kept by the coordinator",
            hint="point `database` to the coordinator: SELECT nodename, nodeport FROM "
            "pg_dist_node WHERE groupid = 0",
        )
    workers = await connection.fetchval(
        "SELECT count(*) FROM pg_dist_node WHERE noderole = 'primary' AND isactive "
        "AND shouldhaveshards"
    )
    return Cluster(version, workers)


async def distribute(
    connection: Connection,
    reference: Sequence[str],
    distributed: Sequence[str],
    thaw: Callable[[], Awaitable[None]],
    make_functions: Callable[[], Awaitable[None]],
    timeout_s: float,
) -> None:
    """Hand the tables to the workers, those that are not there yet, with the rows they have.

    All at once or none; whoever uses the tables waits. Without the extension nothing is done.
    `thaw`: lets frozen partitions take rows, for they are copied to the workers.
    `make_functions`: makes ours anew, for Citus hands on those that are made while it is there, and
    of those before only what a view names, not what that calls in turn.
    """
    cluster = await find(connection)
    if cluster is None:
        return
    present = {
        row[0]
        for row in await connection.fetch(
            "SELECT logicalrelid::regclass::text FROM pg_dist_partition"
        )
    }
    todo = statements(reference, distributed, present)
    if todo:
        if not cluster.workers:
            log.warning("Citus has no worker yet: all shards are made on the coordinator")
        async with connection.transaction():
            # One connection a node, as a table that was just made needs.
            await connection.execute("SET LOCAL citus.multi_shard_modify_mode = 'sequential'")
            await connection.execute("SET LOCAL client_min_messages = warning")
            await thaw()
            for statement in todo:
                await connection.execute(statement, timeout=timeout_s)
        log.info(
            "Citus %s keeps %d tables on %d nodes",
            cluster.version,
            len(distributed),
            cluster.workers,
        )
    if await connection.fetchval(_FUNCTIONS_LACKING):
        async with connection.transaction():
            await make_functions()
    # The shards have the rows of these now, perhaps since a migration that was killed here.
    for (table,) in await connection.fetch(_LEFT, [*reference, *distributed]):
        await connection.execute(
            f"SELECT truncate_local_data_after_distributing_table('{table}')", timeout=timeout_s
        )


def statements(
    reference: Sequence[str], distributed: Sequence[str], present: Collection[str]
) -> list[str]:
    """What is to be said to Citus, when it has the tables `present` already.

    The first of `distributed` is what the others are colocated with.
    """
    first = distributed[0]
    todo = [
        f"SELECT create_reference_table('{table}')" for table in reference if table not in present
    ]
    for table in distributed:
        if table not in present:
            with_whom = "none" if table == first else first
            todo.append(
                f"SELECT create_distributed_table('{table}', '{DISTRIBUTION_COLUMN}', "
                f"colocate_with => '{with_whom}')"
            )
    return todo


async def installed(connection: Connection) -> bool:
    """Has this database the extension?"""
    found = await connection.fetchval("SELECT 1 FROM pg_extension WHERE extname = 'citus'")
    return found is not None


async def lock_partition(connection: Connection, parent: str, name: str) -> None:
    """Wait, in a transaction that drops `name`, until nobody else has its shards.

    A lock of the table alone would not do: a COPY in progress holds only the parent's, and a
    transaction whose second phase a worker has missed only those of the shards. Their rows
    would look like none, and be dropped.
    """
    await connection.execute("SET LOCAL citus.multi_shard_modify_mode = 'sequential'")
    await connection.execute(f"LOCK TABLE ONLY {parent} IN ACCESS EXCLUSIVE MODE")
    # Changes nothing, and locks every shard.
    await connection.execute(f"ALTER TABLE {name} ALTER COLUMN {DISTRIBUTION_COLUMN} SET NOT NULL")


def error_of_copy(error: asyncpg.InternalServerError) -> asyncpg.PostgresError | None:
    """What a worker said: in a COPY Citus passes all errors on as internal ones.

    None: not known, which it also is where the servers speak another language than English.
    """
    said = str(error)
    return next((kind(said) for beginning, kind in _OF_COPY if said.startswith(beginning)), None)


def _numbers(version: str) -> tuple[int, ...]:
    """14.0-1 as (14, 0)."""
    return tuple(int(part) for part in version.partition("-")[0].split(".") if part.isdigit())
