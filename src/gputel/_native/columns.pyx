"""The column batcher: rows of all GPUs in, columns a GPU out.

Each GPU has one block of 8-byte words, allocated once, `stride` words a column:

    word   0            stride       2 stride             3 stride    4 stride
           +------------+------------+--------------------+-----------+---- ...
           | time_ns[n] | sequence[n]| lateness_us[n] u64 | valid[n]  | c0[n]  | c1[n] ...
           +------------+------------+--------------------+-----------+---- ...

`valid` is the rows' masks as they came; `seal` turns them into one bitmap a column. stride
is capacity_samples rounded up to a cache line, plus one line: with a power of two between
columns, the cells of a row would all compete for one set of the cache.

The twin is gputel._reference.columns.
"""

cimport numpy as cnp
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from gputel._native.ring cimport Ring, RowHeader

from gputel import limits
from gputel.rows import Sealed, check_storages

cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef enum:
    LINE_WORDS = 8
    FIXED_COLUMNS = 4  # time_ns, sequence, lateness_us, valid
    # Slots go back to the producer this often, so that a long drain does not stall it.
    RELEASE_ROWS = 512

ROWS_ALL = 2**62

cnp.import_array()


cdef class Columns:
    """Holds up to `capacity_samples` rows of each of `gpus` GPUs as columns.

    ValueError: storages that `row_dtype` refuses, or sizes out of bounds.
    """

    def __cinit__(self, str storages, Py_ssize_t gpus, Py_ssize_t capacity_samples):
        check_storages(storages)
        if not 1 <= capacity_samples <= limits.CHUNK_SAMPLES_MAX:
            raise ValueError(
                f"{capacity_samples} samples a GPU, 1 to {limits.CHUNK_SAMPLES_MAX} are allowed"
            )
        if not 0 <= gpus <= limits.GPUS_PER_COLLECTOR_MAX:
            raise ValueError(f"{gpus} GPUs, 0 to {limits.GPUS_PER_COLLECTOR_MAX} are allowed")
        self.storages = storages
        self.capacity_samples = capacity_samples
        self.cells = len(storages)
        self.cells_mask = ~<uint64_t>0 >> (64 - self.cells)
        self.stride = (<size_t>capacity_samples + 2 * LINE_WORDS - 1) & ~<size_t>(LINE_WORDS - 1)
        self.block_words = self.stride * <size_t>(FIXED_COLUMNS + self.cells)
        self.grow(gpus)

    def __dealloc__(self):
        cdef Py_ssize_t gpu
        for gpu in range(self.slots):
            free(self.blocks[gpu])
        PyMem_Free(self.blocks)
        PyMem_Free(self.counts)

    @property
    def gpus(self):
        """GPU slots there is room for."""
        return self.slots

    @property
    def pending_rows(self):
        """Rows held of all GPUs."""
        return self.held

    @property
    def fullest(self):
        """Rows held of the GPU that has the most."""
        return self.most

    def grow(self, Py_ssize_t gpus):
        """Make room for `gpus` GPUs in all; fewer than now changes nothing. ValueError."""
        cdef uint64_t **blocks
        cdef Py_ssize_t *counts
        if gpus > limits.GPUS_PER_COLLECTOR_MAX:
            raise ValueError(f"{gpus} GPUs, at most {limits.GPUS_PER_COLLECTOR_MAX} are allowed")
        if gpus <= self.slots:
            return
        blocks = <uint64_t **>PyMem_Realloc(self.blocks, gpus * sizeof(uint64_t *))
        if blocks is NULL:
            raise MemoryError()
        self.blocks = blocks
        counts = <Py_ssize_t *>PyMem_Realloc(self.counts, gpus * sizeof(Py_ssize_t))
        if counts is NULL:
            raise MemoryError()
        self.counts = counts
        while self.slots < gpus:
            blocks[self.slots] = <uint64_t *>aligned_alloc(64, self.block_words * 8)
            if blocks[self.slots] is NULL:
                raise MemoryError(f"columns of {self.block_words * 8} bytes a GPU")
            counts[self.slots] = 0
            self.slots += 1

    def drain(self, Ring ring not None, rows_max=ROWS_ALL):
        """Move up to `rows_max` of the rows pending now out of `ring`; return how many.

        Stops before a row whose GPU is full: seal, then drain again. ValueError: a ring of
        other storages; a row of a slot beyond `gpus`, which stays in the ring (grow first).
        """
        cdef Py_ssize_t moved
        cdef Py_ssize_t unknown = -1
        cdef uint64_t rows
        if ring.storages != self.storages:
            raise ValueError(f"ring of {ring.storages!r}, columns of {self.storages!r}")
        rows = min(max(rows_max, 0), ring.readable())
        with nogil:
            moved = self.move(ring, rows, &unknown)
        if unknown >= 0:
            raise ValueError(f"row of GPU slot {unknown}; there are {self.slots}, grow first")
        return moved

    cdef Py_ssize_t move(self, Ring ring, uint64_t rows, Py_ssize_t *unknown) noexcept nogil:
        """Take `rows` rows out of `ring` unless one must wait; how many were taken."""
        cdef Py_ssize_t moved = 0
        cdef Py_ssize_t taken
        cdef uint64_t wanted
        cdef const char *first
        while rows:
            wanted = ring.run(min(rows, <uint64_t>RELEASE_ROWS), &first)
            taken = self.scatter(first, wanted, ring.row_bytes, unknown)
            ring.release(<uint64_t>taken)
            moved += taken
            rows -= <uint64_t>taken
            if <uint64_t>taken < wanted:
                break
        return moved

    cdef Py_ssize_t scatter(
        self, const char *row, uint64_t rows, size_t row_bytes, Py_ssize_t *unknown
    ) noexcept nogil:
        """Spread `rows` rows over their blocks; how many, less than `rows` when one must wait."""
        cdef const RowHeader *header
        cdef const uint64_t *cells
        cdef uint64_t *out
        cdef uint64_t i, valid
        cdef Py_ssize_t count
        cdef int j
        cdef int width = self.cells
        cdef size_t stride = self.stride
        for i in range(rows):
            header = <const RowHeader *>row
            if <Py_ssize_t>header.gpu >= self.slots:
                unknown[0] = header.gpu
                return <Py_ssize_t>i
            count = self.counts[header.gpu]
            if count == self.capacity_samples:
                return <Py_ssize_t>i
            out = self.blocks[header.gpu] + count
            valid = header.valid & self.cells_mask
            out[0] = <uint64_t>header.time_ns
            out[stride] = <uint64_t>header.sequence
            out[2 * stride] = header.lateness_us
            out[3 * stride] = valid
            out += FIXED_COLUMNS * stride
            cells = <const uint64_t *>(header + 1)
            if valid == self.cells_mask:
                for j in range(width):
                    out[0] = cells[j]
                    out += stride
            else:
                for j in range(width):
                    out[0] = cells[j] if (valid >> j) & 1 else 0
                    out += stride
            count += 1
            self.counts[header.gpu] = count
            self.held += 1
            if count > self.most:
                self.most = count
            row += row_bytes
        return <Py_ssize_t>rows

    def take(self, Columns other not None):
        """Add a copy of the rows that `other` holds, which keeps them.

        False when one of its GPUs has no room for them: nothing is added then. ValueError:
        columns of other storages; rows of a slot beyond `gpus` (grow first).
        """
        cdef Py_ssize_t gpu, rows
        if other.storages != self.storages:
            raise ValueError(f"columns of {other.storages!r} into columns of {self.storages!r}")
        for gpu in range(other.slots):
            rows = other.counts[gpu]
            if rows and gpu >= self.slots:
                raise ValueError(f"row of GPU slot {gpu}; there are {self.slots}, grow first")
            if rows and self.counts[gpu] + rows > self.capacity_samples:
                return False
        with nogil:
            for gpu in range(other.slots):
                if other.counts[gpu]:
                    self.take_gpu(other, gpu)
        return True

    cdef void take_gpu(self, Columns other, Py_ssize_t gpu) noexcept nogil:
        """Behind what is held of `gpu`, where there is room."""
        cdef Py_ssize_t rows = other.counts[gpu]
        cdef uint64_t *target = self.blocks[gpu] + self.counts[gpu]
        cdef const uint64_t *source = other.blocks[gpu]
        cdef int _column
        for _column in range(FIXED_COLUMNS + self.cells):
            memcpy(target, source, <size_t>rows * 8)
            target += self.stride
            source += other.stride
        self.counts[gpu] += rows
        self.held += rows
        if self.counts[gpu] > self.most:
            self.most = self.counts[gpu]

    def seal(self):
        """Hand out what is held, GPUs in slot order, and begin anew."""
        cdef Py_ssize_t gpu
        cdef list sealed = []
        for gpu in range(self.slots):
            if self.counts[gpu]:
                sealed.append(self.seal_gpu(gpu))
        # Only now, so that an error above loses nothing.
        memset(self.counts, 0, <size_t>self.slots * sizeof(Py_ssize_t))
        self.held = 0
        self.most = 0
        return sealed

    cdef object seal_gpu(self, Py_ssize_t gpu):
        """Copies of what the block of `gpu` holds."""
        cdef Py_ssize_t n = self.counts[gpu]
        cdef const uint64_t *block = self.blocks[gpu]
        cdef size_t stride = self.stride
        cdef cnp.npy_intp[2] shape
        cdef Py_ssize_t j
        # PERF(seal): one array has the memory of all columns of a GPU, which are made over it
        # without a Python call: by indexing and views a column took 2 us, of one sample, too.
        shape[0], shape[1] = self.cells + 2, n
        cdef cnp.ndarray memory = cnp.PyArray_EMPTY(2, shape, cnp.NPY_UINT64, 0)
        cdef uint64_t *words = <uint64_t *>cnp.PyArray_DATA(memory)
        memcpy(words, block, <size_t>n * 8)
        time_ns = _over(memory, words, n, cnp.NPY_INT64)
        words += n
        memcpy(words, block + stride, <size_t>n * 8)
        sequence = _over(memory, words, n, cnp.NPY_INT64)
        cdef cnp.ndarray lateness_us = cnp.PyArray_EMPTY(1, &shape[1], cnp.NPY_UINT32, 0)
        _narrow(<uint32_t *>cnp.PyArray_DATA(lateness_us), block + 2 * stride, n)
        shape[0], shape[1] = self.cells, (n + 7) // 8
        cdef cnp.ndarray valid = cnp.PyArray_EMPTY(2, shape, cnp.NPY_UINT8, 0)
        _bitmaps(
            <uint8_t *>cnp.PyArray_DATA(valid), shape[1], block + 3 * stride, n, self.cells
        )
        cdef tuple columns = PyTuple_New(self.cells)
        for j in range(self.cells):
            words += n
            column = _column(
                self.storages[j], memory, words, block + (FIXED_COLUMNS + j) * stride, n
            )
            Py_INCREF(column)  # SET_ITEM takes one away
            PyTuple_SET_ITEM(columns, j, column)
        return Sealed(gpu, time_ns, sequence, columns, valid, lateness_us)


cdef object _column(
    Py_UCS4 storage, cnp.ndarray memory, uint64_t *target, const uint64_t *source, Py_ssize_t n
):
    """One column of n values, at `target` in `memory`."""
    if storage == u"f":
        _narrow(<uint32_t *>target, source, n)
        return _over(memory, target, n, cnp.NPY_FLOAT32)
    memcpy(target, source, <size_t>n * 8)
    if storage == u"d":
        return _over(memory, target, n, cnp.NPY_FLOAT64)
    return _over(memory, target, n, cnp.NPY_INT64 if storage == u"q" else cnp.NPY_UINT64)


cdef object _over(cnp.ndarray memory, void *data, Py_ssize_t n, int type_number):
    """n numbers of a type of numpy at `data`, which is in `memory`."""
    cdef cnp.npy_intp length = n
    array = cnp.PyArray_SimpleNewFromData(1, &length, type_number, data)
    cnp.set_array_base(array, memory)
    return array


cdef void _narrow(uint32_t *target, const uint64_t *source, Py_ssize_t n) noexcept nogil:
    """The low halves of n words: numbers of 32 bits, the bits of a f32."""
    cdef Py_ssize_t i
    for i in range(n):
        target[i] = <uint32_t>source[i]


cdef void _bitmaps(
    uint8_t *bitmaps, Py_ssize_t bitmap_bytes, const uint64_t *masks, Py_ssize_t n, int cells
) noexcept nogil:
    """Turn n masks of `cells` bits into `cells` bitmaps of n bits, LSB first."""
    cdef uint64_t gathered[8]
    cdef uint64_t everywhere
    cdef Py_ssize_t block, i, rows
    cdef uint8_t full, byte
    cdef int j
    for block in range(bitmap_bytes):
        rows = min(n - block * 8, 8)
        everywhere = ~<uint64_t>0
        for i in range(8):
            gathered[i] = masks[block * 8 + i] if i < rows else 0
            if i < rows:
                everywhere &= gathered[i]
        full = <uint8_t>((1 << rows) - 1)
        for j in range(cells):
            if (everywhere >> j) & 1:
                byte = full
            else:
                byte = 0
                for i in range(8):
                    byte |= <uint8_t>(((gathered[i] >> j) & 1) << i)
            bitmaps[j * bitmap_bytes + block] = byte
