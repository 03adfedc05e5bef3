"""The column batcher's state; the layout of a block is drawn in columns.pyx."""

from libc.stdint cimport uint64_t

from gputel._native.ring cimport Ring


cdef class Columns:
    cdef readonly str storages
    cdef readonly Py_ssize_t capacity_samples
    cdef int cells
    cdef uint64_t cells_mask
    cdef size_t stride  # words from one column of a block to the next
    cdef size_t block_words
    cdef Py_ssize_t slots
    cdef Py_ssize_t held
    cdef Py_ssize_t most
    cdef uint64_t **blocks  # one a GPU
    cdef Py_ssize_t *counts

    cdef Py_ssize_t move(self, Ring ring, uint64_t rows, Py_ssize_t *unknown) noexcept nogil
    cdef Py_ssize_t scatter(
        self, const char *row, uint64_t rows, size_t row_bytes, Py_ssize_t *unknown
    ) noexcept nogil
    cdef void take_gpu(self, Columns other, Py_ssize_t gpu) noexcept nogil
    cdef object seal_gpu(self, Py_ssize_t gpu)
