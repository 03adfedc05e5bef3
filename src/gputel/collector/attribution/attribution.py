"""Who uses which GPU now, for the exporter.

A task an origin reads it again and again, each within its own deadlines, so that one that
stalls holds up nobody: not the other origin, not a sample, not a scrape. The exporter is
answered from memory. When an origin fails, its last answer holds for `keep_seconds`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from gputel.clock import NS_PER_S, Clock
from gputel.collector.attribution.kubernetes import Kubernetes, MigLookup
from gputel.collector.attribution.origin import Assignment, Origin, ReadFailed, Reason
from gputel.collector.attribution.pods import NOTHING, PodDirectory
from gputel.collector.attribution.settings import AttributionSettings
from gputel.collector.attribution.slurm import JobFiles
from gputel.collector.exporter.exposition import UUID_LABEL, Family, Row
from gputel.inventory import Gpu
from gputel.observe import Telemetry

log = logging.getLogger(__name__)

ROWS_MAX: Final = 1024
FAMILY: Final = "gputel_gpu_attribution_info"
HELP: Final = "1 for every container and every job that uses the GPU, or a MIG device of it."


class Reading:
    """What an origin said last, and how it does."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.assignments: list[Assignment] = []
        self.read_ns: int | None = None  # monotonic, of the last answer
        self.failure: ReadFailed | None = None
        self.errors: dict[Reason, int] = {}

    def failed(self, failure: ReadFailed) -> None:
        """Count; log what is new."""
        # A machine without Kubernetes has no error.
        if failure.reason != "absent" or self.read_ns is not None:
            self.errors[failure.reason] = self.errors.get(failure.reason, 0) + 1
            if self.failure is None or self.failure.reason != failure.reason:
                log.warning("attribution: %s", failure)
        self.failure = failure

    def answered(self, assignments: list[Assignment], now_ns: int) -> None:
        """Remember."""
        if self.failure is not None and self.errors:
            log.info("attribution: %s answers again", self.origin.name)
        self.failure = None
        self.assignments, self.read_ns = assignments, now_ns


class Attribution:
    """The exporter's `LabelProvider`. `start` it with the GPUs, `stop` it in the end."""

    def __init__(
        self,
        settings: AttributionSettings,
        clock: Clock,
        telemetry: Telemetry,
        mig_lookup: MigLookup | None = None,
    ) -> None:
        assert settings.mode != "off"
        self._settings = settings
        self._clock = clock
        self._gpus: Callable[[], Sequence[Gpu]] = tuple
        self._pods: PodDirectory | None = None
        if settings.pod_labels or settings.pod_uid:
            self._pods = PodDirectory(
                settings.kubernetes_api, settings.service_account_dir, settings.pod_labels, clock
            )
        kubernetes = Kubernetes(
            settings.pod_resources_socket, settings.gpu_resources, mig_lookup, clock
        )
        origins: list[Origin] = [kubernetes]
        if settings.hpc_job_mapping_dir:
            origins.append(JobFiles(settings.hpc_job_mapping_dir))
        self.readings = [Reading(origin) for origin in origins]
        self._tasks: list[asyncio.Task[None]] = []
        self._generation = 0
        self._attributes: dict[str, dict[str, str]] = {}
        self._rows: list[Row] = []
        self.hidden_rows = 0
        self._describe(telemetry)

    def start(self, gpus: Callable[[], Sequence[Gpu]]) -> None:
        """Begin to read; `gpus` returns those of this node as they are now."""
        self._gpus = gpus
        for reading in self.readings:
            task = asyncio.create_task(
                self._run(reading), name=f"attribution-{reading.origin.name}"
            )
            self._tasks.append(task)
        if self._pods is not None:
            task = asyncio.create_task(self._learn_pods(self._pods), name="attribution-pods")
            self._tasks.append(task)

    async def stop(self) -> None:
        """End the tasks; calls that hang are left behind."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for reading in self.readings:
            await reading.origin.close()

    # -- the exporter's side -----------------------------------------------------------

    @property
    def generation(self) -> int:
        """Changes with the answers below."""
        return self._generation

    def attributes(self, gpu: Gpu) -> Mapping[str, str]:
        """In mode `labels`, who uses the whole GPU: of several containers the first by
        namespace, pod and container, of several jobs the first by id. {} in mode `info`."""
        return self._attributes.get(gpu.uuid, {})

    def families(self) -> Sequence[Family]:
        """gputel_gpu_attribution_info, ROWS_MAX rows at most."""
        return (Family(FAMILY, "info", HELP, self._rows),)

    # -- the tasks ---------------------------------------------------------------------

    async def _run(self, reading: Reading) -> None:
        while True:
            await self.poll(reading)
            await self._clock.sleep(self._settings.poll_seconds)

    async def poll(self, reading: Reading) -> None:
        """Read one origin once."""
        try:
            assignments = await reading.origin.read(self._gpus())
        except ReadFailed as failure:
            reading.failed(failure)
        except Exception as defect:  # it must not end the task, and is seen in the count
            reading.failed(ReadFailed("invalid", f"{reading.origin.name}: {defect!r}"))
        else:
            reading.answered(assignments, self._clock.monotonic_ns())
        self._forget_old(reading)
        self._compose()

    def _forget_old(self, reading: Reading) -> None:
        if reading.failure is not None and reading.read_ns is not None:
            age_ns = self._clock.monotonic_ns() - reading.read_ns
            if age_ns > self._settings.keep_seconds * NS_PER_S:
                reading.assignments = []

    async def _learn_pods(self, directory: PodDirectory) -> None:
        while True:
            await self.learn_pods(directory)
            await self._clock.sleep(self._settings.poll_seconds)

    async def learn_pods(self, directory: PodDirectory) -> None:
        """Look whether the API server is to be asked."""
        gpus = self._gpus()
        node = self._settings.kubernetes_node or (gpus[0].node if gpus else "")
        pods = {(a.namespace, a.pod) for r in self.readings for a in r.assignments if a.pod}
        if await directory.refresh(pods, node):
            self._compose()

    def _compose(self) -> None:
        """What the exporter is told, from what is known; a new generation when it differs."""
        index = {gpu.uuid: str(gpu.index) for gpu in self._gpus()}
        assignments = sorted(a for r in self.readings for a in r.assignments if a.gpu_uuid in index)
        rows = [
            Row({"gpu": index[a.gpu_uuid], UUID_LABEL: a.gpu_uuid, **self._labels(a)}, 1)
            for a in assignments[:ROWS_MAX]
        ]
        attributes: dict[str, dict[str, str]] = {}
        if self._settings.mode == "labels":
            attributes = self._first_of_each(assignments)
        self.hidden_rows = len(assignments) - len(rows)
        if rows != self._rows or attributes != self._attributes:
            self._rows, self._attributes = rows, attributes
            self._generation += 1

    def _first_of_each(self, assignments: Sequence[Assignment]) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for a in assignments:
            labels = found.setdefault(a.gpu_uuid, {})
            if not a.part and ("hpc_job" if a.hpc_job else "pod") not in labels:
                labels.update(self._labels(a))
        return found

    def _labels(self, assignment: Assignment) -> dict[str, str]:
        """In the order in which they are written; what is empty is left out."""
        a = assignment
        pod = NOTHING
        if self._pods is not None and a.pod:
            pod = self._pods.facts((a.namespace, a.pod))
        labels = {
            "namespace": a.namespace,
            "pod": a.pod,
            "container": a.container,
            "pod_uid": pod.uid,
            "vgpu": a.share,
            "hpc_job": a.hpc_job,
            "GPU_I_PROFILE": a.mig_profile,
            "GPU_I_ID": a.gpu_instance,
            "mig_uuid": a.mig_uuid,
            **dict(pod.labels),
        }
        return {name: value for name, value in labels.items() if value}

    # -- what it says of itself --------------------------------------------------------

    def _ages(self) -> list[tuple[float, dict[str, str]]]:
        now_ns = self._clock.monotonic_ns()
        return [
            ((now_ns - r.read_ns) / NS_PER_S, {"origin": r.origin.name})
            for r in self.readings
            if r.read_ns is not None
        ]

    def _errors(self) -> list[tuple[int, dict[str, str]]]:
        counts = [(r.origin.name, r.errors) for r in self.readings]
        if self._pods is not None:
            counts.append(("kubernetes-api", self._pods.errors))
        return [
            (count, {"origin": name, "reason": reason})
            for name, errors in counts
            for reason, count in errors.items()
        ]

    def _describe(self, telemetry: Telemetry) -> None:
        telemetry.observe_gauge(
            "gputel_attribution_age_seconds", "Time since an origin's last answer", self._ages
        )
        telemetry.observe_counter(
            "gputel_attribution_errors", "Readings that failed, by reason", self._errors
        )
        telemetry.observe_gauge(
            "gputel_attribution_assignments",
            "Containers and jobs on GPUs",
            lambda: [(len(r.assignments), {"origin": r.origin.name}) for r in self.readings],
        )
        telemetry.observe_gauge(
            "gputel_attribution_skipped",
            "Entries of the last answer that were absurd, of unknown GPUs, or too many",
            lambda: [(r.origin.skipped, {"origin": r.origin.name}) for r in self.readings],
        )
        telemetry.observe_gauge(
            "gputel_attribution_hidden_rows",
            "Assignments that the exporter leaves out, for there are too many",
            lambda: self.hidden_rows,
        )
