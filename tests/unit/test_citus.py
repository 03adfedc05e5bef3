"""What is said to Citus, without one."""

from __future__ import annotations

from functools import partial
from typing import Any

import asyncpg
import pytest

from gputel.errors import DatabaseUnavailable
from gputel.services import doctor
from gputel.services.collector_report import Samples
from gputel.store import citus, schema
from gputel.store.citus import Cluster


class Catalog:
    """A session on a database whose catalogs say this; remembers what is executed."""

    def __init__(
        self,
        version: str | None,
        *,
        group: int = 0,
        workers: int = 2,
        present: tuple[str, ...] = (),
        left: tuple[str, ...] = (),
        lacking: bool = False,
    ) -> None:
        self._answers = {
            "extversion": version,
            "groupid": group,
            "count(*)": workers,
            "EXISTS": lacking,
        }
        self._present = present
        self._left = left
        self.executed: list[str] = []

    async def fetchval(self, query: str) -> object:
        return self._answers[query.split()[1]]

    async def fetch(self, query: str, *tables: list[str]) -> list[tuple[str]]:
        assert "pg_dist_partition" in query
        return [(name,) for name in (self._left if tables else self._present)]

    async def execute(self, query: str, *, timeout: float | None = None) -> None:
        self.executed.append(query)

    def transaction(self) -> Catalog:
        return self

    async def __aenter__(self) -> None:
        self.executed.append("BEGIN")

    async def __aexit__(self, *_: object) -> None:
        self.executed.append("COMMIT")


async def distribute(catalog: Any) -> None:
    await citus.distribute(
        catalog,
        ("gpu", "metric"),
        ("gpu_seen", "event"),
        partial(catalog.execute, "THAW"),
        partial(catalog.execute, "CREATE OR REPLACE FUNCTION"),
        1.0,
    )


async def test_plain_postgresql_is_left_alone() -> None:
    catalog: Any = Catalog(None)
    assert await citus.find(catalog) is None
    await distribute(catalog)
    assert catalog.executed == []


async def test_all_tables_are_handed_over_in_one_transaction() -> None:
    catalog: Any = Catalog("14.0-1")
    assert await citus.find(catalog) == Cluster("14.0-1", 2)
    await distribute(catalog)
    begin, end = catalog.executed.index("BEGIN"), catalog.executed.index("COMMIT")
    assert catalog.executed[begin + 1 : end] == [
        "SET LOCAL citus.multi_shard_modify_mode = 'sequential'",
        "SET LOCAL client_min_messages = warning",
        "THAW",
        "SELECT create_reference_table('gpu')",
        "SELECT create_reference_table('metric')",
        "SELECT create_distributed_table('gpu_seen', 'gpu_id', colocate_with => 'none')",
        "SELECT create_distributed_table('event', 'gpu_id', colocate_with => 'gpu_seen')",
    ]
    assert catalog.executed[end + 1 :] == []


async def test_only_what_is_missing_is_handed_over() -> None:
    catalog: Any = Catalog("13.2-1", present=("gpu", "metric", "gpu_seen"), left=("event",))
    await distribute(catalog)
    said = [statement for statement in catalog.executed if statement.startswith("SELECT")]
    assert said == [
        "SELECT create_distributed_table('event', 'gpu_id', colocate_with => 'gpu_seen')",
        "SELECT truncate_local_data_after_distributing_table('event')",
    ]
    whole: Any = Catalog("13.2-1", present=("gpu", "metric", "gpu_seen", "event"))
    await distribute(whole)
    assert whole.executed == []


async def test_rows_that_a_killed_migration_left_on_the_coordinator_are_removed() -> None:
    present = ("gpu", "metric", "gpu_seen", "event")
    catalog: Any = Catalog("14.0-1", present=present, left=("gpu", "event"))
    await distribute(catalog)
    assert catalog.executed == [
        "SELECT truncate_local_data_after_distributing_table('gpu')",
        "SELECT truncate_local_data_after_distributing_table('event')",
    ]


async def test_functions_that_only_the_coordinator_has_are_made_anew() -> None:
    present = ("gpu", "metric", "gpu_seen", "event")
    catalog: Any = Catalog("14.0-1", present=present, lacking=True)
    await distribute(catalog)
    assert catalog.executed == ["BEGIN", "CREATE OR REPLACE FUNCTION", "COMMIT"]


async def test_without_workers_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    catalog: Any = Catalog("14.0-1", workers=0)
    await distribute(catalog)
    assert "no worker yet" in caplog.text


@pytest.mark.parametrize("version", ["11.3-1", "10.2-4", "9.5-1"])
async def test_an_old_extension_is_refused(version: str) -> None:
    catalog: Any = Catalog(version)
    with pytest.raises(DatabaseUnavailable, match=r"12\.0 or later"):
        await citus.find(catalog)


@pytest.mark.parametrize("version", ["12.0-1", "12.1-1", "13.0-1", "14.0-1", "15.0-1"])
async def test_newer_extensions_are_taken(version: str) -> None:
    catalog: Any = Catalog(version)
    assert await citus.find(catalog) == Cluster(version, 2)


async def test_a_worker_is_refused() -> None:
    catalog: Any = Catalog("14.0-1", group=3)
    with pytest.raises(DatabaseUnavailable, match="to the coordinator"):
        await citus.find(catalog)


def test_what_a_copy_says_is_understood() -> None:
    said = 'duplicate key value violates unique constraint "sample_hot_fast_pkey_102010"'
    told = citus.error_of_copy(asyncpg.InternalServerError(said))
    assert isinstance(told, asyncpg.UniqueViolationError)
    assert str(told) == said
    said = 'no partition of relation "sample_chunk_102010" found for row'
    told = citus.error_of_copy(asyncpg.InternalServerError(said))
    assert isinstance(told, asyncpg.CheckViolationError)
    assert citus.error_of_copy(asyncpg.InternalServerError("could not open relation")) is None


def test_what_others_are_colocated_with_comes_first() -> None:
    first, *others = citus.statements((), schema.DISTRIBUTED_TABLES, ())
    assert "colocate_with => 'none'" in first
    assert others
    assert all(f"=> '{schema.DISTRIBUTED_TABLES[0]}'" in statement for statement in others)


def test_doctor_says_over_how_many_nodes() -> None:
    (check,) = doctor._store({"sink": Samples("gputel_store_workers 2.0\n")})
    assert (check.well, check.finding) == (True, "distributed by Citus over 2 nodes")
    (check,) = doctor._store({"sink": Samples("gputel_store_workers 0.0\n")})
    assert check.finding == "one PostgreSQL"
    assert doctor._store({"sink": Samples("gputel_sink_frames_total 1\n")}) == []
    assert doctor._store({}) == []
