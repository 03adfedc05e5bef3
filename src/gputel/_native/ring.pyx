"""The ring: rows in a circle, between one producing and one consuming thread, without a lock.

A row, in the machine's byte order (gputel.rows):

    byte  0        8     12            16      24         32    40         32+8c
          +--------+-----+-------------+-------+----------+-----+--- ... --+
          | time_ns| gpu | lateness_us | valid | sequence | c0  | c1       |
          | i64    | u32 | u32         | u64   | i64      | 8 bytes a cell |
          +--------+-----+-------------+-------+----------+-----+--- ... --+

The circle:

    slot      0     1     2     3     4     5     6     7        capacity 8
            +-----+-----+-----+-----+-----+-----+-----+-----+
            |     |     | row | row | row | row |     |     |
            +-----+-----+-----+-----+-----+-----+-----+-----+
                          ^ tail_slot             ^ head_slot

head and tail (ring.h) count rows and never go back: head - tail rows are pending. Only the
producer moves head, only the consumer tail. The twin is gputel._reference.ring.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.math cimport fabs, isfinite
from libc.stdlib cimport free
from libc.string cimport memcpy

from gputel.rows import LATENESS_US_MAX, WhenFull, row_dtype

cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef double F32_MAX = 3.4028234663852886e38
cdef size_t CACHE_LINE = 64


cdef class Ring:
    """A bounded queue of rows between one producing and one consuming thread.

    ValueError: a capacity below 1, or storages that `row_dtype` refuses.
    """

    def __cinit__(self, str storages, capacity_rows, when_full=WhenFull.DROP_NEWEST):
        if capacity_rows < 1:
            raise ValueError(f"capacity_rows is {capacity_rows}, at least 1 is needed")
        self.storages = storages
        self.when_full = when_full
        self.row_dtype = row_dtype(storages)
        self.codes = storages.encode()
        self.capacity = capacity_rows
        self.row_bytes = self.row_dtype.itemsize
        self.cells = len(storages)
        self.cells_mask = ~<uint64_t>0 >> (64 - self.cells)
        self.drops = when_full is WhenFull.DROP_NEWEST
        # Checked with Python's integers: the product may not fit a size_t.
        size = capacity_rows * self.row_dtype.itemsize
        size += -size % CACHE_LINE
        if size >= 2**48:
            raise MemoryError(f"a ring of {size} bytes")
        self.cursors = gputel_ring_cursors_new()
        self.rows = <char *>aligned_alloc(CACHE_LINE, size)
        if self.cursors is NULL or self.rows is NULL:
            raise MemoryError(f"a ring of {size} bytes")

    def __dealloc__(self):
        free(self.cursors)
        free(self.rows)

    @property
    def capacity_rows(self):
        """Rows it can hold."""
        return self.capacity

    @property
    def pushed_rows(self):
        """Rows ever taken in."""
        return gputel_head_acquire(self.cursors)

    @property
    def dropped_rows(self):
        """Rows refused because the ring was full; always 0 under BLOCK."""
        return gputel_dropped(self.cursors)

    @property
    def pending_rows(self):
        """Rows waiting for the consumer."""
        # The tail first: then the head, read later, is never behind it.
        cdef uint64_t tail = gputel_tail_acquire(self.cursors)
        return min(gputel_head_acquire(self.cursors) - tail, self.capacity)

    @property
    def free_rows(self):
        """Rows that fit now."""
        return self.capacity - self.pending_rows

    def push(self, time_ns, gpu, sequence, lateness_us, values):
        """Write one row; None is a missing value, NaN is a value. False when the ring is full.

        A lateness above 2**32 - 1 us is written as that. ValueError: not one value a column.
        TypeError, OverflowError: a number that its field can't hold, with the field's name.
        """
        # All is checked before a slot is reserved: a bad row is no dropped row.
        cdef uint64_t scratch[4 + 64]  # words, for their alignment
        cdef RowHeader *header = <RowHeader *>scratch
        cdef char *cell = <char *>(header + 1)
        cdef const char *codes = PyBytes_AS_STRING(self.codes)
        cdef int j
        header.time_ns = _integer("time_ns", time_ns, -(2**63), 2**63 - 1)
        header.gpu = _integer("gpu", gpu, 0, 2**32 - 1)
        header.sequence = _integer("sequence", sequence, -(2**63), 2**63 - 1)
        header.lateness_us = min(
            _integer("lateness_us", lateness_us, 0, 2**64 - 1), LATENESS_US_MAX
        )
        header.valid = 0
        if len(values) != self.cells:
            raise ValueError(f"{len(values)} values for {self.cells} columns")
        for j in range(self.cells):
            value = values[j]
            (<uint64_t *>cell)[0] = 0
            if value is not None:
                header.valid |= <uint64_t>1 << j
                _write_cell(cell, j, codes[j], value)
            cell += 8
        return self.write(<const char *>scratch, 1) == 1

    def push_rows(self, rows):
        """Write as many of `rows` (of `row_dtype`, one dimension) as fit; return how many.

        What does not fit is dropped and counted, or left to the caller under BLOCK.
        TypeError: another dtype or shape.
        """
        cdef const unsigned char[::1] view
        cdef const char *first
        cdef uint64_t count, taken
        if rows.dtype != self.row_dtype or rows.ndim != 1:
            raise TypeError(f"rows are {rows.dtype}[{rows.ndim}d], not a row_dtype vector")
        if len(rows) == 0:
            return 0
        if not rows.flags.c_contiguous:
            rows = rows.copy()
        view = rows.view("u1")
        first = <const char *>&view[0]
        count = <uint64_t>view.shape[0] // self.row_bytes
        with nogil:
            taken = self.write(first, count)
        return taken

    cdef uint64_t write(self, const char *rows, uint64_t count) noexcept nogil:
        """Copy up to `count` rows in; how many fitted. The rest is counted when the ring drops."""
        cdef uint64_t head = gputel_head_relaxed(self.cursors)
        cdef uint64_t space = self.capacity - (head - gputel_tail_acquire(self.cursors))
        cdef uint64_t taken = min(count, space)
        cdef uint64_t straight = min(taken, self.capacity - self.head_slot)
        cdef size_t straight_bytes = straight * self.row_bytes
        memcpy(self.rows + self.head_slot * self.row_bytes, rows, straight_bytes)
        self.head_slot += straight
        if self.head_slot == self.capacity:
            self.head_slot = taken - straight
            memcpy(self.rows, rows + straight_bytes, (taken - straight) * self.row_bytes)
        gputel_head_release(self.cursors, head + taken)
        if self.drops and taken < count:
            gputel_drop(self.cursors, count - taken)
        return taken

    cdef uint64_t readable(self) noexcept nogil:
        return gputel_head_acquire(self.cursors) - gputel_tail_relaxed(self.cursors)

    cdef uint64_t run(self, uint64_t rows, const char **first) noexcept nogil:
        first[0] = self.rows + self.tail_slot * self.row_bytes
        return min(rows, self.capacity - self.tail_slot)

    cdef void release(self, uint64_t rows) noexcept nogil:
        self.tail_slot += rows
        if self.tail_slot >= self.capacity:
            self.tail_slot -= self.capacity
        gputel_tail_release(self.cursors, gputel_tail_relaxed(self.cursors) + rows)


cdef object _integer(str name, value, low, high):
    if not hasattr(value, "__index__"):
        raise TypeError(f"{name}: {value!r} is no integer")
    number = int(value.__index__())
    if not low <= number <= high:
        raise OverflowError(f"{name}: {number} is outside {low} to {high}")
    return number


cdef int _write_cell(char *cell, int column, char code, value) except -1:
    cdef double number
    cdef str name = f"column {column} ({chr(code)})"
    if code == b"q":
        (<int64_t *>cell)[0] = _integer(name, value, -(2**63), 2**63 - 1)
        return 0
    if code == b"Q":
        (<uint64_t *>cell)[0] = _integer(name, value, 0, 2**64 - 1)
        return 0
    try:
        number = float(value)
    except OverflowError:
        raise OverflowError(f"{name}: {value} is too large") from None
    except (TypeError, ValueError):
        raise TypeError(f"{name}: {value!r} is no number") from None
    if code == b"d":
        (<double *>cell)[0] = number
        return 0
    if isfinite(number) and fabs(number) > F32_MAX:
        raise OverflowError(f"{name}: {number} is too large")
    (<float *>cell)[0] = <float>number
    return 0
