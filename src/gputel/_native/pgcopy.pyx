"""PostgreSQL's binary COPY stream, written straight from columns into one buffer.

The bytes, the types and what may become them are drawn in gputel._reference.pgcopy, the
twin. An append takes two steps: `bind` makes each column a pointer and a stride and says how
many bytes it needs at most; then `write` goes through the rows, and no bound is looked at
again. The GIL is kept: a block takes microseconds, and a stream has one writer.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from libc.stdint cimport INT16_MAX, INT16_MIN, INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

cimport numpy as cnp

import numpy as np

cnp.import_array()

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size_bytes) except NULL

cdef extern from "pgcopy.h" nogil:
    enum:
        ARRAY_HEAD_BYTES "GPUTEL_ARRAY_HEAD_BYTES"
    uint64_t load64 "gputel_load64"(const char *cell)
    char *put16 "gputel_put16"(char *out, uint16_t number)
    char *put_null "gputel_put_null"(char *out)
    char *put_integer "gputel_put_integer"(char *out, int size_bytes, const char *cell)
    char *put_time "gputel_put_time"(char *out, const char *cell)
    char *put_array "gputel_put_array"(
        char *out,
        int size_bytes,
        uint32_t oid,
        const char *cells,
        Py_ssize_t size,
        Py_ssize_t stride,
        const char **culprit,
    )
    char *put_bytes "gputel_put_bytes"(char *out, const char *data, Py_ssize_t size_bytes)

cdef enum:
    INT2
    INT4
    INT8
    TIMESTAMPTZ_NS
    INT2_ARRAY
    INT4_ARRAY
    FLOAT8_ARRAY
    TEXT
    BYTEA

cdef enum:
    FIRST_BYTES = 4096
    COUNT_BYTES = 2
    LENGTH_BYTES = 4
    FIELDS_MAX = 1600  # PostgreSQL's MaxHeapAttributeNumber
    PAYLOAD_BYTES_MAX = 0x3FFFFFFF  # PostgreSQL's MaxAllocSize

cdef Py_ssize_t STREAM_BYTES_MAX = <Py_ssize_t>1 << 60  # before it can overflow
cdef bytes HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
cdef bytes TRAILER = b"\xff\xff"

cdef struct Facts:
    char numpy_kind  # of the arrays it takes; 0: none
    int numpy_bytes
    int payload_bytes  # at most; of an array's element
    int64_t lowest
    int64_t highest
    uint32_t element_oid  # pg_type.dat

_KINDS = {
    "int2": INT2,
    "int4": INT4,
    "int8": INT8,
    "timestamptz_ns": TIMESTAMPTZ_NS,
    "int2[]": INT2_ARRAY,
    "int4[]": INT4_ARRAY,
    "float8[]": FLOAT8_ARRAY,
    "text": TEXT,
    "bytea": BYTEA,
}

cdef Facts[9] FACTS
FACTS[INT2] = FACTS[INT2_ARRAY] = Facts(c"i", 8, 2, INT16_MIN, INT16_MAX, 21)
FACTS[INT4] = FACTS[INT4_ARRAY] = Facts(c"i", 8, 4, INT32_MIN, INT32_MAX, 23)
FACTS[INT8] = FACTS[TIMESTAMPTZ_NS] = Facts(c"i", 8, 8, INT64_MIN, INT64_MAX, 0)
FACTS[FLOAT8_ARRAY] = Facts(c"f", 8, 8, 0, 0, 701)
FACTS[TEXT] = FACTS[BYTEA] = Facts(0, 0, 0, 0, 0, 0)


cdef class CopyStream:
    """A stream of rows whose fields have `types`; rows are appended a block at a time.

    ValueError: a type that the twin's table does not have, or more fields than PostgreSQL has.
    """

    def __cinit__(self, types):
        cdef Py_ssize_t number
        self.types = tuple(types)
        self.fields = len(self.types)
        if not 1 <= self.fields <= FIELDS_MAX:
            raise ValueError(f"{self.fields} fields; 1 to {FIELDS_MAX} are allowed")
        self.field = <Field *>PyMem_Calloc(<size_t>self.fields, sizeof(Field))
        if self.field is NULL:
            raise MemoryError()
        for number in range(self.fields):
            if self.types[number] not in _KINDS:
                raise ValueError(f"field {number}: unknown type {self.types[number]!r}")
            self.field[number].kind = _KINDS[self.types[number]]
        self.reserve(FIRST_BYTES)
        memcpy(self.start, PyBytes_AS_STRING(HEADER), <size_t>len(HEADER))
        self.used_bytes = len(HEADER)

    def __dealloc__(self):
        PyMem_Free(self.field)
        free(self.start)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if not self.finished:
            raise BufferError("the stream is not finished: it may still move")
        PyBuffer_FillInfo(buffer, self, self.start, self.used_bytes, 1, flags)

    @property
    def rows(self):
        """Rows appended so far."""
        return self.row_count

    @property
    def size_bytes(self):
        """Bytes of the stream so far."""
        return self.used_bytes

    def append(self, Py_ssize_t rows, values, valid=None):
        """Append `rows` rows; `values` gives each field its column, as the twin's table says.

        valid: uint8[c, ceil(rows/8)], the bitmaps (LSB first) of the last c fields: a cleared
        bit is NULL, and what it hides is not looked at. The fields before have no NULLs.

        ValueError: another number of fields or rows. TypeError: values that the type can't
        hold. OverflowError: a number outside the type's range. All name the field, and leave
        the stream as it was.
        """
        # Held here until `write` is done: `bind` keeps only pointers.
        cdef tuple columns = tuple(values)
        cdef Py_ssize_t needed = 0
        cdef Py_ssize_t row_bytes = COUNT_BYTES
        cdef Py_ssize_t number
        cdef const char *culprit = NULL
        cdef char *end
        if self.finished:
            raise ValueError("the stream is finished")
        if rows < 0:
            raise ValueError(f"{rows} rows")
        if len(columns) != self.fields:
            raise ValueError(f"{len(columns)} columns for {self.fields} fields")
        if valid is not None and not valid.flags.c_contiguous:
            valid = np.ascontiguousarray(valid)
        try:
            self.bind_valid(valid, rows)
            for number in range(self.fields):
                row_bytes += LENGTH_BYTES + self.bind(number, columns[number], rows)
                if self.field[number].spans is not NULL:
                    needed += _total(self.field[number].spans, rows)
            if rows > (STREAM_BYTES_MAX - needed - self.used_bytes) // row_bytes:
                raise MemoryError(f"{rows} rows of up to {row_bytes} bytes")
            self.reserve(needed + rows * row_bytes)
            end = self.write(self.start + self.used_bytes, rows, &number, &culprit)
            if end is NULL:
                self.refuse(number, <int64_t>load64(culprit))
        finally:
            for number in range(self.fields):
                PyMem_Free(self.field[number].spans)
                self.field[number].spans = NULL
        self.used_bytes = end - self.start
        self.row_count += rows

    def finish(self):
        """The whole stream; nothing can be appended any more."""
        if not self.finished:
            self.reserve(len(TRAILER))
            memcpy(self.start + self.used_bytes, PyBytes_AS_STRING(TRAILER), <size_t>len(TRAILER))
            self.used_bytes += len(TRAILER)
            self.finished = True
        return memoryview(self)

    cdef int reserve(self, Py_ssize_t size_bytes) except -1:
        """Make room for so many bytes more."""
        cdef Py_ssize_t wanted = self.used_bytes + size_bytes
        cdef char *moved
        if wanted <= self.capacity_bytes:
            return 0
        wanted = max(wanted, 2 * self.capacity_bytes)
        moved = <char *>realloc(self.start, <size_t>wanted)
        if moved is NULL:
            raise MemoryError(f"a COPY stream of {wanted} bytes")
        self.start = moved
        self.capacity_bytes = wanted
        return 0

    cdef str name(self, Py_ssize_t number):
        return f"field {number} ({self.types[number]})"

    cdef int refuse(self, Py_ssize_t number, object value) except -1:
        """OverflowError: a number outside its field's range."""
        cdef Facts facts = FACTS[self.field[number].kind]
        raise OverflowError(
            f"{self.name(number)}: {value} is outside {facts.lowest} to {facts.highest}"
        )

    cdef int bind_valid(self, object valid, Py_ssize_t rows) except -1:
        """Each field's bitmap, the last ones' out of `valid`, which is contiguous."""
        cdef Py_ssize_t bitmap_bytes = (rows + 7) // 8
        cdef Py_ssize_t number, first
        cdef cnp.ndarray bitmaps
        for number in range(self.fields):
            self.field[number].valid = NULL
        if valid is None:
            return 0
        bitmaps = valid
        if (
            cnp.PyArray_TYPE(bitmaps) != cnp.NPY_UINT8
            or cnp.PyArray_NDIM(bitmaps) != 2
            or cnp.PyArray_DIM(bitmaps, 0) > self.fields
            or cnp.PyArray_DIM(bitmaps, 1) != bitmap_bytes
        ):
            raise ValueError(
                f"valid is {valid.dtype}{valid.shape}, not uint8[c, {bitmap_bytes}] "
                f"with c of at most {self.fields} fields"
            )
        first = self.fields - cnp.PyArray_DIM(bitmaps, 0)
        for number in range(first, self.fields):
            self.field[number].valid = (
                <const uint8_t *>cnp.PyArray_DATA(bitmaps) + (number - first) * bitmap_bytes
            )
        return 0

    cdef Py_ssize_t bind(self, Py_ssize_t number, object values, Py_ssize_t rows) except -1:
        """Point the field at its values; bytes of a payload at most, but for lists."""
        if isinstance(values, cnp.ndarray):
            return self.bind_array(number, values, rows)
        if isinstance(values, list) and self.field[number].kind >= TEXT:
            return self.bind_list(number, values, rows)
        return self.bind_one(number, values)

    cdef Py_ssize_t bind_array(self, Py_ssize_t number, object values, Py_ssize_t rows) except -1:
        cdef cnp.ndarray array = values
        cdef Field *field = &self.field[number]
        cdef Facts facts = FACTS[field.kind]
        cdef bint of_arrays = INT2_ARRAY <= field.kind <= FLOAT8_ARRAY
        cdef int dimensions = cnp.PyArray_NDIM(array)
        if (
            facts.numpy_bytes == 0
            or array.descr.kind != facts.numpy_kind
            or cnp.PyArray_ITEMSIZE(array) != facts.numpy_bytes
            or not cnp.PyArray_ISNOTSWAPPED(array)
        ):
            raise TypeError(f"{self.name(number)}: can't hold {values.dtype}")
        field.data = <const char *>cnp.PyArray_DATA(array)
        if of_arrays and dimensions == 1:
            field.stride = 0
        elif dimensions == 1 + of_arrays and cnp.PyArray_DIM(array, 0) == rows:
            field.stride = cnp.PyArray_STRIDE(array, 0)
        else:
            raise ValueError(
                f"{self.name(number)}: values of shape {values.shape} for {rows} rows"
            )
        if not of_arrays:
            return facts.payload_bytes
        field.elements = cnp.PyArray_DIM(array, dimensions - 1)
        field.element_stride = cnp.PyArray_STRIDE(array, dimensions - 1)
        if field.elements > PAYLOAD_BYTES_MAX // (LENGTH_BYTES + 8) - ARRAY_HEAD_BYTES:
            raise ValueError(f"{self.name(number)}: {field.elements} elements are too many")
        return ARRAY_HEAD_BYTES + field.elements * (LENGTH_BYTES + facts.payload_bytes)

    cdef Py_ssize_t bind_list(self, Py_ssize_t number, list values, Py_ssize_t rows) except -1:
        cdef Field *field = &self.field[number]
        cdef Py_ssize_t i
        if len(values) != rows:
            raise ValueError(f"{self.name(number)}: {len(values)} values for {rows} rows")
        field.spans = <Span *>PyMem_Malloc(<size_t>(rows + 1) * sizeof(Span))
        if field.spans is NULL:
            raise MemoryError()
        for i in range(rows):
            field.spans[i].size_bytes = 0
            if field.valid is NULL or (field.valid[i >> 3] >> (i & 7)) & 1:
                self.span_of(number, values[i], &field.spans[i])
        field.data = <const char *>field.spans
        field.stride = sizeof(Span)
        return 0

    cdef Py_ssize_t bind_one(self, Py_ssize_t number, object value) except -1:
        """One value for all rows."""
        cdef Field *field = &self.field[number]
        field.stride = 0
        if field.kind >= TEXT:
            self.span_of(number, value, &field.span)
            field.data = <const char *>&field.span
            return field.span.size_bytes
        if not isinstance(value, int) or field.kind >= INT2_ARRAY:
            raise TypeError(f"{self.name(number)}: can't hold {type(value).__name__}")
        if not FACTS[field.kind].lowest <= value <= FACTS[field.kind].highest:
            self.refuse(number, value)
        field.number = value
        field.data = <const char *>&field.number
        return FACTS[field.kind].payload_bytes

    cdef int span_of(self, Py_ssize_t number, object value, Span *span) except -1:
        """The bytes of a str or bytes, which belong to it."""
        if self.field[number].kind == BYTEA and isinstance(value, bytes):
            span.data = PyBytes_AS_STRING(value)
            span.size_bytes = PyBytes_GET_SIZE(value)
        elif self.field[number].kind == TEXT and isinstance(value, str):
            span.data = PyUnicode_AsUTF8AndSize(value, &span.size_bytes)
        else:
            raise TypeError(f"{self.name(number)}: can't hold {type(value).__name__}")
        if span.size_bytes > PAYLOAD_BYTES_MAX:
            raise ValueError(
                f"{self.name(number)}: {span.size_bytes} bytes; {PAYLOAD_BYTES_MAX} are allowed"
            )
        return 0

    cdef char *write(
        self, char *out, Py_ssize_t rows, Py_ssize_t *number, const char **culprit
    ) noexcept nogil:
        """Write the rows bound at `out`, where there is room; the end of what was written.

        NULL: the field `number` can't hold the integer at `culprit`.
        """
        cdef Py_ssize_t i, j
        cdef Field *field
        for i in range(rows):
            out = put16(out, <uint16_t>self.fields)
            for j in range(self.fields):
                field = &self.field[j]
                if field.valid is not NULL and not (field.valid[i >> 3] >> (i & 7)) & 1:
                    out = put_null(out)
                    continue
                out = put_cell(out, field, field.data + i * field.stride, culprit)
                if out is NULL:
                    number[0] = j
                    return NULL
        return out


cdef inline char *put_cell(
    char *out, const Field *field, const char *cell, const char **culprit
) noexcept nogil:
    cdef int size_bytes = FACTS[field.kind].payload_bytes
    culprit[0] = cell
    if field.kind <= INT8:
        return put_integer(out, size_bytes, cell)
    if field.kind == TIMESTAMPTZ_NS:
        return put_time(out, cell)
    if field.kind <= FLOAT8_ARRAY:
        return put_array(
            out,
            size_bytes,
            FACTS[field.kind].element_oid,
            cell,
            field.elements,
            field.element_stride,
            culprit,
        )
    return put_bytes(out, (<const Span *>cell).data, (<const Span *>cell).size_bytes)


cdef Py_ssize_t _total(const Span *spans, Py_ssize_t rows) noexcept nogil:
    """Bytes of all of them: they are in memory, so this can't overflow."""
    cdef Py_ssize_t total = 0
    cdef Py_ssize_t i
    for i in range(rows):
        total += spans[i].size_bytes
    return total
