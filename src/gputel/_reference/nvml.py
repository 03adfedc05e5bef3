"""The sweep in readable Python, through nvidia-ml-py: the twin of gputel._native.nvml.

    turn      one number for all: a thread that sweeps holds it. `abandon` takes it away from
              a thread that is stuck in a call, and the next thread goes on with the sweep.
    claim     one flag a GPU: the thread that has set it is the only one to ask this GPU,
              however long its call takes, even without the turn.

When a call returns late, its row still counts, for the GPU was merely slow; the thread sees
that the turn is not its own and ends. If the GPU was given up meanwhile (`detach`), its
generation has changed and the row is discarded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol

from gputel._reference.nvml_device import Cells, Gone, Reading
from gputel.plan import STALLED_NS, Note, Outcome, Plan, Swept

NOBODY = -1
NO_LIMIT = -1
LOG_MAX = 1024
POLL_S_MIN, POLL_S_MAX = 0.005, 0.25

Entry = tuple[Note, int, int, int, int, int, float]


class Rows(Protocol):
    """What a sweep needs of a ring; the native one and the twin's have it."""

    storages: str

    def push(
        self,
        time_ns: int,
        gpu: int,
        sequence: int,
        lateness_us: int,
        values: Sequence[int | float | None],
    ) -> bool: ...


class _Device:
    def __init__(self, nvml: Any, plans: Sequence[Plan]) -> None:
        self.readings = [Reading(nvml, plan) for plan in plans]
        self.attempted_ns: list[int | None] = [None] * len(plans)
        self.sequences = [0] * len(plans)
        self.attached = False
        self.busy = False
        self.is_slow = False
        self.generation = 0
        self.since_ns = 0
        for reading in self.readings:
            reading.timed = self._timed

    def _timed(self, ns: int) -> None:
        self.since_ns = ns


class Sweeper:
    """All GPUs of a node, and the turn of the thread that may ask them.

    `nvml` is pynvml or what behaves like it. Slot number `devices` is the node: it is claimed
    for calls that belong to no GPU.
    """

    def __init__(self, plans: Sequence[Plan], nvml: Any, devices: int) -> None:
        self.plans = tuple(plans)
        self._devices = [_Device(nvml, plans) for _ in range(devices + 1)]
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._current = NOBODY
        self._notes: list[Entry] = []
        self._overflow = 0
        self.turn = 0

    # ---- GPUs that come and go ------------------------------------------------------------

    def attach(self, slot: int, handle: Any, whole: Any = None, gpu_instance: int = 0) -> None:
        """Ask this GPU from now on; nothing is known to be unsupported. `handle` is pynvml's.
        Of a MIG instance, `whole` is that of its GPU, which has it as number `gpu_instance`."""
        device = self._devices[slot]
        with self._lock:
            for reading in device.readings:
                reading.forget(handle, whole, gpu_instance)
            device.generation += 1
            device.attached = True

    def detach(self, slot: int) -> bool:
        """Ask this GPU no more; a row that a thread is still busy with is discarded.

        False when it was not attached.
        """
        device = self._devices[slot]
        with self._lock:
            was, device.attached = device.attached, False
            device.generation += was
            return was

    def is_attached(self, slot: int) -> bool:
        """Is this GPU asked?"""
        return self._devices[slot].attached

    def is_busy(self, slot: int) -> bool:
        """Has a thread claimed this GPU?"""
        return self._devices[slot].busy

    def set_xid(self, slot: int, xid: int | None) -> None:
        """The last XID of this GPU; None: XIDs can't be seen."""
        for reading in self._devices[slot].readings:
            reading.xid_last = xid

    # ---- The turn -------------------------------------------------------------------------

    def claim(self, turn: int, slot: int) -> bool:
        """Begin calls of one's own for this GPU; False: another thread has it, or the turn."""
        return self._claim(turn, slot, None, 0)

    def _claim(self, turn: int, slot: int, plan: int | None, time_ns: int) -> bool:
        device = self._devices[slot]
        with self._lock:
            if turn != self.turn or device.busy:
                return False
            if plan is not None:
                if not device.attached or device.attempted_ns[plan] == time_ns:
                    return False
                device.attempted_ns[plan] = time_ns
            device.busy = True
            device.since_ns = time.monotonic_ns()
            self._current = slot
            return True

    def finish(self, turn: int, slot: int) -> bool:
        """End what `claim` began; False when the turn was taken away meanwhile."""
        with self._lock:
            return self._finish(turn, slot)

    def _finish(self, turn: int, slot: int) -> bool:
        device = self._devices[slot]
        device.since_ns = 0
        device.busy = False
        if turn != self.turn:
            return False
        device.is_slow = False
        self._current = NOBODY
        return True

    def abandon(self, limit_ns: int) -> bool:
        """Take the turn from a thread whose call lasts `limit_ns`; False when none does."""
        with self._lock:
            slot = self._current
            if slot == NOBODY or self.stuck_ns(slot) < limit_ns:
                return False
            self._devices[slot].is_slow = True
            self._current = NOBODY
            self.turn += 1
            return True

    def stuck_ns(self, slot: int) -> int:
        """How long the call in progress on this GPU lasts; 0 when there is none."""
        since_ns = self._devices[slot].since_ns
        return time.monotonic_ns() - since_ns if since_ns else 0

    def watch(self, limit_ns: int) -> int:
        """Wait until something is wrong: the turn's thread is in a call for `limit_ns`, or any
        attached GPU's call lasts for STALLED_NS. Its slot; -1 after `close`."""
        poll_s = min(max(limit_ns / 2e9, POLL_S_MIN), POLL_S_MAX)
        while not self._closing.is_set():
            slot = self._current
            if slot != NOBODY and self.stuck_ns(slot) >= limit_ns:
                return slot
            for slot, device in enumerate(self._devices[:-1]):
                if device.attached and self.stuck_ns(slot) >= STALLED_NS:
                    return slot
            self._closing.wait(poll_s)
        return NOBODY

    def close(self) -> None:
        """Let `watch` return; nothing is asked any more."""
        self._closing.set()

    def release(self) -> None:
        """Give the driver's buffers back; no thread is busy with a GPU."""
        for device in self._devices:
            for reading in device.readings:
                reading.release()

    # ---- The sweep ------------------------------------------------------------------------

    def sweep(
        self,
        turn: int,
        plan: int,
        time_ns: int,
        monotonic_ns: int,
        lateness_us: int,
        ring: Rows,
        time_left_ns: int = NO_LIMIT,
    ) -> int:
        """Write the rows of plan number `plan`, one an attached GPU that has not been asked
        for `time_ns` yet (any number for samples); a gputel.plan.Swept. After `time_left_ns`
        no further GPU is begun, but the first always is."""
        until_ns = time.monotonic_ns() + max(time_left_ns, 0)
        begun = False
        if not 0 <= plan < len(self.plans) or len(ring.storages) != self.plans[plan].columns:
            raise ValueError(f"plan {plan} does not write the rows of this ring")
        # GPUs that were slow the last time come last: they delay no other.
        for is_slow in (False, True):
            for slot, device in enumerate(self._devices[:-1]):
                if not device.attached or device.attempted_ns[plan] == time_ns:
                    continue
                if device.is_slow != is_slow:
                    continue
                if begun and time_left_ns != NO_LIMIT and time.monotonic_ns() >= until_ns:
                    return Swept.PREEMPTED
                if not self._claim(turn, slot, plan, time_ns):
                    continue
                begun = True
                generation = device.generation
                rows, gone = self._read(device, plan, time_ns, monotonic_ns)
                with self._lock:
                    if device.generation == generation:
                        late_us = 0 if self.plans[plan].samples else lateness_us
                        self._write(slot, plan, time_ns, rows, gone, late_us, ring)
                    if not self._finish(turn, slot):
                        return Swept.ABANDONED
        return Swept.DONE if turn == self.turn else Swept.ABANDONED

    def _read(
        self, device: _Device, plan: int, time_ns: int, monotonic_ns: int
    ) -> tuple[list[tuple[int, Cells]], Gone | None]:
        reading = device.readings[plan]
        reading.notes.clear()
        try:
            if self.plans[plan].samples:
                return list(reading.drain(time_ns)), None
            return [(time_ns, reading.read(monotonic_ns))], None
        except Gone as gone:
            return [], gone

    def _write(
        self,
        slot: int,
        plan: int,
        time_ns: int,
        rows: list[tuple[int, Cells]],
        gone: Gone | None,
        lateness_us: int,
        ring: Rows,
    ) -> None:
        device = self._devices[slot]
        for row_ns, cells in rows:
            ring.push(row_ns, slot, device.sequences[plan], lateness_us, cells)
            device.sequences[plan] += 1
        noted = device.readings[plan].notes
        if gone is not None:
            device.attached = False
            device.generation += 1
            kind = Note.LOST if gone.outcome is Outcome.LOST else Note.FATAL
            noted.append((kind, 0, 0, float(gone.code)))
        for kind, column, before, value in noted:
            if len(self._notes) < LOG_MAX:
                self._notes.append((kind, slot, plan, column, time_ns, before, value))
            else:
                self._overflow += 1

    # ---- What it noticed and what it cost -------------------------------------------------

    def notes(self) -> list[Entry]:
        """What sweeps have noticed since the last call, as (Note, slot, plan, column, time_ns,
        before, value)."""
        with self._lock:
            found, self._notes = self._notes, []
            if self._overflow:
                found.append((Note.OVERFLOW, 0, 0, 0, 0, 0, float(self._overflow)))
                self._overflow = 0
        return found

    def costs(self, plan: int) -> list[tuple[int, int, int, tuple[int, ...]]]:
        """(calls, ns, ns of the longest, errors by Outcome) of each of the plan's `asks`."""
        found = []
        for ask in range(len(self.plans[plan].asks)):
            costs = [device.readings[plan].costs[ask] for device in self._devices]
            errors = tuple(sum(cost.errors[i] for cost in costs) for i in range(len(Outcome)))
            longest_ns = max(cost.longest_ns for cost in costs)
            ns, calls = sum(cost.ns for cost in costs), sum(cost.calls for cost in costs)
            found.append((calls, ns, longest_ns, errors))
        return found

    def rejected(self, plan: int) -> list[int]:
        """Values out of range, by column."""
        counts = [device.readings[plan].rejected for device in self._devices]
        return [sum(column) for column in zip(*counts, strict=True)]

    @property
    def skipped_samples(self) -> int:
        """Samples of the driver without a time, or with one that was there before."""
        return sum(r.skipped_samples for device in self._devices for r in device.readings)
