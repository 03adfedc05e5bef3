"""Process accounting: what the source saw on the GPUs, with its names, for frames and exporter.

A task of its own asks the source and reads /proc on a thread; the pump and a scrape take what
is there. Everything is bounded, and what is over a bound is counted.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gputel import wire
from gputel.clock import NS_PER_S, Clock
from gputel.collector.blocking import DaemonCaller
from gputel.collector.exporter.exposition import UUID_LABEL, Family, Row
from gputel.collector.proc import read_process
from gputel.inventory import Gpu, ProcessSample
from gputel.observe import Telemetry
from gputel.sources import Source

log = logging.getLogger(__name__)

POLL_S: Final = 1.0
PROC_DEADLINE_S: Final = 2.0
PENDING_MAX: Final = wire.PROCESSES_MAX
SERIES_MAX: Final = 1024
#: A process is shown for so many of the source's periods after it was last seen.
STALE_PERIODS: Final = 2.5

MEMORY: Final = "gputel_process_memory_used_bytes"
SM_UTILIZATION: Final = "gputel_process_sm_utilization_ratio"

#: Older than this none of a GPU's processes is shown (ns, monotonic), and who they are.
_Seen = tuple[int, list[ProcessSample]]


class ProcessAccounting:
    """`run` it; `take` what goes into frames; the rest is the exporter's `LabelProvider`.

    period_s   how often the source looks at processes
    publish    False when nobody takes
    """

    def __init__(
        self,
        source: Source,
        clock: Clock,
        telemetry: Telemetry,
        *,
        period_s: float,
        publish: bool,
        proc_root: Path = Path("/proc"),
    ) -> None:
        self._source = source
        self._clock = clock
        self._stale_ns = round(max(STALE_PERIODS * period_s, 2 * POLL_S) * NS_PER_S)
        self._publish = publish
        self._proc_root = proc_root
        self._proc = DaemonCaller("proc")
        self._pending: deque[ProcessSample] = deque()
        self._gpus: Callable[[], Sequence[Gpu]] = tuple
        self._seen: dict[str, _Seen] = {}
        self._generation = 0
        self._failing = False
        self.samples = 0
        self.dropped = 0
        self.unnamed = 0
        self.hidden = 0
        self._describe(telemetry)

    async def run(self, gpus: Callable[[], Sequence[Gpu]]) -> None:
        """Account until cancelled; `gpus` returns those of this node as they are now."""
        self._gpus = gpus
        while True:
            await self._clock.sleep(POLL_S)
            try:
                await self.poll()
            except Exception:  # a defect here must not take the samples down with it
                if not self._failing:
                    log.exception("process accounting fails")
                self._failing = True
            else:
                self._failing = False

    async def poll(self) -> None:
        """Take what the source saw since the last call."""
        offered = self._source.processes()
        seen = [_sane(sample) for sample in offered[:PENDING_MAX]]
        self.dropped += len(offered) - len(seen)
        if not seen:
            return
        try:
            named = await self._proc.call(lambda: self._named(seen), PROC_DEADLINE_S)
        except TimeoutError:
            named = seen
        self.samples += len(named)
        self.unnamed += sum(not sample.name for sample in named)
        self._show(named)
        if self._publish:
            room = PENDING_MAX - len(self._pending)
            self._pending += named[:room]
            self.dropped += max(0, len(named) - room)

    def take(self) -> list[ProcessSample]:
        """What is to be published, once."""
        taken = list(self._pending)
        self._pending.clear()
        return taken

    def _named(self, seen: Sequence[ProcessSample]) -> list[ProcessSample]:
        """On the thread. A source that knows the names itself (a simulation) keeps them."""
        facts = {s.pid: read_process(self._proc_root, s.pid) for s in seen if not s.name}
        return [s if s.name else dataclasses.replace(s, **facts[s.pid]._asdict()) for s in seen]

    # -- the exporter's side -----------------------------------------------------------

    def _show(self, named: Sequence[ProcessSample]) -> None:
        by_gpu: dict[str, list[ProcessSample]] = {}
        for sample in named:
            by_gpu.setdefault(sample.gpu_uuid, []).append(sample)
        until_ns = self._clock.monotonic_ns() + self._stale_ns
        for uuid, samples in by_gpu.items():
            newest_ns = max(sample.time_ns for sample in samples)
            self._seen[uuid] = until_ns, [s for s in samples if s.time_ns == newest_ns]
        self._generation += 1

    @property
    def generation(self) -> int:
        """Changes with every look at the processes, and when those of a GPU are stale."""
        now_ns = self._clock.monotonic_ns()
        stale = [uuid for uuid, (until_ns, _) in self._seen.items() if until_ns < now_ns]
        for uuid in stale:
            del self._seen[uuid]
        self._generation += len(stale)
        return self._generation

    def attributes(self, gpu: Gpu) -> Mapping[str, str]:
        """None: many processes share a GPU."""
        return {}

    def families(self) -> Sequence[Family]:
        """Memory and SM share of the processes, of the largest SERIES_MAX at most.

        One that is listed twice, for it computes and draws, is one series.
        """
        shown: dict[tuple[str, int], ProcessSample] = {}
        for _, samples in self._seen.values():
            for sample in samples:
                key = sample.gpu_uuid, sample.pid
                shown[key] = _joined(shown[key], sample) if key in shown else sample
        ordered = sorted(
            shown.values(), key=lambda s: (-(s.memory_used_bytes or 0), s.gpu_uuid, s.pid)
        )
        self.hidden = max(0, len(ordered) - SERIES_MAX)
        index = {gpu.uuid: str(gpu.index) for gpu in self._gpus()}
        labelled = [
            (_labels(sample, index.get(sample.gpu_uuid, "")), sample)
            for sample in ordered[:SERIES_MAX]
        ]
        memory = [
            Row(labels, sample.memory_used_bytes)
            for labels, sample in labelled
            if sample.memory_used_bytes is not None
        ]
        share = [
            Row(labels, sample.sm_utilization_percent / 100)
            for labels, sample in labelled
            if sample.sm_utilization_percent is not None
        ]
        return (
            Family(MEMORY, "gauge", "GPU memory that a process holds.", memory),
            Family(SM_UTILIZATION, "gauge", "Share of the time a process ran on the SMs.", share),
        )

    def _describe(self, telemetry: Telemetry) -> None:
        counter = telemetry.observe_counter
        counter("gputel_collector_processes", "Process samples taken", lambda: self.samples)
        counter(
            "gputel_collector_dropped_processes",
            "Process samples that found no room on their way into a frame",
            lambda: self.dropped,
        )
        counter(
            "gputel_collector_unnamed_processes",
            "Process samples of which /proc told no name",
            lambda: self.unnamed,
        )
        telemetry.observe_gauge(
            "gputel_collector_hidden_processes",
            "Processes that the exporter leaves out, for there are too many",
            lambda: self.hidden,
        )


def _labels(sample: ProcessSample, gpu_index: str) -> dict[str, str]:
    return {
        "gpu": gpu_index,
        UUID_LABEL: sample.gpu_uuid,
        "pid": str(sample.pid),
        "name": sample.name,
        "container_id": sample.container_id,
    }


def _joined(one: ProcessSample, other: ProcessSample) -> ProcessSample:
    """Both listings of a process; each tells of the whole process."""

    def larger(a: int | None, b: int | None) -> int | None:
        return max((n for n in (a, b) if n is not None), default=None)

    return dataclasses.replace(
        one,
        memory_used_bytes=larger(one.memory_used_bytes, other.memory_used_bytes),
        sm_utilization_percent=larger(one.sm_utilization_percent, other.sm_utilization_percent),
    )


def _sane(sample: ProcessSample) -> ProcessSample:
    """Drivers answer "unknown" with numbers out of range; here that is None."""
    wrong: dict[str, Any] = {
        name: None
        for name in (
            "sm_utilization_percent",
            "memory_utilization_percent",
            "encoder_utilization_percent",
            "decoder_utilization_percent",
        )
        if not 0 <= (getattr(sample, name) or 0) <= wire.PERCENT_MAX
    }
    if not 0 <= (sample.memory_used_bytes or 0) <= wire.I64_MAX:
        wrong["memory_used_bytes"] = None
    return dataclasses.replace(sample, **wrong) if wrong else sample
