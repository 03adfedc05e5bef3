"""What the kernel knows of other processes: their CPU time and memory (proc(5))."""

from __future__ import annotations

import os
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Process:
    """One process, alive."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._stat = Path(f"/proc/{pid}/stat")
        self._schedule = Path(f"/proc/{pid}/schedstat")

    def rss_mb(self) -> float:
        """Memory it holds now."""
        return self._memory_mb("VmRSS")

    def peak_rss_mb(self) -> float:
        """The most it has held."""
        return self._memory_mb("VmHWM")

    def cpu_s(self, *, with_ended_children: bool = False) -> float:
        """CPU seconds so far, user's and system's."""
        fields = self._stat.read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11 : 15 if with_ended_children else 13])) * _TICK_S

    def waited_s(self) -> float:
        """Seconds for which its main thread could run, and had to wait for a core."""
        return int(self._schedule.read_text().split()[1]) / 1e9

    def _memory_mb(self, key: str) -> float:
        line = next(x for x in self._status.read_text().splitlines() if x.startswith(key))
        return int(line.split()[1]) / 1024


def children(pid: int) -> list[Process]:
    """The processes whose parent is `pid`."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
        if parent == pid:
            found.append(Process(int(place.name)))
    return found


def family_cpu_s(pid: int) -> float:
    """CPU seconds of a process and of its children, those included that have ended."""
    total = Process(pid).cpu_s(with_ended_children=True)
    for child in children(pid):
        try:
            total += child.cpu_s()
        except OSError:
            continue
    return total
