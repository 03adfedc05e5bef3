"""PostgreSQL's binary COPY stream, read into columns.

What becomes of which type is told in gputel._reference.pgcopy_rows, the twin; a row is read in
C (pgcopy_read.h). The columns are numpy's, and grow by doubling while there are rows.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcmp

cimport numpy as cnp

import numpy as np

from gputel.rows import CopiedRows

cnp.import_array()

cdef extern from "pgcopy_read.h" nogil:
    ctypedef enum gputel_cell_kind:
        GPUTEL_CELL_4
        GPUTEL_CELL_8
        GPUTEL_CELL_TIME
        GPUTEL_CELL_NUMERIC
    ctypedef enum gputel_row_outcome:
        GPUTEL_ROW
        GPUTEL_PARTIAL
        GPUTEL_END
        GPUTEL_COUNT
        GPUTEL_LENGTH
        GPUTEL_RANGE
    ctypedef struct gputel_target:
        gputel_cell_kind kind
        char *values
        uint8_t *valid
    ctypedef struct gputel_reading:
        const char *at
        const char *end
        int64_t number
        int64_t length
    gputel_row_outcome gputel_read_row(
        gputel_reading *reading, const gputel_target *targets, int64_t count, size_t row)

cdef enum:
    FIELDS_MAX = 1600  # PostgreSQL's MaxHeapAttributeNumber
    FIRST_ROWS = 256

cdef bytes HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)

_KINDS = {
    "int8": (GPUTEL_CELL_8, np.int64, ""),
    "float4": (GPUTEL_CELL_4, np.float32, ""),
    "float8": (GPUTEL_CELL_8, np.float64, ""),
    "timestamptz_ns": (GPUTEL_CELL_TIME, np.int64, "a time out of range"),
    "numeric_u64": (GPUTEL_CELL_NUMERIC, np.uint64, "no whole number from 0 to 2**64 - 1"),
}


cdef class CopyRows:
    """Takes a stream of rows whose fields have `types` in pieces, and gives its columns.

    ValueError: a type that the twin's table does not have, or more fields than PostgreSQL has.
    """

    cdef tuple types
    cdef list columns
    cdef list valid
    cdef bytes rest  # of a row, or of the header, that has no end yet
    cdef gputel_target *targets
    cdef Py_ssize_t fields
    cdef Py_ssize_t row_count
    cdef Py_ssize_t capacity_rows
    cdef bint begun
    cdef bint ended
    cdef bint broken

    def __cinit__(self, types):
        cdef Py_ssize_t number
        self.types = tuple(types)
        self.fields = len(self.types)
        if not 1 <= self.fields <= FIELDS_MAX:
            raise ValueError(f"{self.fields} fields; 1 to {FIELDS_MAX} are allowed")
        self.targets = <gputel_target *>PyMem_Calloc(<size_t>self.fields, sizeof(gputel_target))
        if self.targets is NULL:
            raise MemoryError()
        self.columns = []
        self.valid = []
        for number in range(self.fields):
            if self.types[number] not in _KINDS:
                raise ValueError(f"field {number}: unknown type {self.types[number]!r}")
            kind, dtype, _ = _KINDS[self.types[number]]
            self.targets[number].kind = kind
            self.columns.append(np.empty(0, dtype))
            self.valid.append(np.empty(0, np.bool_))
        self.rest = b""

    def __dealloc__(self):
        PyMem_Free(self.targets)

    @property
    def rows(self):
        """Whole rows so far."""
        return self.row_count

    def feed(self, data):
        """The next bytes of the stream, cut anywhere.

        ValueError: they are not what `types` says. It names the field; nothing can be fed any
        more.
        """
        cdef bytes piece = data if isinstance(data, bytes) else bytes(data)
        cdef gputel_reading reading
        cdef gputel_row_outcome outcome
        if self.broken:
            raise ValueError("the stream is broken")
        if self.rest:
            piece = self.rest + piece
        reading.at = PyBytes_AS_STRING(piece)
        reading.end = reading.at + PyBytes_GET_SIZE(piece)
        if not self.begun and not self.begin(&reading):
            self.rest = piece
            return
        while not self.ended:
            outcome = self.read(&reading)
            if outcome == GPUTEL_ROW:
                self.reserve(max(FIRST_ROWS, 2 * self.capacity_rows))
                continue
            if outcome > GPUTEL_END:
                self.broken = True
                self.refuse(outcome, &reading)
            self.ended = outcome == GPUTEL_END
            break
        self.rest = reading.at[: reading.end - reading.at]
        if self.ended and self.rest:
            self.broken = True
            raise ValueError("bytes after the trailer")

    cdef bint begin(self, gputel_reading *reading) except -1:
        """Pass the header; False: it is not whole yet."""
        cdef Py_ssize_t size_bytes = len(HEADER)
        if reading.end - reading.at < size_bytes:
            return False
        if memcmp(reading.at, PyBytes_AS_STRING(HEADER), <size_t>size_bytes) != 0:
            self.broken = True
            raise ValueError("no binary COPY stream without flags and extension")
        reading.at += size_bytes
        self.begun = True
        return True

    cdef gputel_row_outcome read(self, gputel_reading *reading) noexcept nogil:
        """Read what there is. GPUTEL_ROW: there may be more, but no room for it."""
        cdef gputel_row_outcome outcome
        while self.row_count < self.capacity_rows:
            outcome = gputel_read_row(
                reading, self.targets, self.fields, <size_t>self.row_count
            )
            if outcome != GPUTEL_ROW:
                return outcome
            self.row_count += 1
        return GPUTEL_ROW

    cdef int reserve(self, Py_ssize_t rows) except -1:
        """Let the columns have room for so many rows."""
        cdef Py_ssize_t number
        for number in range(self.fields):
            # Nobody else has seen them.
            self.columns[number].resize(rows, refcheck=False)
            self.valid[number].resize(rows, refcheck=False)
            self.targets[number].values = <char *>cnp.PyArray_DATA(self.columns[number])
            self.targets[number].valid = <uint8_t *>cnp.PyArray_DATA(self.valid[number])
        self.capacity_rows = rows
        return 0

    cdef int refuse(self, gputel_row_outcome outcome, const gputel_reading *reading) except -1:
        if outcome == GPUTEL_COUNT:
            raise ValueError(f"a row of {reading.number} fields, not {self.fields}")
        kind = self.types[reading.number]
        reason = f"{reading.length} bytes" if outcome == GPUTEL_LENGTH else _KINDS[kind][2]
        raise ValueError(f"field {reading.number} ({kind}): {reason}")

    def finish(self):
        """All columns. ValueError: the stream has no end yet."""
        if not self.ended or self.broken:
            raise ValueError(
                f"the stream ends after {self.row_count} rows, without a trailer"
            )
        self.reserve(self.row_count)
        return CopiedRows(tuple(self.columns), tuple(self.valid))
