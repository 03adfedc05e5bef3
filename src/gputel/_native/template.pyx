"""Text with holes that the numbers of cells go into; drawn in gputel._reference.template, the
twin.

A hole keeps the number that it was last filled with, as bits and as text, so that only what has
changed is written anew. The page is then copied together into one `bytes` of its size.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.math cimport fabs, isfinite, isnan
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from gputel._reference.template import DIVISOR_MAX, Hole

cdef extern from "decimal.h":
    const double GPUTEL_FIXED_LIMIT
    size_t gputel_put_u64(char *out, uint64_t number) noexcept nogil
    size_t gputel_put_i64(char *out, int64_t number) noexcept nogil
    size_t gputel_put_fixed(char *out, double value) noexcept nogil
    int64_t gputel_floor_divided(int64_t number, int64_t divisor) noexcept nogil

cdef extern from "Python.h":
    bytes _PyUnicode_AsASCII "PyUnicode_AsASCIIString" (object text)

cdef enum:
    # The longest but for `%f` of large floats, which are kept aside: -2.2250738585072014e-308
    TEXT_BYTES_MAX = 24

cdef struct Filled:
    size_t text_bytes  # of the text in front
    Py_ssize_t row
    Py_ssize_t column
    int64_t divisor
    int64_t bits
    char form
    bint aside
    unsigned char size
    char text[TEXT_BYTES_MAX]


cdef class Template:
    """See the twin."""

    cdef Filled *_holes
    cdef Py_ssize_t _count
    cdef Py_ssize_t _rows_min
    cdef Py_ssize_t _columns_min
    cdef bytes _text
    cdef dict _aside  # hole to a number of more than TEXT_BYTES_MAX
    cdef Py_ssize_t _number_bytes  # of all numbers
    cdef bytes _tail
    cdef bytes _page

    def __cinit__(self, texts, holes):
        cdef list all_texts = list(texts)
        cdef list all_holes = list(holes)
        cdef Py_ssize_t number
        cdef Filled *filled
        self._count = len(all_holes)
        if len(all_texts) != self._count + 1:
            raise ValueError(
                f"{len(all_texts)} texts around {self._count} holes; there is one more"
            )
        self._holes = <Filled *>PyMem_Calloc(<size_t>self._count + 1, sizeof(Filled))
        if self._holes is NULL:
            raise MemoryError()
        self._text = b"".join(all_texts)
        self._aside = {}
        for number in range(self._count):
            row, column, form, divisor = hole = all_holes[number]
            if (
                min(row, column) < 0
                or form not in ("q", "Q", "f", "r")
                or not 1 <= divisor <= DIVISOR_MAX
            ):
                raise ValueError(f"{Hole(*hole)} can't be filled")
            filled = &self._holes[number]
            filled.text_bytes = <size_t>len(all_texts[number])
            filled.row, filled.column, filled.divisor = row, column, divisor
            filled.form = <char>ord(form)
            self._rows_min = max(self._rows_min, filled.row + 1)
            self._columns_min = max(self._columns_min, filled.column + 1)

    def __dealloc__(self):
        PyMem_Free(self._holes)

    def fill(self, const int64_t[:, ::1] cells not None, bytes tail not None):
        """See the twin."""
        cdef Py_ssize_t number
        cdef bytes page = self._page
        cdef bint first = page is None
        cdef bint same = not first and self._tail == tail
        cdef int64_t bits
        cdef Filled *hole
        if cells.shape[0] < self._rows_min or cells.shape[1] < self._columns_min:
            raise IndexError(
                f"a hole is outside of {cells.shape[0]} x {cells.shape[1]} cells; there are "
                f"{self._rows_min} x {self._columns_min} at least"
            )
        self._page = None  # should a hole fail, all of them are written again
        for number in range(self._count):
            hole = &self._holes[number]
            bits = cells[hole.row, hole.column]
            if first or bits != hole.bits:
                same = False
                self._write(number, hole, bits)
        if not same:
            page = self._together(tail)
        self._page, self._tail = page, tail
        return page

    cdef int _write(self, Py_ssize_t number, Filled *hole, int64_t bits) except -1:
        """Write the number with these bits into a hole."""
        cdef double value
        cdef size_t size
        self._number_bytes -= len(self._aside.pop(number)) if hole.aside else hole.size
        hole.bits, hole.aside, hole.size = bits, False, 0
        if hole.form == c"q":
            size = gputel_put_i64(hole.text, gputel_floor_divided(bits, hole.divisor))
        elif hole.form == c"Q":
            size = gputel_put_u64(hole.text, <uint64_t>bits // <uint64_t>hole.divisor)
        else:
            memcpy(&value, &bits, sizeof(value))
            value /= <double>hole.divisor
            if hole.form == c"f" and fabs(value) < GPUTEL_FIXED_LIMIT:
                size = gputel_put_fixed(hole.text, value)
            else:
                return self._write_by_python(number, hole, value)
        hole.size = <unsigned char>size
        self._number_bytes += hole.size
        return 0

    cdef int _write_by_python(self, Py_ssize_t number, Filled *hole, double value) except -1:
        cdef bytes text
        if not isfinite(value):
            text = b"NaN" if isnan(value) else b"+Inf" if value > 0 else b"-Inf"
        else:
            text = _PyUnicode_AsASCII(f"{value:f}" if hole.form == c"f" else repr(value))
        if len(text) > TEXT_BYTES_MAX:
            hole.aside = True
            self._aside[number] = text
        else:
            hole.size = <unsigned char>len(text)
            memcpy(hole.text, PyBytes_AS_STRING(text), hole.size)
        self._number_bytes += len(text)
        return 0

    cdef bytes _together(self, bytes tail):
        """The page of what the holes hold."""
        cdef const char *text = PyBytes_AS_STRING(self._text)
        cdef const char *end = text + PyBytes_GET_SIZE(self._text)
        cdef bytes page = PyBytes_FromStringAndSize(
            NULL, PyBytes_GET_SIZE(self._text) + self._number_bytes + PyBytes_GET_SIZE(tail)
        )
        cdef char *out = PyBytes_AS_STRING(page)
        cdef Py_ssize_t number
        cdef Filled *hole
        for number in range(self._count):
            hole = &self._holes[number]
            memcpy(out, text, hole.text_bytes)
            out += hole.text_bytes
            text += hole.text_bytes
            if hole.aside:
                out = put_bytes(out, self._aside[number])
            else:
                memcpy(out, hole.text, hole.size)
                out += hole.size
        memcpy(out, text, <size_t>(end - text))
        out = put_bytes(out + (end - text), tail)
        assert out == PyBytes_AS_STRING(page) + PyBytes_GET_SIZE(page)
        return page


cdef inline char *put_bytes(char *out, bytes data) noexcept:
    memcpy(out, PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data))
    return out + PyBytes_GET_SIZE(data)
