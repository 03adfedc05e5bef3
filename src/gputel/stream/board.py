"""The board: the latest value of every metric of every GPU, as frames tell them.

Values are taken in the order of arrival, which per collector is the order of its frames;
within one chunk the newest valid sample of each metric counts. A wall clock that is set
back therefore never freezes the board.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gputel import wire
from gputel.batch import Batch
from gputel.catalog import Metric
from gputel.errors import ChunkCorrupt

GPUS_MAX = 262_144

Change = dict[Metric, int | float]


@dataclass(slots=True)
class GpuState:
    """The latest of one GPU."""

    node: str
    uuid: str
    values: dict[Metric, int | float] = field(default_factory=dict)
    times_ns: dict[Metric, int] = field(default_factory=dict)


def newest(batch: Batch) -> list[tuple[Metric, int, int | float]]:
    """(metric, time in ns, value) of the newest valid sample of each column that has one."""
    found: list[tuple[Metric, int, int | float]] = []
    if len(batch) == 1:
        time_ns = int(batch.time_ns[0])
        for metric, column, valid in zip(
            batch.metric_set.metrics, batch.columns, batch.valid, strict=True
        ):
            if valid[0] & 1:
                found.append((metric, time_ns, column[0].item()))
        return found
    for index, metric in enumerate(batch.metric_set.metrics):
        rows = np.flatnonzero(batch.mask(index))
        if len(rows):
            # The last of equal times: a later row of the same instant is the newer one.
            times = batch.time_ns[rows]
            row = rows[len(rows) - 1 - int(np.argmax(times[::-1]))]
            found.append((metric, int(batch.time_ns[row]), batch.columns[index][row].item()))
    return found


class Board:
    """Applies frames and says what changed. Counts what it can't use."""

    def __init__(self, gpus_max: int = GPUS_MAX) -> None:
        self.gpus: dict[tuple[str, str], GpuState] = {}
        self.corrupt_chunks = 0
        self.refused_gpus = 0  # readings of GPUs beyond `gpus_max`
        self._gpus_max = gpus_max

    def apply(self, frame: wire.Frame) -> list[tuple[GpuState, Change]]:
        """The GPUs of `frame` with the values that it brought."""
        changes: list[tuple[GpuState, Change]] = []
        for gpu in frame.gpus:
            key = (frame.node, gpu.uuid)
            state = self.gpus.get(key)
            if state is None:
                if len(self.gpus) >= self._gpus_max:
                    self.refused_gpus += 1
                    continue
                state = self.gpus[key] = GpuState(frame.node, gpu.uuid)
            change: Change = {}
            for payload in gpu.chunks:
                try:
                    batch = wire.decode_chunk(payload)
                except ChunkCorrupt:
                    self.corrupt_chunks += 1
                    continue
                for metric, time_ns, value in newest(batch):
                    change[metric] = state.values[metric] = value
                    state.times_ns[metric] = time_ns
            if change:
                changes.append((state, change))
        return changes
