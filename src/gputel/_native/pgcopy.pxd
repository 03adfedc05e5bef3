"""The COPY stream's state; its bytes are drawn in gputel._reference.pgcopy."""

from libc.stdint cimport int64_t, uint8_t


cdef struct Span:
    const char *data
    Py_ssize_t size_bytes


cdef struct Field:
    int kind
    const char *data  # the first row's value, or its Span
    Py_ssize_t stride  # bytes from row to row; 0: one value for all
    Py_ssize_t element_stride  # arrays: bytes from element to element
    Py_ssize_t elements
    const uint8_t *valid  # a bitmap; NULL: no NULLs
    int64_t number  # where `data` points for a number that stands in every row
    Span span  # the same for str and bytes
    Span *spans  # ours: one a row of a list


cdef class CopyStream:
    cdef tuple types
    cdef Py_ssize_t fields
    cdef Field *field
    cdef char *start
    cdef Py_ssize_t capacity_bytes
    cdef Py_ssize_t used_bytes
    cdef Py_ssize_t row_count
    cdef bint finished

    cdef int reserve(self, Py_ssize_t size_bytes) except -1
    cdef Py_ssize_t bind(self, Py_ssize_t number, object values, Py_ssize_t rows) except -1
    cdef Py_ssize_t bind_array(self, Py_ssize_t number, object values, Py_ssize_t rows) except -1
    cdef Py_ssize_t bind_list(self, Py_ssize_t number, list values, Py_ssize_t rows) except -1
    cdef Py_ssize_t bind_one(self, Py_ssize_t number, object value) except -1
    cdef int bind_valid(self, object valid, Py_ssize_t rows) except -1
    cdef int span_of(self, Py_ssize_t number, object value, Span *span) except -1
    cdef char *write(
        self, char *out, Py_ssize_t rows, Py_ssize_t *number, const char **culprit
    ) noexcept nogil
    cdef str name(self, Py_ssize_t number)
    cdef int refuse(self, Py_ssize_t number, object value) except -1
