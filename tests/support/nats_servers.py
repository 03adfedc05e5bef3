"""The nats-servers of `gputel up --cluster`, started and killed without an event loop."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gputel.services import nats

READY_S = 60.0
POLL_S = 0.05


class NatsServers:
    """`count` servers with their files in `directory`. Methods block.

    They end with the thread that calls `launch`, also when that is killed.
    """

    def __init__(self, directory: Path, count: int, changed: Mapping[str, Any]) -> None:
        self.servers = nats.make_servers(directory, count)
        self._changed = changed
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * count
        self.kills = 0

    @property
    def count(self) -> int:
        """How many there are, running or not."""
        return len(self.servers)

    @property
    def urls(self) -> list[str]:
        """Where clients connect, of all."""
        return [server.url for server in self.servers]

    def start(self) -> None:
        """Start all of them."""
        for index in range(self.count):
            self.launch(index)
        self.wait_ready()

    def launch(self, index: int) -> None:
        """Start one, new or again."""
        server = self.servers[index]
        server.directory.mkdir(exist_ok=True)
        server.config_path.write_text(json.dumps(json.loads(server.config()) | dict(self._changed)))
        self._processes[index] = subprocess.Popen(
            server.command(),
            cwd=server.directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait_ready(self) -> None:
        """Return once every server that runs is well, and has caught up with the others."""
        deadline = time.monotonic() + READY_S
        for server, process in zip(self.servers, self._processes, strict=True):
            while process is not None and (problem := nats.find_problem(server.monitor_url)):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ChildProcessError(f"{server.name}: {problem}")
                time.sleep(POLL_S)

        # A leader that has not heard of a server yet places no replica there.
        while not self._all_are_known():
            if time.monotonic() > deadline:
                raise ChildProcessError("the servers' leader does not see all of them")
            time.sleep(POLL_S)

    def _all_are_known(self) -> bool:
        """Whether the leader of the cluster sees every server that runs."""
        running = [
            server
            for server, process in zip(self.servers, self._processes, strict=True)
            if process is not None
        ]
        for server in running:
            try:
                cluster = nats.ask(server.monitor_url, "/jsz").get("meta_cluster") or {}
            except (OSError, http.client.HTTPException):
                return False
            if cluster.get("leader") == server.name:
                replicas = cluster.get("replicas") or []
                seen = [of for of in replicas if of.get("current") and not of.get("offline")]
                return len(seen) >= len(running) - 1
        return self.count == 1

    def kill(self, index: int) -> None:
        """End one at once."""
        process, self._processes[index] = self._processes[index], None
        if process is not None:
            self.kills += 1
            process.send_signal(signal.SIGKILL)
            process.wait()

    def stop(self) -> None:
        """End all."""
        for index in range(self.count):
            self.kill(index)


@contextmanager
def running(directory: Path, count: int, **changed: Any) -> Iterator[NatsServers]:
    """Servers that run while the context does; `changed` goes over their configuration."""
    servers = NatsServers(directory, count, changed)
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()
