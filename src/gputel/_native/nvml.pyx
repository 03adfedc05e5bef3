"""The sweep: every GPU of the node, one metric set, without the GIL and without an object.

The kernel is made of small C files, from the call outwards:

    nvml_ask.h     one call, by the shape of its C signature
    nvml_cells.h   from an answer to a cell of the row: scaled, in range, or left out
    nvml_account.h what a call has cost, and what its result means
    nvml_read.h    one GPU and metric set: calls, fields, GPM
    nvml_drain.h   the driver's own buffers of samples, merged by time
    nvml_turn.h    who may ask which GPU; what happens when a call does not return
    nvml_plan.h    the plans, and what is remembered of each GPU
    nvml_fill.pxi  from gputel.plan to the structs of nvml_plan.h

What is asked is data; this file loops over the GPUs and hands rows to the ring. The twin is
gputel._reference.nvml.
"""

import ctypes

from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from libc.time cimport time_t

from gputel._native.ring cimport (
    Ring, RowHeader, commit_row, gputel_copy_words, gputel_prefetch_row, reserve_row
)

from gputel.plan import DRAIN_SAMPLES_MAX, STALLED_NS, Note, Outcome, Swept
from gputel.rows import LATENESS_US_MAX

assert GPUTEL_SAMPLES_MAX == DRAIN_SAMPLES_MAX
assert GPUTEL_OUTCOMES == len(Outcome)

include "nvml_fill.pxi"

cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef extern from "time.h" nogil:
    ctypedef int clockid_t
    cdef struct timespec:
        time_t tv_sec
        long tv_nsec
    clockid_t CLOCK_MONOTONIC
    int clock_nanosleep(clockid_t clock, int flags, const timespec *request, timespec *remain)

cdef int64_t POLL_NS_MIN = 5_000_000
cdef int64_t POLL_NS_MAX = 250_000_000
cdef uint64_t LATENESS_MAX = LATENESS_US_MAX
cdef int64_t NO_LIMIT = -1
cdef int DONE = Swept.DONE
cdef int ABANDONED = Swept.ABANDONED
cdef int PREEMPTED = Swept.PREEMPTED


cdef class Sweeper:
    """All GPUs of a node, and the turn of the thread that may ask them.

    `plans` is a gputel.plan.Plan a metric set, `functions` the addresses of the functions
    that no plan names (0: the library has none), `devices` the most GPUs there can be. Slot
    number `devices` is the node: it is claimed for calls that belong to no GPU.
    """

    cdef gputel_core core
    cdef gputel_turns *turns
    cdef readonly tuple plans

    def __cinit__(self, plans, functions, int devices):
        self.plans = tuple(plans)
        self.core.plans = len(self.plans)
        self.core.devices = devices
        gputel_ticks_init(&self.core.base)
        self.core.cheap_ticks = self._ticks(GPUTEL_CHEAP_NS)
        self.turns = <gputel_turns *>_zeroed(1, sizeof(gputel_turns))
        self.turns.current = GPUTEL_NOBODY
        self.core.rejected = <uint64_t *>_zeroed(
            self.core.plans * GPUTEL_COLUMNS_MAX, sizeof(uint64_t)
        )
        self.core.plan = <gputel_plan *>_zeroed(self.core.plans, sizeof(gputel_plan))
        self.core.device = <gputel_device *>_zeroed(devices + 1, sizeof(gputel_device))
        for i, plan in enumerate(self.plans):
            _fill_plan(&self.core.plan[i], plan)
        for i in range(self.core.plans):
            self._make_readings(&self.core.plan[i])
        for i in range(devices + 1):
            self.core.device[i].xid_last = -1
            self.core.device[i].note = <gputel_note *>_zeroed(
                GPUTEL_NOTES_MAX, sizeof(gputel_note)
            )
        self.core.functions.field_values = _address(functions, "nvmlDeviceGetFieldValues")
        self.core.functions.samples = _address(functions, "nvmlDeviceGetSamples")
        self.core.functions.gpm_support = _address(functions, "nvmlGpmQueryDeviceSupport")
        self.core.functions.gpm_alloc = _address(functions, "nvmlGpmSampleAlloc")
        self.core.functions.gpm_free = _address(functions, "nvmlGpmSampleFree")
        self.core.functions.gpm_sample = _address(functions, "nvmlGpmSampleGet")
        self.core.functions.gpm_mig_sample = _address(functions, "nvmlGpmMigSampleGet")
        self.core.functions.gpm_metrics = _address(functions, "nvmlGpmMetricsGet")

    cdef int _make_readings(self, gputel_plan *plan) except -1:
        cdef size_t size_bytes = gputel_reading_bytes(plan)
        cdef int slot
        plan.readings = <char *>aligned_alloc(
            GPUTEL_LINE_BYTES, size_bytes * (self.core.devices + 1)
        )
        if plan.readings is NULL:
            raise MemoryError("the state of the GPUs")
        memset(plan.readings, 0, size_bytes * (self.core.devices + 1))
        plan.reading_bytes = size_bytes
        for slot in range(self.core.devices + 1):
            if gputel_reading_init(gputel_reading_of(plan, slot), plan) < 0:
                raise MemoryError("the state of a GPU")
        return 0

    def __dealloc__(self):
        cdef int slot, p
        if self.core.plan is not NULL:
            for p in range(self.core.plans):
                if self.core.plan[p].readings is not NULL:
                    for slot in range(self.core.devices + 1):
                        gputel_reading_free(
                            gputel_reading_of(&self.core.plan[p], slot), &self.core.plan[p]
                        )
                    free(self.core.plan[p].readings)
                _free_plan(&self.core.plan[p])
        if self.core.device is not NULL:
            for slot in range(self.core.devices + 1):
                free(self.core.device[slot].note)
        free(self.core.device)
        free(self.core.plan)
        free(self.core.rejected)
        free(self.turns)

    cdef gputel_device *_device(self, int slot) except NULL:
        if not 0 <= slot <= self.core.devices:
            raise IndexError(f"slot {slot} of {self.core.devices}")
        return &self.core.device[slot]

    # ---- GPUs that come and go ------------------------------------------------------------

    def attach(self, int slot, handle, whole=None, unsigned int gpu_instance=0):
        """Ask this GPU from now on; nothing is known to be unsupported. `handle` is pynvml's.
        Of a MIG instance, `whole` is that of its GPU, which has it as number `gpu_instance`.

        The slot is claimed, or no thread has ever asked it.
        """
        cdef gputel_device *device = self._device(slot)
        cdef uintptr_t address = ctypes.cast(handle, ctypes.c_void_p).value
        cdef uintptr_t of_whole = 0
        cdef int p
        if whole is not None:
            of_whole = ctypes.cast(whole, ctypes.c_void_p).value
        gputel_lock(self.turns)
        device.handle = <nvmlDevice_t>address
        device.whole = <nvmlDevice_t>of_whole
        device.gpu_instance = gpu_instance
        for p in range(self.core.plans):
            gputel_reading_forget(
                gputel_reading_of(&self.core.plan[p], slot), &self.core.plan[p]
            )
        device.generation += 1
        device.attached = 1
        self.core.used = max(self.core.used, slot + 1)
        gputel_unlock(self.turns)

    def detach(self, int slot):
        """Ask this GPU no more; a row that a thread is still busy with is discarded.

        False when it was not attached.
        """
        cdef gputel_device *device = self._device(slot)
        gputel_lock(self.turns)
        was = device.attached != 0
        if was:
            gputel_detach_locked(device)
        gputel_unlock(self.turns)
        return was

    def is_attached(self, int slot):
        """Is this GPU asked?"""
        return self._device(slot).attached != 0

    def is_busy(self, int slot):
        """Has a thread claimed this GPU?"""
        return self._device(slot).busy != 0

    def set_xid(self, int slot, xid):
        """The last XID of this GPU; None: XIDs can't be seen."""
        self._device(slot).xid_last = -1 if xid is None else xid

    # ---- The turn -------------------------------------------------------------------------

    @property
    def turn(self):
        """The turn that may sweep now."""
        return self.turns.turn

    def claim(self, uint64_t turn, int slot):
        """Begin calls of one's own for this GPU; False: another thread has it, or the turn."""
        self._device(slot)
        cdef uint64_t now_ticks = gputel_ticks(&self.core.base)
        gputel_lock(self.turns)
        mine = gputel_claim(self.turns, &self.core, turn, slot, now_ticks)
        gputel_unlock(self.turns)
        return mine

    def finish(self, uint64_t turn, int slot):
        """End what `claim` began; False when the turn was taken away meanwhile."""
        self._device(slot)
        gputel_lock(self.turns)
        mine = gputel_finish(self.turns, &self.core, turn, slot)
        gputel_unlock(self.turns)
        return mine

    def abandon(self, int64_t limit_ns):
        """Take the turn from a thread whose call lasts `limit_ns`; False when none does."""
        return gputel_abandon(self.turns, &self.core, self._ticks(limit_ns))

    def stuck_ns(self, int slot):
        """How long the call in progress on this GPU lasts; 0 when there is none."""
        self._device(slot)
        cdef double ticks = gputel_age_ticks(&self.core, slot)
        return max(0, <int64_t>(ticks * gputel_ns_per_tick(&self.core.base)))

    def watch(self, int64_t limit_ns):
        """Wait until something is wrong: the turn's thread is in a call for `limit_ns`, or any
        attached GPU's call lasts for STALLED_NS. Its slot; -1 after `close`."""
        cdef int64_t limit = self._ticks(limit_ns)
        cdef int64_t stalled = self._ticks(STALLED_NS)
        cdef int64_t poll_ns = min(max(limit_ns // 2, POLL_NS_MIN), POLL_NS_MAX)
        cdef timespec pause
        cdef int slot = GPUTEL_NOBODY
        pause.tv_sec = 0
        pause.tv_nsec = poll_ns
        with nogil:
            while slot == GPUTEL_NOBODY and not self.turns.closing:
                slot = self._trouble(limit, stalled)
                if slot == GPUTEL_NOBODY:
                    clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL)
        return slot

    cdef int _trouble(self, int64_t limit, int64_t stalled) noexcept nogil:
        cdef int slot = self.turns.current
        if slot != GPUTEL_NOBODY and gputel_age_ticks(&self.core, slot) >= limit:
            return slot
        for slot in range(self.core.devices):
            if self.core.device[slot].attached and gputel_age_ticks(&self.core, slot) >= stalled:
                return slot
        return GPUTEL_NOBODY

    def close(self):
        """Let `watch` return; nothing is asked any more."""
        self.turns.closing = 1

    def release(self):
        """Give the driver's buffers back; no thread is busy with a GPU."""
        cdef int slot, p
        with nogil:
            for slot in range(self.core.devices):
                for p in range(self.core.plans):
                    gputel_gpm_release(&self.core, gputel_reading_of(&self.core.plan[p], slot))

    cdef int64_t _ticks(self, int64_t ns):
        return <int64_t>(ns / gputel_ns_per_tick(&self.core.base))

    # ---- The sweep ------------------------------------------------------------------------

    def sweep(
        self, uint64_t turn, int plan, int64_t time_ns, int64_t monotonic_ns,
        uint64_t lateness_us, Ring ring not None, int64_t time_left_ns=NO_LIMIT
    ):
        """Write the rows of plan number `plan`, one an attached GPU that has not been asked
        for `time_ns` yet (any number for samples); a gputel.plan.Swept. After `time_left_ns`
        no further GPU is begun, but the first always is."""
        cdef gputel_reader reader
        cdef uint32_t late = min(lateness_us, LATENESS_MAX)
        cdef uint64_t until_ticks = ~<uint64_t>0
        cdef int swept
        if not 0 <= plan < self.core.plans or ring.cells != self.core.plan[plan].columns:
            raise ValueError(f"plan {plan} does not write the rows of this ring")
        if time_left_ns != NO_LIMIT:
            until_ticks = gputel_ticks(&self.core.base) + self._ticks(max(time_left_ns, 0))
        reader.core = &self.core
        reader.plan = &self.core.plan[plan]
        reader.plan_index = plan
        reader.time_ns = time_ns
        reader.monotonic_ns = monotonic_ns
        memset(reader.row, 0, sizeof(reader.row))
        with nogil:
            swept = self._sweep(&reader, turn, late, ring, until_ticks)
        return swept

    cdef int _sweep(
        self, gputel_reader *reader, uint64_t turn, uint32_t late, Ring ring,
        uint64_t until_ticks
    ) noexcept nogil:
        cdef gputel_round progress
        cdef uint64_t start_ticks = gputel_ticks(&self.core.base)
        cdef uint64_t now_ticks = start_ticks
        cdef int asked = 0
        cdef int outcome
        cdef int swept = DONE
        progress.slot = progress.passed = 0
        progress.slow = False
        gputel_lock(self.turns)
        while True:
            reader.slot = gputel_next(
                &self.core, reader.plan_index, reader.time_ns, &progress
            )
            if reader.slot == GPUTEL_NOBODY:
                if not gputel_has_turn(self.turns, turn):
                    swept = ABANDONED
                break
            if asked and now_ticks >= until_ticks:
                swept = PREEMPTED
                break
            if not gputel_claim(self.turns, &self.core, turn, reader.slot, now_ticks):
                continue
            asked += 1
            gputel_reader_begin(reader)
            gputel_prefetch_row(ring.rows + ring.head_slot * ring.row_bytes, ring.row_bytes)
            gputel_unlock(self.turns)
            if reader.plan.samples:
                outcome = gputel_drain(reader)
            else:
                outcome = gputel_read(reader)
                # PERF(header): the lock waits until all writes before it are in the cache, and
                # the copy to the ring then has not to.
                _fill_header(reader, reader.time_ns, late)
            now_ticks = gputel_timing_end(reader)
            gputel_lock(self.turns)
            _keep(self.turns, reader, outcome, ring)
            if not gputel_finish(self.turns, &self.core, turn, reader.slot):
                swept = ABANDONED
                break
        gputel_timing_check(reader, start_ticks, asked)
        gputel_unlock(self.turns)
        return swept

    # ---- What it noticed and what it cost -------------------------------------------------

    def notes(self):
        """What sweeps have noticed since the last call, as (Note, slot, plan, column, time_ns,
        before, value)."""
        if self.turns.entries == 0:
            return []
        # No object is made under the lock: that may run other Python, which may want it.
        cdef gputel_note *taken = <gputel_note *>_zeroed(GPUTEL_LOG_MAX, sizeof(gputel_note))
        cdef int entries, i
        cdef uint64_t overflow
        gputel_lock(self.turns)
        entries = self.turns.entries
        overflow = self.turns.overflow
        memcpy(taken, self.turns.log, entries * sizeof(gputel_note))
        self.turns.entries = 0
        self.turns.overflow = 0
        gputel_unlock(self.turns)
        found = [
            (
                Note(taken[i].kind), taken[i].slot, taken[i].plan, taken[i].column,
                taken[i].time_ns, taken[i].before, taken[i].value,
            )
            for i in range(entries)
        ]
        free(taken)
        if overflow:
            found.append((Note.OVERFLOW, 0, 0, 0, 0, 0, float(overflow)))
        return found

    def costs(self, int plan):
        """(calls, ns, ns of the longest, errors by Outcome) of each of the plan's `asks`."""
        if not 0 <= plan < self.core.plans:
            raise IndexError(f"plan {plan} of {self.core.plans}")
        cdef double scale = gputel_ns_per_tick(&self.core.base)
        cdef gputel_reading *reading
        cdef gputel_cost *cost
        cdef int ask, slot, i
        found = []
        for ask in range(self.core.plan[plan].asks):
            calls = ticks = longest = 0
            errors = [0] * GPUTEL_OUTCOMES
            for slot in range(self.core.devices):
                reading = gputel_reading_of(&self.core.plan[plan], slot)
                cost = &reading.cost[ask]
                calls += gputel_get(&reading.calls[ask])
                ticks += gputel_get(&cost.ticks)
                longest = max(longest, gputel_get(&cost.ticks_max))
                for i in range(GPUTEL_OUTCOMES):
                    errors[i] += gputel_get(&cost.errors[i])
            found.append((calls, round(ticks * scale), round(longest * scale), tuple(errors)))
        return found

    def rejected(self, int plan):
        """Values out of range, by column."""
        if not 0 <= plan < self.core.plans:
            raise IndexError(f"plan {plan} of {self.core.plans}")
        return [
            self.core.rejected[plan * GPUTEL_COLUMNS_MAX + column]
            for column in range(self.core.plan[plan].columns)
        ]

    @property
    def skipped_samples(self):
        """Samples of the driver without a time, or with one that was there before."""
        return self.core.skipped_samples


cdef void _keep(
    gputel_turns *turns, gputel_reader *reader, int outcome, Ring ring
) noexcept nogil:
    """What a read has brought, under the lock: unless its GPU was given up meanwhile."""
    cdef gputel_device *device = reader.device
    cdef int i
    if device.generation != reader.generation:
        return
    if outcome == GPUTEL_LOST or outcome == GPUTEL_FATAL:
        gputel_detach_locked(device)
        gputel_note_down(
            reader, GPUTEL_NOTE_LOST if outcome == GPUTEL_LOST else GPUTEL_NOTE_FATAL,
            0, 0, device.code
        )
    elif reader.plan.samples:
        while gputel_drain_row(reader):
            _fill_header(reader, reader.row[0], 0)
            _write(reader, ring)
    else:
        _write(reader, ring)
    for i in range(device.notes):
        gputel_log(turns, &device.note[i])


cdef inline void _fill_header(
    gputel_reader *reader, int64_t time_ns, uint32_t late
) noexcept nogil:
    """All of the row's header but the validity bits."""
    cdef RowHeader *header = <RowHeader *>reader.row
    header.time_ns = time_ns
    header.gpu = reader.slot
    header.lateness_us = late
    header.sequence = reader.reading.sequence


cdef inline void _write(gputel_reader *reader, Ring ring) noexcept nogil:
    """Hand the row of the reading over; it is filled."""
    cdef RowHeader *row = reserve_row(ring)
    reader.reading.sequence += 1
    if row is not NULL:
        gputel_copy_words(<uint64_t *>row, reader.row, GPUTEL_ROW_CELLS + ring.cells)
        commit_row(ring)
