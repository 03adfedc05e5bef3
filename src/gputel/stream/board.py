"""The board: the latest value of every metric of every GPU, as frames tell them.

Values are taken in the order of arrival, which per collector is the order of its frames;
within one chunk the newest valid sample of each metric counts. A wall clock that is set
back therefore never freezes the board.

A GPU that nobody watches keeps its newest chunks as they came, up to UNREAD_BYTES_MAX of
them. They are read from the last one back, and most of them never: what an earlier chunk
has, a later one has too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from gputel import limits, wire
from gputel.batch import Batch
from gputel.catalog import Metric
from gputel.errors import ChunkCorrupt

GPUS_MAX = 262_144
UNREAD_BYTES_MAX = 2 * limits.KIB  # of a GPU

Change = dict[Metric, int | float]


@dataclass(slots=True)
class GpuState:
    """The latest of one GPU; `Board.read` it before looking at its values."""

    node: str
    uuid: str
    values: dict[Metric, int | float] = field(default_factory=dict)
    times_ns: dict[Metric, int] = field(default_factory=dict)
    unread: list[bytes] = field(default_factory=list)
    unread_bytes: int = 0


def newest(batch: Batch) -> list[tuple[Metric, int, int | float]]:
    """(metric, time in ns, value) of the newest valid sample of each column that has one."""
    found: list[tuple[Metric, int, int | float]] = []
    if len(batch) == 1:
        time_ns = batch.time_ns.item()
        # PERF(board): of one row a bitmap is a byte, and indexing arrays would cost more.
        for metric, column, valid in zip(
            batch.metric_set.metrics, batch.columns, batch.valid.tobytes(), strict=True
        ):
            if valid & 1:
                found.append((metric, time_ns, column.item()))
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

    def apply(
        self, frame: wire.Frame, wanted: Callable[[GpuState], bool] = lambda _: True
    ) -> list[tuple[GpuState, Change]]:
        """The GPUs of `frame` that are `wanted`, with the values that it brought."""
        changes: list[tuple[GpuState, Change]] = []
        for gpu in frame.gpus:
            state = self._state(frame.node, gpu.uuid)
            if state is None:
                self.refused_gpus += 1
                continue
            # PERF(board): decoding costs some 20 us a chunk; with nobody there 1 us is left.
            if not wanted(state):
                self._keep(state, gpu.chunks)
                continue
            self.read(state)
            change: Change = {}
            for payload in gpu.chunks:
                for metric, time_ns, value in self._newest(payload):
                    change[metric] = state.values[metric] = value
                    state.times_ns[metric] = time_ns
            if change:
                changes.append((state, change))
        return changes

    def read(self, state: GpuState) -> None:
        """Bring the values of `state` up to what has arrived."""
        if not state.unread:
            return
        found: dict[int, tuple[Metric, int, int | float]] = {}
        for payload in reversed(state.unread):
            if not self._is_covered(payload, found):
                for reading in self._newest(payload):
                    found.setdefault(reading[0].id, reading)
        state.unread.clear()
        state.unread_bytes = 0
        for metric, time_ns, value in found.values():
            state.values[metric] = value
            state.times_ns[metric] = time_ns

    def _state(self, node: str, uuid: str) -> GpuState | None:
        key = (node, uuid)
        state = self.gpus.get(key)
        if state is None and len(self.gpus) < self._gpus_max:
            state = self.gpus[key] = GpuState(node, uuid)
        return state

    def _keep(self, state: GpuState, chunks: tuple[bytes, ...]) -> None:
        state.unread += chunks
        state.unread_bytes += sum(map(len, chunks))
        if state.unread_bytes > UNREAD_BYTES_MAX:
            self.read(state)

    def _is_covered(self, payload: bytes, found: Mapping[int, object]) -> bool:
        """Has all that this chunk could tell been found already?"""
        if not found:
            return False
        try:
            return all(
                metric_id in found for metric_id in wire.read_chunk_header(payload).metric_ids
            )
        except ChunkCorrupt:
            return False  # it is counted when it is decoded

    def _newest(self, payload: bytes) -> list[tuple[Metric, int, int | float]]:
        try:
            return newest(wire.decode_chunk(payload))
        except ChunkCorrupt:
            self.corrupt_chunks += 1
            return []
