"""Records of the log: written into a commit, and read from a file.

A record is drawn in gputel._reference.records, the twin. What takes time (copying, checksums)
is done for a run of records at once, and without the GIL where it takes longer than to get that
back from a busy thread.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport UINT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from gputel import limits

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size_bytes) except NULL

cdef extern from "bits.h":
    pass  # refuses to be built where numbers don't lie in memory as they do in a record

cdef extern from "crc32c.h":
    void gputel_crc32c_init()
    uint32_t gputel_crc32c(const uint8_t *data, size_t size) nogil

cdef enum:
    HEADER_BYTES = 52
    CHECKED_AT = 8
    NAME_BYTES_MAX = 0xFFFF
    RUN_MAX = 64
    WITH_GIL_BYTES_MAX = 1 << 20

cdef Py_ssize_t RECORD_BYTES_MAX = limits.RECORD_BYTES_MAX

gputel_crc32c_init()

# Borrowed from an object that outlives it.
ctypedef struct Blob:
    const char *data
    Py_ssize_t size

ctypedef struct Item:
    uint64_t offset
    int64_t stored_at_ns
    uint64_t epoch
    uint64_t sequence
    uint32_t in_commit
    Py_ssize_t size
    Blob producer
    Blob key
    Blob payload


# -- encoding ------------------------------------------------------------------------------


def encode_records(records, Py_ssize_t first, uint64_t unsynced_offset, out, Py_ssize_t filled):
    """Write `records[first:]` into `out[filled:]`; see the twin."""
    cdef list taken = list(records)
    cdef list borrowed = []
    cdef list sizes = []
    cdef uint8_t[::1] target = out
    cdef Item items[RUN_MAX]
    cdef Py_ssize_t count, end
    cdef bint full = False
    if not 0 <= filled <= target.shape[0] or first < 0:
        raise ValueError("nothing can be written there")
    while first < len(taken) and not full:
        count, end = 0, filled
        while count < RUN_MAX and first < len(taken):
            gather(&items[count], taken[first], unsynced_offset, borrowed)
            if items[count].size > target.shape[0] - end:
                full = True
                break
            end += items[count].size
            sizes.append(items[count].size)
            count += 1
            first += 1
        if not count:
            break
        if end - filled > WITH_GIL_BYTES_MAX:
            with nogil:
                write_all(items, count, &target[filled])
        else:
            write_all(items, count, &target[filled])
        filled = end
        borrowed.clear()
    return filled, sizes


cdef int gather(Item *item, record, uint64_t unsynced_offset, list borrowed) except -1:
    """Take the fields of `record`; what they point to is kept by `borrowed`."""
    producer, key, payload = record.producer, record.key, record.payload
    if not isinstance(key, bytes) or not isinstance(payload, bytes):
        raise TypeError("key and payload must be bytes")
    item.offset = record.offset
    item.stored_at_ns = record.stored_at_ns
    item.epoch = record.epoch
    item.sequence = record.sequence
    if item.offset < unsynced_offset or item.offset - unsynced_offset > 0xFFFFFFFF:
        raise OverflowError(f"a record of offset {record.offset}: its commit began elsewhere")
    item.in_commit = <uint32_t>(item.offset - unsynced_offset)
    item.producer.data = PyUnicode_AsUTF8AndSize(producer, &item.producer.size)
    item.key.data, item.key.size = PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)
    item.payload.data, item.payload.size = PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload)
    item.size = HEADER_BYTES + item.producer.size + item.key.size + item.payload.size
    if item.producer.size > NAME_BYTES_MAX or item.key.size > NAME_BYTES_MAX:
        raise OverflowError(f"a record of offset {record.offset}: its names are too long")
    if item.size > <Py_ssize_t>0xFFFFFFFF:
        raise OverflowError(f"a record of offset {record.offset}: its payload is too large")
    borrowed += (producer, key, payload)
    return 0


cdef void write_all(const Item *items, Py_ssize_t count, uint8_t *out) noexcept nogil:
    cdef Py_ssize_t number
    for number in range(count):
        write_one(&items[number], out)
        out += items[number].size


cdef void write_one(const Item *item, uint8_t *out) noexcept nogil:
    cdef uint32_t length = <uint32_t>item.size
    cdef uint16_t producers = <uint16_t>item.producer.size
    cdef uint16_t keys = <uint16_t>item.key.size
    cdef uint32_t crc
    cdef uint8_t *at = out + HEADER_BYTES
    memcpy(out, "GQR1", 4)
    memcpy(out + 8, &length, 4)
    memcpy(out + 12, &item.offset, 8)
    memcpy(out + 20, &item.stored_at_ns, 8)
    memcpy(out + 28, &item.epoch, 8)
    memcpy(out + 36, &item.sequence, 8)
    memcpy(out + 44, &item.in_commit, 4)
    memcpy(out + 48, &producers, 2)
    memcpy(out + 50, &keys, 2)
    memcpy(at, item.producer.data, <size_t>item.producer.size)
    at += item.producer.size
    memcpy(at, item.key.data, <size_t>item.key.size)
    at += item.key.size
    memcpy(at, item.payload.data, <size_t>item.payload.size)
    crc = gputel_crc32c(out + CHECKED_AT, <size_t>(item.size - CHECKED_AT))
    memcpy(out + 4, &crc, 4)


# -- decoding ------------------------------------------------------------------------------


def decode_records(
    bytes buffer not None, Py_ssize_t position, uint64_t offset_min, Py_ssize_t count_max, make
):
    """The sound records at `position` of `buffer`; see the twin."""
    cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(buffer)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(buffer)
    cdef Item items[RUN_MAX]
    cdef Item *item
    cdef Blob last_producer = Blob(NULL, 0)
    cdef Py_ssize_t count, number
    cdef list found = []
    cdef str producer = ""
    if position < 0:
        raise ValueError("position must not be negative")
    with nogil:
        count = read_all(items, min(count_max, RUN_MAX), data, position, size, offset_min)
    for number in range(count):
        item = &items[number]
        if not equal(&item.producer, &last_producer):
            try:
                producer = PyUnicode_DecodeUTF8(item.producer.data, item.producer.size, NULL)
            except UnicodeDecodeError:
                break
            last_producer = item.producer
        record = make(
            item.offset,
            item.stored_at_ns,
            producer,
            item.epoch,
            item.sequence,
            PyBytes_FromStringAndSize(item.key.data, item.key.size),
            PyBytes_FromStringAndSize(item.payload.data, item.payload.size),
        )
        found.append((record, item.size, item.in_commit))
    return found


cdef inline bint equal(const Blob *one, const Blob *other) noexcept nogil:
    return one.size == other.size and (
        one.size == 0 or memcmp(one.data, other.data, <size_t>one.size) == 0
    )


cdef Py_ssize_t read_all(
    Item *items,
    Py_ssize_t count_max,
    const uint8_t *data,
    Py_ssize_t position,
    Py_ssize_t size,
    uint64_t offset_min,
) noexcept nogil:
    cdef Py_ssize_t count = 0
    while count < count_max and size - position >= HEADER_BYTES:
        if not read_one(&items[count], data + position, size - position):
            break
        if items[count].offset < offset_min:
            break
        position += items[count].size
        count += 1
        if items[count - 1].offset == UINT64_MAX:
            break
        offset_min = items[count - 1].offset + 1
    return count


cdef bint read_one(Item *item, const uint8_t *at, Py_ssize_t size) noexcept nogil:
    """Whether a sound record begins at `at`, of which there are `size` bytes."""
    cdef uint32_t crc, length
    cdef uint16_t producers, keys
    memcpy(&crc, at + 4, 4)
    memcpy(&length, at + 8, 4)
    memcpy(&item.offset, at + 12, 8)
    memcpy(&item.stored_at_ns, at + 20, 8)
    memcpy(&item.epoch, at + 28, 8)
    memcpy(&item.sequence, at + 36, 8)
    memcpy(&item.in_commit, at + 44, 4)
    memcpy(&producers, at + 48, 2)
    memcpy(&keys, at + 50, 2)
    if memcmp(at, "GQR1", 4) != 0 or length > RECORD_BYTES_MAX or length > size:
        return False
    if length < HEADER_BYTES + <Py_ssize_t>producers + keys:
        return False
    item.size = length
    if gputel_crc32c(at + CHECKED_AT, <size_t>(item.size - CHECKED_AT)) != crc:
        return False
    item.producer.data, item.producer.size = <const char *>at + HEADER_BYTES, producers
    item.key.data, item.key.size = item.producer.data + producers, keys
    item.payload.data = item.key.data + keys
    item.payload.size = item.size - HEADER_BYTES - producers - keys
    return True
