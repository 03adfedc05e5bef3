"""Reading a chunk, for other kernels: open it, read its header, walk it, read its columns."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef extern from "chunk_read.h" nogil:
    # Tags that are the numbers of _REFUSALS.
    ctypedef int gputel_refusal
    ctypedef struct gputel_cursor:
        const uint8_t *data
        size_t position
        size_t end
    ctypedef struct gputel_part:
        int storage
        const uint8_t *bitmap
    ctypedef struct gputel_chunk:
        int version
        uint32_t set_id
        size_t n
        int64_t t0
        int64_t t1
        int64_t first
        size_t count
        uint32_t *ids
        gputel_part *parts
    gputel_refusal gputel_read_header(gputel_cursor *cursor, gputel_chunk *chunk)
    gputel_refusal gputel_walk(gputel_cursor *cursor, gputel_chunk *chunk)
    gputel_refusal gputel_read_columns(
        gputel_cursor *cursor, const gputel_chunk *chunk, int64_t *rows)


cdef int storage_number(Py_UCS4 code)
cdef int open_chunk(bytes data, gputel_cursor *cursor, gputel_chunk *chunk) except -1
cdef int check_refusal(gputel_refusal refusal, const gputel_cursor *cursor) except -1
