"""Many small chunks of one metric set as one block of rows; gputel._reference.chunk_rows draws it.

A row waits as words: its time, its sequence, a bit for each valid cell, and the cells. Which
arrays they become is known only at the end; till then nothing is made in Python.
"""

from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

cimport numpy as cnp

from gputel._native.codec cimport (
    check_refusal,
    gputel_chunk,
    gputel_cursor,
    gputel_read_columns,
    gputel_read_header,
    gputel_refusal,
    gputel_walk,
    open_chunk,
    storage_number,
)

from gputel import limits
from gputel.chunks import SMALL_SAMPLES_MAX, RowBlock, check_layout

cdef enum:
    COLUMNS_MAX = 64
    SMALL_MAX = 31
    ROW_TIME = 0  # words of a row that stand before its cells
    ROW_SEQUENCE = 1
    ROW_VALID = 2
    ROW_CELLS = 3

assert COLUMNS_MAX == limits.SET_COLUMNS_MAX
assert SMALL_MAX == SMALL_SAMPLES_MAX

cnp.import_array()

cdef int[4] TYPES = [cnp.NPY_FLOAT32, cnp.NPY_FLOAT64, cnp.NPY_INT64, cnp.NPY_UINT64]


cdef class ChunkRows:
    """Takes chunks of the metric set that is given; ValueError: it contradicts itself."""

    cdef uint32_t set_id
    cdef size_t count, used, capacity
    cdef uint32_t[COLUMNS_MAX] ids
    cdef int[COLUMNS_MAX] storages
    cdef uint64_t *rows

    def __cinit__(self, set_id, metric_ids, str storages not None):
        cdef size_t j
        check_layout(set_id, metric_ids, storages)
        self.set_id = set_id
        self.count = <size_t>len(metric_ids)
        for j in range(self.count):
            self.ids[j] = metric_ids[j]
            self.storages[j] = storage_number(storages[j])

    def __dealloc__(self):
        PyMem_Free(self.rows)

    def __len__(self):
        return <Py_ssize_t>self.used

    def take(self, payload):
        """(samples, t0 in ns, t1 in ns, bits of the columns it has) once the rows of a chunk
        are taken; None for a chunk that does not fit. ChunkCorrupt. Else nothing is taken."""
        cdef gputel_chunk chunk
        cdef gputel_cursor cursor
        cdef gputel_refusal refusal
        cdef int64_t[(COLUMNS_MAX + 2) * SMALL_MAX] numbers
        cdef size_t[COLUMNS_MAX] places
        cdef bytes data = payload if isinstance(payload, bytes) else bytes(payload)
        open_chunk(data, &cursor, &chunk)
        check_refusal(gputel_read_header(&cursor, &chunk), &cursor)
        if chunk.set_id != self.set_id or chunk.n > SMALL_MAX:
            return None
        refusal = gputel_walk(&cursor, &chunk)
        if refusal == 0:
            refusal = gputel_read_columns(&cursor, &chunk, numbers)
        check_refusal(refusal, &cursor)
        if not self.fits(&chunk, places):
            return None
        self.reserve(chunk.n)
        return <Py_ssize_t>chunk.n, chunk.t0, chunk.t1, self.add(&chunk, places, numbers)

    cdef bint fits(self, const gputel_chunk *chunk, size_t *places) noexcept:
        """Are the chunk's columns some of ours, in our order? `places` says which."""
        cdef size_t k
        cdef size_t j = 0
        for k in range(chunk.count):
            while j < self.count and self.ids[j] != chunk.ids[k]:
                j += 1
            if j == self.count or self.storages[j] != chunk.parts[k].storage:
                return False
            places[k] = j
            j += 1
        return True

    cdef int reserve(self, size_t n) except -1:
        """Make room for n rows more."""
        cdef size_t wanted = self.used + n
        cdef void *moved
        if wanted <= self.capacity:
            return 0
        wanted = max(wanted, 2 * self.capacity)
        moved = PyMem_Realloc(self.rows, wanted * (ROW_CELLS + self.count) * sizeof(uint64_t))
        if moved is NULL:
            raise MemoryError(f"{wanted} rows of {self.count} columns")
        self.rows = <uint64_t *>moved
        self.capacity = wanted
        return 0

    cdef uint64_t add(
        self, const gputel_chunk *chunk, const size_t *places, const int64_t *numbers
    ) noexcept:
        """Turn a chunk's columns into rows; the bits of the columns it has."""
        cdef size_t n = chunk.n
        cdef size_t width = ROW_CELLS + self.count
        cdef uint64_t *first = self.rows + self.used * width
        cdef uint64_t *row
        cdef const int64_t *column
        cdef const uint8_t *bitmap
        cdef uint64_t bit
        cdef uint64_t present = 0
        cdef size_t i, k
        memset(first, 0, n * width * sizeof(uint64_t))
        for i in range(n):
            row = first + i * width
            row[ROW_TIME] = <uint64_t>numbers[i]
            row[ROW_SEQUENCE] = <uint64_t>numbers[n + i]
        for k in range(chunk.count):
            column = numbers + (2 + k) * n
            bitmap = chunk.parts[k].bitmap
            bit = <uint64_t>1 << places[k]
            present |= bit
            for i in range(n):
                if bitmap is not NULL and not (bitmap[i >> 3] >> (i & 7)) & 1:
                    continue
                row = first + i * width
                row[ROW_VALID] |= bit
                if self.storages[places[k]] == 0:
                    row[ROW_CELLS + places[k]] = (<const uint32_t *>column)[i]
                else:
                    row[ROW_CELLS + places[k]] = <uint64_t>column[i]
        self.used += n
        return present

    def block(self):
        """All rows taken so far; at least one."""
        cdef cnp.npy_intp n = <cnp.npy_intp>self.used
        cdef cnp.npy_intp[2] shape = [<cnp.npy_intp>self.count, (n + 7) // 8]
        cdef cnp.ndarray valid
        cdef size_t j
        assert n
        valid = cnp.PyArray_ZEROS(2, shape, cnp.NPY_UINT8, 0)
        for j in range(self.count):
            self.put_bitmap(j, <uint8_t *>cnp.PyArray_DATA(valid) + <cnp.npy_intp>j * shape[1])
        return RowBlock(
            self.column(ROW_TIME, 2),
            self.column(ROW_SEQUENCE, 2),
            tuple([self.column(ROW_CELLS + j, self.storages[j]) for j in range(self.count)]),
            valid,
        )

    cdef void put_bitmap(self, size_t j, uint8_t *out) noexcept:
        cdef size_t width = ROW_CELLS + self.count
        cdef size_t i
        for i in range(self.used):
            out[i >> 3] |= <uint8_t>(((self.rows[i * width + ROW_VALID] >> j) & 1) << (i & 7))

    cdef object column(self, size_t word, int storage):
        """One word of each row, as numbers of a storage."""
        cdef cnp.npy_intp n = <cnp.npy_intp>self.used
        cdef cnp.ndarray array = cnp.PyArray_EMPTY(1, &n, TYPES[storage], 0)
        cdef const uint64_t *cell = self.rows + word
        cdef uint32_t *narrow = <uint32_t *>cnp.PyArray_DATA(array)
        cdef uint64_t *wide = <uint64_t *>cnp.PyArray_DATA(array)
        cdef size_t i
        for i in range(self.used):
            if storage == 0:
                narrow[i] = <uint32_t>cell[0]
            else:
                wide[i] = cell[0]
            cell += ROW_CELLS + self.count
        return array
