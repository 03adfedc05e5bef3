"""Does the collector stay as it is: memory, descriptors, threads, ticks?

    python -m benchmarks.soak [--json] [--minutes M]

`gputel collector --standalone` on the simulated driver, 8 GPUs at 10 Hz, scraped every ten
seconds as Prometheus would. What is measured begins after a warm-up, in which buffers that are
bounded fill up to their bounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.processes import Process
from benchmarks.report import add_arguments, emit
from benchmarks.sweep import GPUS, collector, in_driver_s, rss_mb, value

HZ: Final = 10
WARM_UP_S: Final = 45  # effective rates hold samples for up to 30 s
LOOK_S: Final = 1
SCRAPE_S: Final = 10
#: From the first quarter's median to the last one's, whatever the time between.
RSS_GROWTH_MB_MAX: Final = 2.0
RSS_MB_MAX: Final = 80.0
CORE_PERCENT_MAX: Final = 1.0  # beyond the driver's own time
SETTLE_S: Final = 2.0


@dataclass(frozen=True)
class Soaked:
    """What was seen between the warm-up and the end."""

    seconds: float
    rss_mb: Sequence[float]
    core_percent: float  # all of it
    driver_percent: float
    swept: int
    missed: int
    explained: int  # of the missed, by the time that the process waited for a core
    lost_rows: int
    descriptors: tuple[int, int]  # at the beginning, at the end
    threads: tuple[int, int]

    @property
    def growth_mb(self) -> float:
        """How much more memory the last quarter needed than the first."""
        quarter = max(1, len(self.rss_mb) // 4)
        first, last = self.rss_mb[:quarter], self.rss_mb[-quarter:]
        return statistics.median(last) - statistics.median(first)

    @property
    def flat(self) -> bool:
        """Neither memory nor descriptors nor threads grow."""
        return (
            self.growth_mb <= RSS_GROWTH_MB_MAX
            and self.descriptors[0] == self.descriptors[1]
            and self.threads[0] == self.threads[1]
        )

    @property
    def complete(self) -> bool:
        """Every tick was swept or counted as missed, none is missed that had a core, and every
        row of a sweep was taken."""
        ticks = self.seconds * HZ
        counted = abs(self.swept + self.missed - ticks) <= max(2, 0.001 * ticks)
        return counted and self.missed <= self.explained and self.lost_rows == 0


def soak(seconds: float, warm_up_s: float = WARM_UP_S) -> Soaked:
    """Run a collector for `warm_up_s` and `seconds` more."""
    with collector(f"gpus={GPUS},model=h100", hz=HZ) as (pid, page):
        process = Process(pid)
        _watch(pid, page, warm_up_s)
        before, started_s, cpu_s = page(), time.monotonic(), process.cpu_s()
        waited_s = _waited_s(pid)
        counts = _settled(pid)
        sizes_mb = _watch(pid, page, seconds)
        after, wall_s, spent_s = page(), time.monotonic() - started_s, process.cpu_s() - cpu_s
        waited_s = _waited_s(pid) - waited_s
        more = _settled(pid)

    def grown(name: str) -> int:
        return int(_total(after, name) - _total(before, name))

    fast = 'gputel_collector_{}_total{{cadence="fast"}}'
    return Soaked(
        seconds=wall_s,
        rss_mb=sizes_mb,
        core_percent=100 * spent_s / wall_s,
        driver_percent=100 * (in_driver_s(after) - in_driver_s(before)) / wall_s,
        swept=int(value(after, fast.format("sweeps")) - value(before, fast.format("sweeps"))),
        missed=int(
            value(after, fast.format("missed_ticks")) - value(before, fast.format("missed_ticks"))
        ),
        explained=int(waited_s * HZ),
        lost_rows=grown("gputel_ring_dropped_rows_total"),
        descriptors=(counts[0], more[0]),
        threads=(counts[1], more[1]),
    )


def _watch(pid: int, page: Callable[[], str], seconds: float) -> list[float]:
    """The memory, look by look; a scrape now and then."""
    sizes_mb = []
    ends_s = time.monotonic() + seconds
    scrape_s = time.monotonic() + SCRAPE_S
    while (now_s := time.monotonic()) < ends_s:
        time.sleep(min(LOOK_S, max(0.0, ends_s - now_s)))
        sizes_mb.append(rss_mb(pid))
        if time.monotonic() >= scrape_s:
            scrape_s += SCRAPE_S
            page()
    return sizes_mb


def _settled(pid: int) -> tuple[int, int]:
    """Descriptors and threads, the fewest in SETTLE_S: a scrape's connection and a look at the
    kubelet's socket come and go."""
    descriptors, threads = [], []
    ends_s = time.monotonic() + SETTLE_S
    while time.monotonic() < ends_s:
        descriptors.append(sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()))
        threads.append(sum(1 for _ in Path(f"/proc/{pid}/task").iterdir()))
        time.sleep(0.05)
    return min(descriptors), min(threads)


def _waited_s(pid: int) -> float:
    """Seconds for which a thread could run, and had to wait for a core (schedstat)."""
    total_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total_ns += int((task / "schedstat").read_text().split()[1])
        except FileNotFoundError:  # it has just ended
            continue
    return total_ns / 1e9


def _total(page: str, name: str) -> float:
    """The sum of a counter over its labels."""
    rows = [line for line in page.splitlines() if line.startswith((name + "{", name + " "))]
    assert rows, name
    return sum(float(row.rpartition(" ")[2]) for row in rows)


def main() -> None:
    """Run for as long as is asked, and say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--minutes", type=float, default=30)
    minutes = parser.parse_args().minutes
    seen = soak(60 * minutes)
    correct = seen.complete and seen.flat
    seconds = round(seen.seconds)
    emit(
        "soak.rss_growth_mb", seen.growth_mb, "MB", correct,
        peak_mb=max(seen.rss_mb), seconds=seconds, target=RSS_GROWTH_MB_MAX,
    )  # fmt: skip
    emit("soak.rss_mb", max(seen.rss_mb), "MB", correct, seconds=seconds, target=RSS_MB_MAX)
    emit(
        "soak.core_percent", seen.core_percent - seen.driver_percent, "%", correct,
        in_driver_percent=seen.driver_percent, target=CORE_PERCENT_MAX,
    )  # fmt: skip
    emit(
        "soak.missed_ticks", seen.missed, "", correct,
        swept=seen.swept, explained_by_waiting_for_a_core=seen.explained, target=0,
    )  # fmt: skip
    emit("soak.lost_samples", seen.lost_rows, "", correct, target=0)
    emit("soak.descriptors", seen.descriptors[1], "", correct, first=seen.descriptors[0])
    emit("soak.threads", seen.threads[1], "", correct, first=seen.threads[0])


if __name__ == "__main__":
    main()
