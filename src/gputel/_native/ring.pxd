"""The ring for other kernels: what a sampler (producer) and the columns (consumer) call nogil."""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "ring.h" nogil:
    ctypedef struct gputel_ring_cursors:
        pass
    gputel_ring_cursors *gputel_ring_cursors_new()
    uint64_t gputel_head_relaxed(gputel_ring_cursors *cursors)
    uint64_t gputel_head_acquire(gputel_ring_cursors *cursors)
    void gputel_head_release(gputel_ring_cursors *cursors, uint64_t head)
    uint64_t gputel_tail_relaxed(gputel_ring_cursors *cursors)
    uint64_t gputel_tail_acquire(gputel_ring_cursors *cursors)
    void gputel_tail_release(gputel_ring_cursors *cursors, uint64_t tail)
    uint64_t gputel_dropped(gputel_ring_cursors *cursors)
    void gputel_drop(gputel_ring_cursors *cursors, uint64_t rows)
    void gputel_prefetch_row(const char *row, size_t row_bytes)
    void gputel_copy_words(uint64_t *to, const uint64_t *words, size_t count)


# The header of a row; its cells follow at once, 8 bytes each.
ctypedef struct RowHeader:
    int64_t time_ns
    uint32_t gpu
    uint32_t lateness_us
    uint64_t valid
    int64_t sequence


cdef class Ring:
    cdef gputel_ring_cursors *cursors
    cdef char *rows
    cdef size_t row_bytes
    cdef uint64_t capacity
    cdef int cells
    cdef uint64_t cells_mask  # the bits of `valid` that have a cell
    cdef bint drops
    # The slots of head and tail, kept beside them because a division a row is dear.
    cdef uint64_t head_slot
    cdef uint64_t tail_slot
    cdef readonly str storages
    cdef readonly object when_full
    cdef readonly object row_dtype
    cdef bytes codes

    # The producer's side, beside `reserve_row` and `commit_row`.
    cdef uint64_t write(self, const char *rows, uint64_t count) noexcept nogil

    # The consumer's side. `readable` rows are pending; `run` gives how many of them lie in
    # one piece from `first` on; `release` gives the oldest ones back.
    cdef uint64_t readable(self) noexcept nogil
    cdef uint64_t run(self, uint64_t rows, const char **first) noexcept nogil
    cdef void release(self, uint64_t rows) noexcept nogil


# PERF(inline): a sampler makes a row in tens of nanoseconds.
cdef inline RowHeader *reserve_row(Ring ring) noexcept nogil:
    """The next free slot; NULL when there is none, which is counted when the ring drops. The row
    is the consumer's once `commit_row` is called."""
    cdef uint64_t head = gputel_head_relaxed(ring.cursors)
    if head - gputel_tail_acquire(ring.cursors) == ring.capacity:
        if ring.drops:
            gputel_drop(ring.cursors, 1)
        return NULL
    return <RowHeader *>(ring.rows + ring.head_slot * ring.row_bytes)


cdef inline void commit_row(Ring ring) noexcept nogil:
    ring.head_slot += 1
    if ring.head_slot == ring.capacity:
        ring.head_slot = 0
    gputel_head_release(ring.cursors, gputel_head_relaxed(ring.cursors) + 1)
