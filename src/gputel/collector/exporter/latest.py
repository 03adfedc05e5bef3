"""The latest value of every metric of every GPU: a scrape asks no driver.

    cells       8 bytes a metric, in the metric's own storage (f32 widened to f64)

                  gpu 0   | m0 | m1 | m2 | ... | m69 |     columns as in COLUMN
                  gpu 1   | m0 | m1 | m2 | ... | m69 |
    arrived_ns  int64, the same shape: when the value in the cell arrived, monotonic

It lives on one thread, and an update is over before anybody looks: what a reader sees
belongs together.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gputel.batch import Batch
from gputel.catalog import BY_NAME, METRIC_SETS, SET_OF, Cadence, MetricSet
from gputel.clock import NS_PER_S
from gputel.inventory import Event, EventKind, Gpu

#: Metric to its column.
COLUMN: Final = {
    metric: number
    for number, metric in enumerate(metric for s in METRIC_SETS for metric in s.metrics)
}
#: Storage code to the type a cell is read as.
VIEWS: Final[Mapping[str, np.dtype[Any]]] = {
    "f": np.dtype("<f8"),
    "d": np.dtype("<f8"),
    "q": np.dtype("<i8"),
    "Q": np.dtype("<u8"),
}
NEVER_NS: Final = -(2**62)
XID_COLUMN: Final = COLUMN[BY_NAME["xid_last"]]
_XID_SET: Final = SET_OF[BY_NAME["xid_last"]]
_BITS: Final = tuple(np.uint8(1 << bit) for bit in range(8))

# A value lives for three of its periods, and through a short pause of the whole process; a GPU
# whose calls hang shall be down within two seconds.
LIFE_PERIODS: Final = 3
LIFE_S_MIN: Final = 1.5
# A recording says nothing of its periods; common ones are up to 30 s.
RECORDED_LIFE_S: Final = 60
RECORDED_SLOW_LIFE_S: Final = 120

_GONE: Final = frozenset({EventKind.LOST, EventKind.STALLED, EventKind.REMOVED})
_BACK: Final = frozenset({EventKind.RESTORED, EventKind.ADDED})


def lifetime_ns(cadence: Cadence, period_ns: int | None) -> int:
    """How long a value is fresh; None: the period is not known."""
    if period_ns is None:
        life_s = RECORDED_SLOW_LIFE_S if cadence is Cadence.SLOW else RECORDED_LIFE_S
        return life_s * NS_PER_S
    return max(LIFE_PERIODS * period_ns, round(LIFE_S_MIN * NS_PER_S))


class Arrivals(NamedTuple):
    """When the samples of a live source came, by the monotonic clock: at the wall time they
    carry, but never before `since_ns` or after `now_ns`, for a wall clock may be set."""

    now_ns: int
    since_ns: int
    wall_ahead_ns: int  # the wall clock's lead over the monotonic one

    def of(self, time_ns: int) -> int:
        """When the sample with this wall time came."""
        return min(max(time_ns - self.wall_ahead_ns, self.since_ns), self.now_ns)


def all_now(now_ns: int) -> Arrivals:
    """All samples come at `now_ns`: a recording's, whose times are old."""
    return Arrivals(now_ns, now_ns, 0)


class _Layout:
    """Where the metrics of a set lie in a row of cells, and how they are packed."""

    def __init__(self, metric_set: MetricSet) -> None:
        first = COLUMN[metric_set.metrics[0]]
        self.cells = slice(first, first + len(metric_set.metrics))
        self.row = np.zeros(len(metric_set.metrics), np.int64)
        self._memory = self.row.data.cast("B")
        self._pack_into = struct.Struct("<" + metric_set.storages.replace("f", "d")).pack_into

    def pack(self, values: Iterable[int | float]) -> None:
        """Put one value a metric into `row`."""
        self._pack_into(self._memory, 0, *values)


class Latest:
    """One row of cells a GPU. A value is stale some time after it *arrived*: a replay
    carries old times.

    `generation` changes with the GPUs, `version` with anything that can be seen.
    """

    def __init__(self) -> None:
        self.gpus: list[Gpu] = []
        self.generation = 0
        self.version = 0
        self._slots: dict[str, int] = {}
        self.cells: npt.NDArray[np.int64] = np.zeros((0, len(COLUMN)), np.int64)
        self._arrived_ns: npt.NDArray[np.int64] = np.zeros((0, len(COLUMN)), np.int64)
        self._set_arrived_ns: npt.NDArray[np.int64] = np.zeros((0, len(METRIC_SETS)), np.int64)
        self._lost: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._xid_seen: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._xids: dict[int, Event] = {}  # the last one of a slot
        self._layouts = {metric_set: _Layout(metric_set) for metric_set in METRIC_SETS}
        self._number = {metric_set: n for n, metric_set in enumerate(METRIC_SETS)}
        self._stale_ns = np.zeros(len(METRIC_SETS), np.int64)
        self._cell_stale_ns = np.zeros(len(COLUMN), np.int64)
        self._fastest_first: npt.NDArray[np.intp] = np.arange(len(METRIC_SETS))

    def expect(self, stale_ns: Mapping[MetricSet, int]) -> None:
        """Say after how long without news the values of each set are stale."""
        for metric_set, number in self._number.items():
            self._stale_ns[number] = stale_ns[metric_set]
            self._cell_stale_ns[self._layouts[metric_set].cells] = stale_ns[metric_set]
        self._fastest_first = np.argsort(self._stale_ns, kind="stable")
        self.version += 1

    def inventory(self, gpus: Sequence[Gpu]) -> None:
        """Take the GPUs as they are known now: slots never move, new ones come at the end."""
        more = len(gpus) - len(self.gpus)
        assert more >= 0, "a slot is never taken back"
        self.gpus = list(gpus)
        self._slots = {gpu.uuid: slot for slot, gpu in enumerate(gpus)}
        self.cells = np.pad(self.cells, ((0, more), (0, 0)))
        never = ((0, more), (0, 0))
        self._arrived_ns = np.pad(self._arrived_ns, never, constant_values=NEVER_NS)
        self._set_arrived_ns = np.pad(self._set_arrived_ns, never, constant_values=NEVER_NS)
        self._lost = np.pad(self._lost, (0, more))
        self._xid_seen = np.pad(self._xid_seen, (0, more))
        self.generation += 1
        self.version += 1

    def slot(self, uuid: str) -> int | None:
        """The slot of a GPU."""
        return self._slots.get(uuid)

    def update(self, slot: int, batch: Batch, arrivals: Arrivals) -> None:
        """Take the newest valid value of each column."""
        layout = self._layouts[batch.metric_set]
        last = len(batch) - 1
        valid = (batch.valid[:, last >> 3] & _BITS[last & 7]).astype(np.bool_)
        # PERF(latest): one struct call for the row. Numpy's way, an assignment a column, costs
        # four times as much at the few samples a batch has.
        layout.pack([column.item(last) for column in batch.columns])
        arrived_ns = arrivals.of(batch.time_ns.item(last))
        arrived_of = self._arrived_ns[slot, layout.cells]
        there = np.count_nonzero(valid)  # at a quarter of what any() and all() cost
        if there:
            np.copyto(self.cells[slot, layout.cells], layout.row, where=valid)
            arrived_of[valid] = arrived_ns
            self._set_arrived_ns[slot, self._number[batch.metric_set]] = arrived_ns
        if last and there < len(valid):
            self._take_older(slot, batch, ~valid, arrivals)
        if batch.metric_set is _XID_SET and slot in self._xids:
            xid = self._xids[slot]
            if batch.time_ns.item(last) <= xid.time_ns:  # the row waited longer than the event
                self.cells[slot, XID_COLUMN] = xid.code
        self.version += 1

    def _take_older(
        self, slot: int, batch: Batch, wanted: npt.NDArray[np.bool_], arrivals: Arrivals
    ) -> None:
        """Where the newest row has no value, an older row of the batch may."""
        cells = self._layouts[batch.metric_set].cells
        row, arrived_ns = self.cells[slot, cells], self._arrived_ns[slot, cells]
        number = self._number[batch.metric_set]
        for j in np.flatnonzero(wanted & batch.valid.any(axis=1)).tolist():
            bits = int.from_bytes(batch.valid[j].tobytes(), "little")
            newest = bits.bit_length() - 1
            storage = batch.metric_set.metrics[j].storage.value
            row.view(VIEWS[storage])[j] = batch.columns[j][newest]
            came_ns = arrivals.of(batch.time_ns.item(newest))
            arrived_ns[j] = came_ns
            self._set_arrived_ns[slot, number] = max(came_ns, self._set_arrived_ns[slot, number])

    def observe(self, events: Sequence[Event]) -> None:
        """Take what events tell: GPUs that go and come, and the last XID at once."""
        for event in events:
            slot = self._slots.get(event.gpu_uuid)
            if slot is None:
                continue
            if event.kind in _GONE:
                self._lost[slot] = True
            elif event.kind in _BACK:
                self._lost[slot] = False
            elif event.kind is EventKind.XID:
                self.cells[slot, XID_COLUMN] = event.code
                self._xid_seen[slot] = True
                self._xids[slot] = event
            self.version += 1

    def up(self, now_ns: int) -> npt.NDArray[np.bool_]:
        """bool[gpus]: not lost, and the fastest set that a GPU has ever delivered is fresh."""
        sets = self._fastest_first
        arrived_ns = self._set_arrived_ns.take(sets, axis=1)
        judge = (arrived_ns > NEVER_NS).argmax(axis=1)  # the first; where there is none, any
        arrived_ns = arrived_ns[np.arange(len(judge)), judge]
        fresh: npt.NDArray[np.bool_] = now_ns - arrived_ns <= self._stale_ns[sets[judge]]
        return fresh & ~self._lost

    def shown(self, up: npt.NDArray[np.bool_], now_ns: int) -> npt.NDArray[np.bool_]:
        """bool[gpus, columns]: cells with a fresh value of a GPU that is `up`.

        An XID that an event told stays: it often is the reason why the GPU is down.
        """
        shown: npt.NDArray[np.bool_] = now_ns - self._arrived_ns <= self._cell_stale_ns
        shown &= up[:, np.newaxis]
        shown[:, XID_COLUMN] |= self._xid_seen
        return shown
