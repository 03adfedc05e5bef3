"""The chunk codec: columns in, bytes out, and back.

The format is drawn in gputel._reference.codec, the twin, and in docs/reference/chunk-format.md.
What runs per number is in C: bits.h, series.h and series_read.h, links.h, floats.h; a whole
chunk in chunk.h and chunk_read.h. Here the arrays of numpy are taken apart and made.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from cpython.unicode cimport PyUnicode_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

cimport numpy as cnp

import numpy as np

from gputel.chunks import STORAGE_DTYPES, ChunkHeader, DecodedChunk, check_chunk_arguments
from gputel.errors import ChunkCorrupt

cdef extern from "chunk.h" nogil:
    enum:
        GPUTEL_VERSION
        GPUTEL_PREAMBLE_BYTES
        GPUTEL_CRC_BYTES
        GPUTEL_COLUMNS_MAX
        GPUTEL_CHUNK_SAMPLES_MAX
        GPUTEL_ID_MAX
    ctypedef struct gputel_base:
        pass
    ctypedef struct gputel_scratch:
        int64_t *rows
        gputel_base *bases
        size_t n
    ctypedef struct gputel_column:
        const void *values
        const uint8_t *valid
        uint32_t id
        int storage
    void gputel_crc32c_init()
    uint32_t gputel_crc32c(const uint8_t *data, size_t size)
    uint32_t gputel_crc32c_portable(const uint8_t *data, size_t size)
    uint8_t gputel_last_mask(size_t n)
    size_t gputel_chunk_bytes_max(size_t n, size_t columns)
    size_t gputel_write_chunk(
        gputel_scratch *scratch, uint32_t set_id, const int64_t *time_ns,
        const int64_t *sequence, gputel_column *columns, size_t count, uint8_t *out)

cnp.import_array()
gputel_crc32c_init()

# In the order of gputel_refusal (bits.h).
_REFUSALS = (
    "nothing is wrong",
    "truncated",
    "a varint is longer than 10 bytes",
    "a varint is above 2**64 - 1",
    "packed numbers: padding bits are set",
    "a width above 64 bits",
    "unknown tag of a series",
    "a common divisor below 2",
    "differences of one number",
    "a link's shift above 63",
    "no column to predict a series from",
    "unknown tag of a column",
    "a bitmap without, or of all, or of too many rows",
    "more than 9 decimals",
    "the bits of a f32 are above 2**32 - 1",
    "the times contradict the header",
    "the sequences contradict the header",
    "bytes after the last column",
    "a set id above 65535",
    f"no count of samples from 1 to {GPUTEL_CHUNK_SAMPLES_MAX}",
    "the latest time is no i64",
    "too many runs of metric ids",
    "metric ids out of bounds, or too many",
    "a metric id occurs twice",
)
cdef int[4] _TYPES = [cnp.NPY_FLOAT32, cnp.NPY_FLOAT64, cnp.NPY_INT64, cnp.NPY_UINT64]


def encode_chunk(
    set_id, metric_ids, str storages not None, time_ns, sequence, columns, valid
):
    """One chunk of n rows, 1 <= n <= CHUNK_SAMPLES_MAX; arrays as in `gputel.batch.Batch`.

    Columns without a value are left out. ValueError: arguments that contradict one another.
    """
    if not _is_plain(set_id, metric_ids, storages, time_ns, sequence, columns, valid):
        check_chunk_arguments(set_id, metric_ids, storages, time_ns, sequence, columns, valid)
        # All is as it should be but for its layout in memory, or the order of the ids.
        time_ns, sequence = (np.require(array, "<i8", "CA") for array in (time_ns, sequence))
        columns = [
            np.require(column, STORAGE_DTYPES[storage], "CA")
            for storage, column in zip(storages, columns, strict=True)
        ]
        valid = np.ascontiguousarray(valid)
    return _encode(set_id, metric_ids, storages, time_ns, sequence, columns, valid)


cdef bint _is_plain(
    set_id, metric_ids, str storages, time_ns, sequence, columns, valid
) except -1:
    """Are all arguments as `_encode` needs them? False also where that is not known.

    PERF(encode): a chunk of one sample is written in 3 us, so its 20 arrays are looked at
    without a Python call. That ids which do not ascend are different is left to the slow check.
    """
    cdef Py_ssize_t j, n
    cdef Py_ssize_t count = len(columns)
    cdef object last = 0
    cdef int storage
    if not cnp.PyArray_Check(time_ns) or not cnp.PyArray_Check(valid) or time_ns.ndim != 1:
        return False
    n = cnp.PyArray_DIM(<cnp.ndarray>time_ns, 0)
    if (
        not 1 <= n <= GPUTEL_CHUNK_SAMPLES_MAX
        or not 1 <= count <= GPUTEL_COLUMNS_MAX
        or not 0 <= set_id <= GPUTEL_ID_MAX
        or not len(metric_ids) == len(storages) == count
        or not _is_vector(time_ns, n, cnp.NPY_INT64)
        or not _is_vector(sequence, n, cnp.NPY_INT64)
        or not _is_bitmaps(<cnp.ndarray>valid, count, (n + 7) // 8)
    ):
        return False
    for j in range(count):
        storage = storage_number(storages[j])
        number = metric_ids[j]
        if not last < number or storage < 0 or not _is_vector(columns[j], n, _TYPES[storage]):
            return False
        last = number
    return last <= GPUTEL_ID_MAX


cdef bint _is_vector(array, Py_ssize_t n, int type_number):
    """n numbers of a type of numpy, one after the other, aligned, in our byte order?"""
    return (
        cnp.PyArray_Check(array)
        and cnp.PyArray_NDIM(<cnp.ndarray>array) == 1
        and cnp.PyArray_DIM(<cnp.ndarray>array, 0) == n
        and cnp.PyArray_TYPE(<cnp.ndarray>array) == type_number
        and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>array)
    )


cdef bint _is_bitmaps(cnp.ndarray array, Py_ssize_t rows, Py_ssize_t row_bytes):
    """uint8[rows, row_bytes], each row in one piece?"""
    return (
        cnp.PyArray_NDIM(array) == 2
        and cnp.PyArray_TYPE(array) == cnp.NPY_UINT8
        and cnp.PyArray_DIM(array, 0) == rows
        and cnp.PyArray_DIM(array, 1) == row_bytes
        and (row_bytes == 1 or cnp.PyArray_STRIDE(array, 1) == 1)
    )


cdef int storage_number(Py_UCS4 code):
    """The number of a storage; -1: unknown."""
    if code == u"q":
        return 2
    if code == u"d":
        return 1
    if code == u"Q":
        return 3
    return 0 if code == u"f" else -1


cdef bytes _encode(
    uint32_t set_id, metric_ids, str storages,
    cnp.ndarray time_ns, cnp.ndarray sequence, columns, cnp.ndarray valid,
):
    """The chunk of arguments that are as they should be."""
    cdef gputel_column given[GPUTEL_COLUMNS_MAX]
    cdef gputel_scratch scratch
    cdef const int64_t *times = <const int64_t *>cnp.PyArray_DATA(time_ns)
    cdef const int64_t *sequences = <const int64_t *>cnp.PyArray_DATA(sequence)
    cdef const uint8_t *bitmaps = <const uint8_t *>cnp.PyArray_DATA(valid)
    cdef size_t j, size
    cdef size_t n = <size_t>cnp.PyArray_DIM(time_ns, 0)
    cdef size_t count = <size_t>len(columns)
    cdef size_t rows_bytes = (count + 2) * n * sizeof(int64_t)
    cdef size_t bases_bytes = count * sizeof(gputel_base)
    cdef char *memory
    cdef char *out
    for j in range(count):
        given[j].id = metric_ids[j]
        given[j].storage = storage_number(storages[j])
        given[j].values = cnp.PyArray_DATA(<cnp.ndarray?>columns[j])
        given[j].valid = bitmaps + <Py_ssize_t>j * cnp.PyArray_STRIDE(valid, 0)
    memory = <char *>PyMem_RawMalloc(rows_bytes + bases_bytes + gputel_chunk_bytes_max(n, count))
    if memory is NULL:
        raise MemoryError(f"a chunk of {count} columns and {n} samples")
    scratch.n = n
    scratch.rows = <int64_t *>memory
    scratch.bases = <gputel_base *>(memory + rows_bytes)
    out = memory + rows_bytes + bases_bytes
    try:
        with nogil:
            size = gputel_write_chunk(
                &scratch, set_id, times, sequences, given, count, <uint8_t *>out
            )
        return PyBytes_FromStringAndSize(out, <Py_ssize_t>size)
    finally:
        PyMem_RawFree(memory)


def read_chunk_header(payload):
    """The header of a chunk whose checksum is right. ChunkCorrupt."""
    cdef gputel_chunk chunk
    cdef gputel_cursor cursor
    cdef bytes data = payload if isinstance(payload, bytes) else bytes(payload)
    open_chunk(data, &cursor, &chunk)
    check_refusal(gputel_read_header(&cursor, &chunk), &cursor)
    return ChunkHeader(
        chunk.set_id, <Py_ssize_t>chunk.n, chunk.t0, chunk.t1, chunk.first, _ids(&chunk)
    )


def decode_chunk(payload):
    """All of a chunk. Allocates at most SET_COLUMNS_MAX arrays of n numbers, and these only
    once the chunk's form is known to be right. ChunkCorrupt."""
    cdef gputel_chunk chunk
    cdef gputel_cursor cursor
    cdef gputel_refusal refusal
    cdef cnp.npy_intp words
    cdef cnp.ndarray rows
    cdef int64_t *numbers
    cdef bytes data = payload if isinstance(payload, bytes) else bytes(payload)
    open_chunk(data, &cursor, &chunk)
    refusal = gputel_read_header(&cursor, &chunk)
    if refusal == 0:
        refusal = gputel_walk(&cursor, &chunk)
    check_refusal(refusal, &cursor)
    words = <cnp.npy_intp>((chunk.count + 2) * chunk.n)
    rows = cnp.PyArray_EMPTY(1, &words, cnp.NPY_INT64, 0)
    numbers = <int64_t *>cnp.PyArray_DATA(rows)
    with nogil:
        refusal = gputel_read_columns(&cursor, &chunk, numbers)
    check_refusal(refusal, &cursor)
    return _decoded(&chunk, rows, numbers)


cdef object _decoded(const gputel_chunk *chunk, cnp.ndarray rows, int64_t *numbers):
    """The columns of a chunk that was read into `numbers`, the memory of `rows`."""
    cdef size_t j
    cdef size_t n = chunk.n
    cdef char storages[GPUTEL_COLUMNS_MAX]
    cdef tuple columns = PyTuple_New(<Py_ssize_t>chunk.count)
    for j in range(chunk.count):
        storages[j] = b"fdqQ"[chunk.parts[j].storage]
        column = _view(rows, numbers + (2 + j) * n, n, _TYPES[chunk.parts[j].storage])
        Py_INCREF(column)
        PyTuple_SET_ITEM(columns, <Py_ssize_t>j, column)
    return DecodedChunk(
        chunk.set_id,
        _ids(chunk),
        PyUnicode_FromStringAndSize(storages, <Py_ssize_t>chunk.count),
        _view(rows, numbers, n, cnp.NPY_INT64),
        _view(rows, numbers + n, n, cnp.NPY_INT64),
        columns,
        _bitmaps(chunk),
    )


cdef object _view(cnp.ndarray rows, void *first, size_t n, int type_number):
    """n numbers in the memory of `rows`."""
    cdef cnp.npy_intp length = <cnp.npy_intp>n
    cdef cnp.ndarray view = cnp.PyArray_SimpleNewFromData(1, &length, type_number, first)
    cnp.set_array_base(view, rows)
    return view


cdef object _bitmaps(const gputel_chunk *chunk):
    """uint8[columns, ceil(n/8)]: which rows of each column have a value."""
    cdef size_t j
    cdef size_t row_bytes = (chunk.n + 7) // 8
    cdef cnp.npy_intp[2] shape = [<cnp.npy_intp>chunk.count, <cnp.npy_intp>row_bytes]
    cdef cnp.ndarray bitmaps = cnp.PyArray_EMPTY(2, shape, cnp.NPY_UINT8, 0)
    cdef uint8_t *out = <uint8_t *>cnp.PyArray_DATA(bitmaps)
    for j in range(chunk.count):
        if chunk.parts[j].bitmap is not NULL:
            memcpy(out, chunk.parts[j].bitmap, row_bytes)
        else:
            memset(out, 0xFF, row_bytes)
            out[row_bytes - 1] = gputel_last_mask(chunk.n)
        out += row_bytes
    return bitmaps


cdef tuple _ids(const gputel_chunk *chunk):
    cdef size_t j
    return tuple([chunk.ids[j] for j in range(chunk.count)])


cdef int open_chunk(bytes data, gputel_cursor *cursor, gputel_chunk *chunk) except -1:
    """Set the cursor at the set id of a chunk that is whole. ChunkCorrupt."""
    cdef const uint8_t *first = <const uint8_t *>PyBytes_AS_STRING(data)
    cdef Py_ssize_t end = PyBytes_GET_SIZE(data) - GPUTEL_CRC_BYTES
    cdef uint32_t says, found
    if (
        end < GPUTEL_PREAMBLE_BYTES
        or memcmp(first, b"GC", 2) != 0
        or not 1 <= first[2] <= GPUTEL_VERSION
    ):
        raise ChunkCorrupt(
            f"no chunk of version 1 to {GPUTEL_VERSION}: {len(data)} bytes, {data[:3].hex()} first"
        )
    found = gputel_crc32c(first, <size_t>end)
    memcpy(&says, first + end, GPUTEL_CRC_BYTES)
    if says != found:
        raise ChunkCorrupt(f"CRC32C is {found:08x}, the chunk says {says:08x}")
    cursor.data = first
    cursor.end = <size_t>end
    cursor.position = GPUTEL_PREAMBLE_BYTES
    chunk.version = first[2]
    return 0


cdef int check_refusal(gputel_refusal refusal, const gputel_cursor *cursor) except -1:
    if refusal != 0:
        raise ChunkCorrupt(f"{_REFUSALS[refusal]}, at byte {cursor.position}")
    return 0


def crc32c(data, *, portable=False):
    """CRC-32C of bytes; `portable`: without the processor's instruction, as elsewhere."""
    cdef const uint8_t[::1] view = data
    if view.shape[0] == 0:
        return 0
    if portable:
        return gputel_crc32c_portable(&view[0], <size_t>view.shape[0])
    return gputel_crc32c(&view[0], <size_t>view.shape[0])
