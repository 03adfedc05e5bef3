"""The processes of a simulated job: a trainer, and a smaller one beside it in its container."""

from __future__ import annotations

import hashlib
from typing import Final

from gputel.inventory import Gpu, ProcessKind, ProcessSample
from gputel.limits import GPUS_PER_NODE_MAX, MIB

#: Linux gives no process a number from here on (PID_MAX_LIMIT), so a simulated process is
#: never taken for a real one.
PID_FIRST: Final = 4_194_305
JOBS_APART: Final = 10_000  # numbers come again after so many jobs
PROCESSES: Final = (("python3", 0.9), ("python3", 0.1))  # name, share of the work


def processes_of(
    gpu: Gpu, time_ns: int, *, job: int, memory_bytes: int, utilization: float
) -> list[ProcessSample]:
    """The processes of job number `job` of a GPU, which together hold `memory_bytes`."""
    first = PID_FIRST + (job % JOBS_APART * GPUS_PER_NODE_MAX + gpu.index) * len(PROCESSES)
    container = hashlib.sha256(f"{gpu.uuid}/{job}".encode()).hexdigest()
    return [
        ProcessSample(
            time_ns,
            gpu.uuid,
            first + i,
            ProcessKind.COMPUTE,
            memory_used_bytes=int(memory_bytes * share) // MIB * MIB,
            sm_utilization_percent=round(100 * utilization * share),
            memory_utilization_percent=round(60 * utilization * share),
            encoder_utilization_percent=0,
            decoder_utilization_percent=0,
            name=name,
            cgroup=f"/system.slice/docker-{container}.scope",
            container_id=container,
        )
        for i, (name, share) in enumerate(PROCESSES)
    ]
