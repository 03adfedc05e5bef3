"""A VictoriaMetrics on loopback with a data folder of its own, to be filled and weighed."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

import numpy.typing as npt

from gputel.clock import NS_PER_MS

BINARY = "victoria-metrics"  # Debian's package of that name
READY_S = 20.0
MERGED_S = 60.0
POLL_S = 0.1


class VictoriaMetrics:
    """A running server."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, body: bytes | None = None) -> str:
        """The answer to a GET, or to a POST of `body`."""
        with urllib.request.urlopen(self._url + path, body, timeout=60) as answer:
            text: str = answer.read().decode()
            return text

    def import_series(
        self, name: str, times_ns: npt.NDArray[Any], values: npt.NDArray[Any]
    ) -> None:
        """One series through the import API; its times are milliseconds there."""
        line = {
            "metric": {"__name__": name, "gpu": "0"},
            "values": values.tolist(),
            "timestamps": (times_ns // NS_PER_MS).tolist(),
        }
        self.get("/api/v1/import", json.dumps(line).encode())

    def exported(self, name: str) -> list[float]:
        """The values of a series, as the server has them."""
        lines = self.get(f"/api/v1/export?match[]={name}").splitlines()
        return [value for line in lines for value in json.loads(line)["values"]]

    def merged_bytes(self) -> int:
        """Bytes of the samples after a forced merge; the index of names is not counted."""
        self.get("/internal/force_flush")
        self.get("/internal/force_merge")
        end = time.monotonic() + MERGED_S
        before = -1
        while time.monotonic() < end:
            merging = sum(self._metric("vm_active_merges", "storage"))
            size = int(sum(self._metric("vm_data_size_bytes", "storage")))
            if not merging and size == before:
                return size
            before = size
            time.sleep(1.0)  # a merge that was asked for begins a little later
        raise TimeoutError(f"{BINARY} still merges after {MERGED_S} s")

    def _metric(self, name: str, kind: str) -> Iterable[float]:
        found = re.finditer(rf'^{name}{{type="{kind}/\w+"}} (\S+)$', self.get("/metrics"), re.M)
        return [float(match[1]) for match in found]


def installed() -> str | None:
    """The server's program, or None."""
    return shutil.which(BINARY)


@contextlib.contextmanager
def running(program: str) -> Iterator[VictoriaMetrics]:
    """A server that ends, with its data, when the context does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as scratch:
        command = [program, f"-storageDataPath={scratch}/data", f"-httpListenAddr={address}"]
        command += ["-retentionPeriod=100y"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            server = VictoriaMetrics(f"http://{address}")
            _wait_until_ready(server, process)
            yield server
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait_until_ready(server: VictoriaMetrics, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + READY_S
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            server.get("/health")
            return
        time.sleep(POLL_S)
    raise RuntimeError(f"{BINARY} did not answer within {READY_S} s")
