"""Hot rows of PostgreSQL's binary COPY stream, written from columns and read into columns.

The bytes, and what may become them, are drawn in gputel._reference.hot_rows, the twin; a row is
written and read in C (hot_rows.h). All rows of a set have one size, so that an append asks for
its room once. Columns that are read are numpy's, and grow by doubling while there are rows. The
GIL is kept while rows are written: a block takes microseconds.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy

cimport numpy as cnp

import numpy as np

from gputel.rows import ReadRows, check_storages

cnp.import_array()

cdef extern from "hot_rows.h" nogil:
    enum:
        FIELDS "GPUTEL_HOT_FIELDS"
        KEYS "GPUTEL_HOT_KEYS"
        VALID_BYTES "GPUTEL_HOT_VALID_BYTES"
        HEAD_BYTES "GPUTEL_HOT_HEAD_BYTES"
        COLUMNS_MAX "GPUTEL_HOT_COLUMNS_MAX"
    ctypedef struct gputel_hot_column:
        const char *data
        Py_ssize_t stride
        const uint8_t *valid
        int bytes
    ctypedef struct gputel_hot_target:
        char *values
        uint8_t *valid
        int column
        int at
        int bytes
    ctypedef struct gputel_hot_reader:
        int64_t **keys
        gputel_hot_target *targets
        int target_count
        int column_count
        int *ends
    ctypedef enum gputel_row_outcome:
        GPUTEL_ROW
        GPUTEL_PARTIAL
        GPUTEL_END
        GPUTEL_COUNT
        GPUTEL_LENGTH
        GPUTEL_TIME
        GPUTEL_VALUES
        GPUTEL_VALID
    ctypedef struct gputel_hot_reading:
        const char *at
        const char *end
        int64_t number
        int64_t length
        int64_t *keys
    char *put16 "gputel_put16"(char *out, uint16_t number)
    char *put_integer "gputel_put_integer"(char *out, int size_bytes, const char *cell)
    char *put_time "gputel_put_time"(char *out, const char *cell)
    char *put_values "gputel_put_values"(
        char *out, const gputel_hot_column *columns, int count, uint32_t size_bytes, Py_ssize_t i)
    gputel_row_outcome gputel_read_hot_row(
        gputel_hot_reading *reading, const gputel_hot_reader *reader, size_t row)

cdef enum:
    FIRST_BYTES = 4096
    FIRST_ROWS = 256

cdef Py_ssize_t STREAM_BYTES_MAX = <Py_ssize_t>1 << 60  # before it can overflow
cdef bytes HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
cdef bytes TRAILER = b"\xff\xff"

_DTYPES = {
    "f": np.dtype(np.float32),
    "d": np.dtype(np.float64),
    "q": np.dtype(np.int64),
    "Q": np.dtype(np.uint64),
}
cdef object INT64 = _DTYPES["q"]
_KEY_NAMES = ("gpu_id", "time", "epoch", "sequence")


cdef class HotStream:
    """A stream of the rows of a set whose columns are `storages`, struct codes such as "dqq".

    ValueError: a code that is none of f, d, q, Q, or more columns than a set has.
    """

    cdef list dtypes
    cdef gputel_hot_column[COLUMNS_MAX] columns
    cdef int column_count
    cdef uint32_t cells_bytes
    cdef char *start
    cdef Py_ssize_t capacity_bytes
    cdef Py_ssize_t used_bytes
    cdef Py_ssize_t row_count
    cdef bint finished

    def __cinit__(self, storages):
        cdef int j
        check_storages(storages)
        self.dtypes = [_DTYPES[storage] for storage in storages]
        self.column_count = len(storages)
        self.cells_bytes = VALID_BYTES
        for j in range(self.column_count):
            self.columns[j].bytes = self.dtypes[j].itemsize
            self.cells_bytes += <uint32_t>self.columns[j].bytes
        self.reserve(FIRST_BYTES)
        memcpy(self.start, PyBytes_AS_STRING(HEADER), <size_t>len(HEADER))
        self.used_bytes = len(HEADER)

    def __dealloc__(self):
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

    def append(self, gpu_id, epoch, time_ns, sequence, columns, valid):
        """Append n samples: time_ns and sequence int64[n]; columns one array[n] a metric.

        gpu_id: int64[n], or one for all. valid: uint8[c, ceil(n/8)], bitmaps (LSB first); what a
        cleared bit hides is not looked at. Times are floored to the microsecond.

        ValueError: another number of columns or rows. TypeError: another dtype. OverflowError: a
        GPU or epoch that is no i64. All name what is wrong, and leave the stream as it was.
        """
        # Held here until all is written: `bind` keeps only pointers.
        cdef tuple held = tuple(columns)
        cdef object bitmaps = valid
        cdef int64_t one_gpu = 0
        cdef int64_t one_epoch
        cdef const char *gpus = <const char *>&one_gpu
        cdef Py_ssize_t gpu_stride = 0
        cdef Py_ssize_t rows, time_stride, sequence_stride, i
        cdef Py_ssize_t row_bytes = HEAD_BYTES + <Py_ssize_t>self.cells_bytes
        cdef const char *times
        cdef const char *sequences
        cdef char *out
        if self.finished:
            raise ValueError("the stream is finished")
        if not isinstance(time_ns, cnp.ndarray):
            raise TypeError(f"time_ns: can't hold {type(time_ns).__name__}")
        rows = len(time_ns) if time_ns.ndim else 0
        times = _data("time_ns", time_ns, INT64, rows, &time_stride)
        sequences = _data("sequence", sequence, INT64, rows, &sequence_stride)
        if not isinstance(gpu_id, int):
            gpus = _data("gpu_id", gpu_id, INT64, rows, &gpu_stride)
        if not valid.flags.c_contiguous:
            bitmaps = np.ascontiguousarray(valid)
        self.bind(held, bitmaps, rows)
        if isinstance(gpu_id, int):
            one_gpu = _i64("gpu_id", gpu_id)
        one_epoch = _i64("epoch", epoch)
        if rows > (STREAM_BYTES_MAX - self.used_bytes) // row_bytes:
            raise MemoryError(f"{rows} rows of {row_bytes} bytes")
        self.reserve(rows * row_bytes)
        out = self.start + self.used_bytes
        for i in range(rows):
            out = put16(out, FIELDS)
            out = put_integer(out, 8, gpus + i * gpu_stride)
            out = put_time(out, times + i * time_stride)
            out = put_integer(out, 8, <const char *>&one_epoch)
            out = put_integer(out, 8, sequences + i * sequence_stride)
            out = put_values(out, self.columns, self.column_count, self.cells_bytes, i)
        self.used_bytes = out - self.start
        self.row_count += rows

    def finish(self):
        """The whole stream; nothing can be appended any more."""
        if not self.finished:
            self.reserve(len(TRAILER))
            memcpy(self.start + self.used_bytes, PyBytes_AS_STRING(TRAILER), <size_t>len(TRAILER))
            self.used_bytes += len(TRAILER)
            self.finished = True
        return memoryview(self)

    cdef int bind(self, tuple columns, cnp.ndarray valid, Py_ssize_t rows) except -1:
        """Point to the values of each column, and to its bitmap in `valid`, which is contiguous."""
        cdef Py_ssize_t bitmap_bytes = (rows + 7) // 8
        cdef int j
        if len(columns) != self.column_count:
            raise ValueError(f"{len(columns)} columns for a set of {self.column_count} metrics")
        for j in range(self.column_count):
            self.columns[j].data = _data(
                j, columns[j], self.dtypes[j], rows, &self.columns[j].stride
            )
        if (
            cnp.PyArray_TYPE(valid) != cnp.NPY_UINT8
            or cnp.PyArray_NDIM(valid) != 2
            or cnp.PyArray_DIM(valid, 0) != self.column_count
            or cnp.PyArray_DIM(valid, 1) != bitmap_bytes
        ):
            shape = (<object>valid).shape
            raise ValueError(
                f"valid is {valid.dtype}{shape}, not uint8{(self.column_count, bitmap_bytes)}"
            )
        for j in range(self.column_count):
            self.columns[j].valid = <const uint8_t *>cnp.PyArray_DATA(valid) + j * bitmap_bytes
        return 0

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


cdef const char *_data(
    object what, object values, object dtype, Py_ssize_t rows, Py_ssize_t *stride
) except? NULL:
    """The first of `rows` values, and how far it is from one to the next.

    `what` names them in errors; of a column it is the number.
    """
    cdef cnp.ndarray array
    if isinstance(values, cnp.ndarray):
        array = values
        if (
            (array.descr is dtype or array.descr == dtype)
            and cnp.PyArray_NDIM(array) == 1
            and cnp.PyArray_DIM(array, 0) == rows
        ):
            stride[0] = cnp.PyArray_STRIDE(array, 0)
            return <const char *>cnp.PyArray_DATA(array)
    name = f"column {what}" if isinstance(what, int) else what
    if not isinstance(values, cnp.ndarray):
        raise TypeError(f"{name}: can't hold {type(values).__name__}")
    if values.dtype != dtype:
        raise TypeError(f"{name}: can't hold {values.dtype}")
    raise ValueError(f"{name}: values of shape {values.shape} for {rows} rows")


cdef int64_t _i64(str name, object number) except? -1:
    if not INT64_MIN <= number <= INT64_MAX:
        raise OverflowError(f"{name}: {number} is outside {INT64_MIN} to {INT64_MAX}")
    return number


cdef class HotRows:
    """Takes a stream of the rows of a set in pieces, and gives the columns `wanted` (indices).

    ValueError: `storages` as for HotStream. IndexError: a column that the set does not have.
    """

    cdef list keys
    cdef list columns
    cdef list valid
    cdef bytes rest  # of a row, or of the header, that has no end yet
    cdef gputel_hot_reader reader
    cdef Py_ssize_t row_count
    cdef Py_ssize_t capacity_rows
    cdef bint begun
    cdef bint ended
    cdef bint broken

    def __cinit__(self, storages, wanted):
        cdef int j, k
        cdef tuple chosen = tuple(wanted)
        check_storages(storages)
        self.reader.column_count = len(storages)
        self.reader.ends[0] = VALID_BYTES
        for j in range(self.reader.column_count):
            self.reader.ends[j + 1] = self.reader.ends[j] + <int>_DTYPES[storages[j]].itemsize
        self.reader.target_count = len(chosen)
        self.reader.targets = <gputel_hot_target *>PyMem_Calloc(
            <size_t>(len(chosen) + 1), sizeof(gputel_hot_target)
        )
        if self.reader.targets is NULL:
            raise MemoryError()
        self.keys = [np.empty(0, np.int64) for _ in range(KEYS)]
        self.columns = []
        self.valid = []
        for k in range(self.reader.target_count):
            if not 0 <= chosen[k] < self.reader.column_count:
                raise IndexError(
                    f"column {chosen[k]} of a set of {self.reader.column_count} metrics"
                )
            j = chosen[k]
            self.reader.targets[k].column = j
            self.reader.targets[k].at = self.reader.ends[j]
            self.reader.targets[k].bytes = self.reader.ends[j + 1] - self.reader.ends[j]
            self.columns.append(np.empty(0, _DTYPES[storages[j]]))
            self.valid.append(np.empty(0, np.bool_))
        self.rest = b""

    def __dealloc__(self):
        PyMem_Free(self.reader.targets)

    @property
    def rows(self):
        """Whole rows so far."""
        return self.row_count

    def feed(self, data):
        """The next bytes of the stream, cut anywhere.

        ValueError: they are no rows of this set. It names the field or the row; nothing can be
        fed any more.
        """
        cdef bytes piece = data if isinstance(data, bytes) else bytes(data)
        cdef gputel_hot_reading reading
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

    cdef bint begin(self, gputel_hot_reading *reading) except -1:
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

    cdef gputel_row_outcome read(self, gputel_hot_reading *reading) noexcept nogil:
        """Read what there is. GPUTEL_ROW: there may be more, but no room for it."""
        cdef gputel_row_outcome outcome
        while self.row_count < self.capacity_rows:
            outcome = gputel_read_hot_row(reading, &self.reader, <size_t>self.row_count)
            if outcome != GPUTEL_ROW:
                return outcome
            self.row_count += 1
        return GPUTEL_ROW

    cdef int reserve(self, Py_ssize_t rows) except -1:
        """Let the columns have room for so many rows."""
        cdef int k
        # Nobody else has seen the arrays.
        for k in range(KEYS):
            self.keys[k].resize(rows, refcheck=False)
            self.reader.keys[k] = <int64_t *>cnp.PyArray_DATA(self.keys[k])
        for k in range(self.reader.target_count):
            self.columns[k].resize(rows, refcheck=False)
            self.valid[k].resize(rows, refcheck=False)
            self.reader.targets[k].values = <char *>cnp.PyArray_DATA(self.columns[k])
            self.reader.targets[k].valid = <uint8_t *>cnp.PyArray_DATA(self.valid[k])
        self.capacity_rows = rows
        return 0

    cdef int refuse(self, gputel_row_outcome outcome, const gputel_hot_reading *reading) except -1:
        if outcome == GPUTEL_COUNT:
            raise ValueError(f"a row of {reading.number} fields, not {FIELDS}")
        if outcome == GPUTEL_LENGTH:
            name = _KEY_NAMES[reading.number]
            raise ValueError(f"field {reading.number} ({name}): {reading.length} bytes")
        if outcome == GPUTEL_TIME:
            raise ValueError("field 1 (time): a time out of range")
        origin = (
            f"cells of GPU {reading.keys[0]}, epoch {reading.keys[2]}, sequence {reading.keys[3]}"
        )
        if outcome == GPUTEL_VALUES:
            raise ValueError(
                f"{origin}: {reading.length} bytes, where "
                f"{self.reader.ends[self.reader.column_count]} hold the set's "
                f"{self.reader.column_count} metrics"
            )
        raise ValueError(
            f"{origin}: metric {reading.number} of {reading.length} is said to be valid"
        )

    def finish(self):
        """All columns. ValueError: the stream has no end yet."""
        if not self.ended or self.broken:
            raise ValueError(
                f"the stream ends after {self.row_count} rows, without a trailer"
            )
        self.reserve(self.row_count)
        return ReadRows(*self.keys, tuple(self.columns), tuple(self.valid))
