"""Statistics of a block of samples by minute; what they are is told in gputel._reference.minutes.

Neighbouring rows of one minute are a run. A column is gone through run by run, with what the
minute has so far in registers; times that go back only make more runs.
"""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.math cimport INFINITY, NAN
from libc.stdint cimport int64_t, uint8_t, uint64_t

cimport numpy as cnp

import numpy as np

from gputel.rows import MinuteStatistics

cnp.import_array()

cdef int64_t MINUTE_NS = 60_000_000_000

ctypedef fused Number:
    double
    float
    int64_t
    uint64_t

cdef struct Run:
    Py_ssize_t end  # the row behind its last one
    Py_ssize_t minute  # its place among the minutes

cdef struct Statistics:
    int64_t n
    double min
    double max
    double sum


def minute_statistics(time_ns not None, columns, valid not None):
    """Of n rows; arrays as in `gputel.batch.Batch`. ValueError: shapes that contradict."""
    cdef cnp.ndarray times = _plain(time_ns)
    cdef cnp.ndarray bitmaps = _plain(valid)
    cdef list given = [_plain(column) for column in columns]
    cdef list present = []
    cdef Py_ssize_t rows = len(times)
    cdef Py_ssize_t bitmap_bytes = (rows + 7) // 8
    cdef const uint8_t *bits = <const uint8_t *>cnp.PyArray_DATA(bitmaps)
    cdef Py_ssize_t j, runs
    cdef Run *run
    if (
        times.descr.kind != c"i"
        or cnp.PyArray_ITEMSIZE(times) != 8
        or cnp.PyArray_TYPE(bitmaps) != cnp.NPY_UINT8
        or valid.shape != (len(given), bitmap_bytes)
        or any([column.shape != (rows,) for column in given])
    ):
        raise ValueError(f"{rows} times, {len(given)} columns, valid of shape {valid.shape}")
    for j in range(len(given)):
        if _any(bits + j * bitmap_bytes, rows):
            present.append(j)
    run = <Run *>PyMem_Malloc(<size_t>(rows + 1) * sizeof(Run))
    if run is NULL:
        raise MemoryError()
    try:
        runs = _runs(<const int64_t *>cnp.PyArray_DATA(times), rows, run)
        minutes = _number(<const int64_t *>cnp.PyArray_DATA(times), run, runs)
        return _statistics(given, present, bits, bitmap_bytes, run, runs, minutes)
    finally:
        PyMem_Free(run)


cdef cnp.ndarray _plain(object array):
    """Contiguous, aligned, in the machine's byte order: a copy only where it isn't."""
    if not cnp.PyArray_ISCARRAY_RO(<cnp.ndarray?>array):
        array = np.require(array, array.dtype.newbyteorder("="), "CA")
    return array


cdef bint _any(const uint8_t *bits, Py_ssize_t rows) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(rows >> 3):
        if bits[i]:
            return True
    return rows & 7 and bits[rows >> 3] & ((1 << (rows & 7)) - 1)


cdef Py_ssize_t _runs(const int64_t *times, Py_ssize_t rows, Run *run) noexcept nogil:
    """Fill in the ends; how many runs there are."""
    cdef Py_ssize_t runs = 0
    cdef Py_ssize_t i
    for i in range(1, rows):
        if times[i] // MINUTE_NS != times[i - 1] // MINUTE_NS:
            run[runs].end = i
            runs += 1
    if rows:
        run[runs].end = rows
        runs += 1
    return runs


cdef object _number(const int64_t *times, Run *run, Py_ssize_t runs):
    """Give each run its place among the minutes; int64[k], the minutes' beginnings."""
    cdef cnp.ndarray of_runs = np.empty(runs, np.int64)
    cdef int64_t *minute_ns = <int64_t *>cnp.PyArray_DATA(of_runs)
    cdef Py_ssize_t i
    cdef bint ascending = True
    for i in range(runs):
        minute_ns[i] = times[run[i].end - 1] // MINUTE_NS * MINUTE_NS
        run[i].minute = i
        if i and minute_ns[i] < minute_ns[i - 1]:
            ascending = False
    if ascending:
        return of_runs
    minutes, places = np.unique(of_runs, return_inverse=True)
    for i in range(runs):
        run[i].minute = places[i]
    return minutes


cdef object _statistics(
    list columns,
    list present,
    const uint8_t *bits,
    Py_ssize_t bitmap_bytes,
    const Run *run,
    Py_ssize_t runs,
    minutes,
):
    cdef Py_ssize_t count = len(minutes)
    cdef Py_ssize_t width = len(present)
    cdef cnp.ndarray n = np.empty((count, width), np.int64)
    cdef cnp.ndarray doubles = np.empty((3, count, width))
    cdef int64_t *n_of = <int64_t *>cnp.PyArray_DATA(n)
    cdef double *double_of = <double *>cnp.PyArray_DATA(doubles)
    cdef Py_ssize_t cells = count * width
    cdef Py_ssize_t j, k, column
    cdef Statistics *found = <Statistics *>PyMem_Malloc(<size_t>(count + 1) * sizeof(Statistics))
    if found is NULL:
        raise MemoryError()
    try:
        for j in range(width):
            for k in range(count):
                found[k] = Statistics(0, NAN, -INFINITY, 0.0)
            column = present[j]
            _add_column(columns[column], bits + column * bitmap_bytes, run, runs, found)
            for k in range(count):
                n_of[k * width + j] = found[k].n
                double_of[k * width + j] = found[k].min
                double_of[cells + k * width + j] = found[k].max
                double_of[2 * cells + k * width + j] = found[k].sum
    finally:
        PyMem_Free(found)
    return MinuteStatistics(minutes, tuple(present), n, doubles[0], doubles[1], doubles[2])


cdef int _add_column(
    cnp.ndarray column, const uint8_t *bits, const Run *run, Py_ssize_t runs, Statistics *found
) except -1:
    cdef void *values = cnp.PyArray_DATA(column)
    cdef char kind = column.descr.kind
    cdef Py_ssize_t size_bytes = cnp.PyArray_ITEMSIZE(column)
    if kind == c"f" and size_bytes == 8:
        _add_values(<const double *>values, bits, run, runs, found)
    elif kind == c"f" and size_bytes == 4:
        _add_values(<const float *>values, bits, run, runs, found)
    elif kind == c"i" and size_bytes == 8:
        _add_values(<const int64_t *>values, bits, run, runs, found)
    elif kind == c"u" and size_bytes == 8:
        _add_values(<const uint64_t *>values, bits, run, runs, found)
    else:
        raise ValueError(f"a column of {(<object>column).dtype}")
    return 0


cdef void _add_values(
    const Number *values, const uint8_t *bits, const Run *run, Py_ssize_t runs, Statistics *found
) noexcept nogil:
    """Add the valid values of a column to those of their minutes."""
    cdef Py_ssize_t row = 0
    cdef Py_ssize_t i
    cdef Statistics sofar
    cdef double value
    for i in range(runs):
        sofar = found[run[i].minute]
        while row < run[i].end:
            if (bits[row >> 3] >> (row & 7)) & 1:
                value = <double>values[row]
                sofar.n += 1
                sofar.sum += value
                # NaN is the greatest: a minimum gives it up, a maximum keeps it.
                if sofar.min != sofar.min or value < sofar.min:
                    sofar.min = value
                if sofar.max == sofar.max and not value <= sofar.max:
                    sofar.max = value
            row += 1
        found[run[i].minute] = sofar
