"""Batches of gputel.mq.v1 on the wire, written and read without an object for each field.

The bytes are drawn in gputel._reference.batches, the twin. Encoding takes two steps: sizes are
added up, then everything is written into one `bytes` of that size. Decoding looks at every
bound before it reads.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size_bytes) except NULL

cdef enum:
    BATCH_OF_MESSAGES = 0x12
    BATCH_OF_DELIVERIES = 0x1A
    ITEM = 0x0A

# A field of bytes, borrowed from an object that outlives it.
ctypedef struct Blob:
    const char *data
    Py_ssize_t size

ctypedef struct Sent:
    uint64_t sequence
    Blob key
    Blob payload
    Py_ssize_t size

ctypedef struct Stored:
    uint64_t offset
    int64_t stored_at_ns
    uint32_t attempt
    Blob producer
    uint64_t epoch
    uint64_t sequence
    Blob payload
    Py_ssize_t size


# -- encoding ------------------------------------------------------------------------------


def encode_messages(messages):
    """A PublishRequest with `messages` as its batch; see the twin."""
    cdef list sent = list(messages)
    cdef list borrowed = []
    cdef Py_ssize_t count = len(sent)
    cdef Py_ssize_t number, size = 0
    cdef Sent *all_sent = <Sent *>PyMem_Malloc((<size_t>count + 1) * sizeof(Sent))
    cdef Sent *one
    cdef char *out
    if all_sent is NULL:
        raise MemoryError()
    try:
        for number in range(count):
            one = &all_sent[number]
            message = sent[number]
            one.sequence = message.sequence
            one.key = blob_of_text(message.key, borrowed)
            one.payload = blob_of_bytes(message.payload, borrowed)
            one.size = (
                number_size(one.sequence) + blob_size(&one.key) + blob_size(&one.payload)
            )
            size += 1 + varint_size(<uint64_t>one.size) + one.size
        whole = PyBytes_FromStringAndSize(NULL, 1 + varint_size(<uint64_t>size) + size)
        out = put_head(PyBytes_AS_STRING(whole), BATCH_OF_MESSAGES, size)
        for number in range(count):
            one = &all_sent[number]
            out = put_head(out, ITEM, one.size)
            out = put_number(out, 0x08, one.sequence)
            out = put_blob(out, 0x12, &one.key)
            out = put_blob(out, 0x1A, &one.payload)
        assert out == PyBytes_AS_STRING(whole) + PyBytes_GET_SIZE(whole)
        return whole
    finally:
        PyMem_Free(all_sent)


def encode_deliveries(uint32_t partition, deliveries):
    """A ConsumeResponse with records of `partition` as its batch; see the twin."""
    cdef list taken = list(deliveries)
    cdef list borrowed = []
    cdef Py_ssize_t count = len(taken)
    cdef Py_ssize_t number, size = 0
    cdef Stored *all_stored = <Stored *>PyMem_Malloc((<size_t>count + 1) * sizeof(Stored))
    cdef Stored *one
    cdef char *out
    if all_stored is NULL:
        raise MemoryError()
    try:
        for number in range(count):
            one = &all_stored[number]
            record, attempt = taken[number]
            one.offset = record.offset
            one.stored_at_ns = record.stored_at_ns
            one.attempt = attempt
            one.producer = blob_of_text(record.producer, borrowed)
            one.epoch = record.epoch
            one.sequence = record.sequence
            one.payload = blob_of_bytes(record.payload, borrowed)
            one.size = (
                number_size(partition)
                + number_size(one.offset)
                + (9 if one.stored_at_ns else 0)
                + number_size(one.attempt)
                + blob_size(&one.producer)
                + number_size(one.epoch)
                + number_size(one.sequence)
                + blob_size(&one.payload)
            )
            size += 1 + varint_size(<uint64_t>one.size) + one.size
        whole = PyBytes_FromStringAndSize(NULL, 1 + varint_size(<uint64_t>size) + size)
        out = put_head(PyBytes_AS_STRING(whole), BATCH_OF_DELIVERIES, size)
        for number in range(count):
            one = &all_stored[number]
            out = put_head(out, ITEM, one.size)
            out = put_number(out, 0x08, partition)
            out = put_number(out, 0x10, one.offset)
            out = put_time(out, 0x19, one.stored_at_ns)
            out = put_number(out, 0x20, one.attempt)
            out = put_blob(out, 0x2A, &one.producer)
            out = put_number(out, 0x30, one.epoch)
            out = put_number(out, 0x38, one.sequence)
            out = put_blob(out, 0x42, &one.payload)
        assert out == PyBytes_AS_STRING(whole) + PyBytes_GET_SIZE(whole)
        return whole
    finally:
        PyMem_Free(all_stored)


cdef Blob blob_of_text(text, list borrowed) except *:
    cdef Blob blob
    blob.data = PyUnicode_AsUTF8AndSize(text, &blob.size)
    borrowed.append(text)
    return blob


cdef Blob blob_of_bytes(bytes data, list borrowed) except *:
    cdef Blob blob
    if data is None:
        raise TypeError("a payload must be bytes")
    blob.data = PyBytes_AS_STRING(data)
    blob.size = PyBytes_GET_SIZE(data)
    borrowed.append(data)
    return blob


cdef inline Py_ssize_t varint_size(uint64_t number) noexcept nogil:
    cdef Py_ssize_t size = 1
    while number >= 0x80:
        number >>= 7
        size += 1
    return size


cdef inline Py_ssize_t number_size(uint64_t number) noexcept nogil:
    return 1 + varint_size(number) if number else 0


cdef inline Py_ssize_t blob_size(const Blob *blob) noexcept nogil:
    return 1 + varint_size(<uint64_t>blob.size) + blob.size if blob.size else 0


cdef inline char *put_varint(char *out, uint64_t number) noexcept nogil:
    while number >= 0x80:
        out[0] = <char>(number & 0x7F | 0x80)
        number >>= 7
        out += 1
    out[0] = <char>number
    return out + 1


cdef inline char *put_head(char *out, int tag, Py_ssize_t size) noexcept nogil:
    out[0] = <char>tag
    return put_varint(out + 1, <uint64_t>size)


cdef inline char *put_number(char *out, int tag, uint64_t number) noexcept nogil:
    if number == 0:
        return out
    out[0] = <char>tag
    return put_varint(out + 1, number)


cdef inline char *put_time(char *out, int tag, int64_t time_ns) noexcept nogil:
    cdef int byte
    if time_ns == 0:
        return out
    out[0] = <char>tag
    for byte in range(8):
        out[1 + byte] = <char>(<uint64_t>time_ns >> (8 * byte))
    return out + 9


cdef inline char *put_blob(char *out, int tag, const Blob *blob) noexcept nogil:
    if blob.size == 0:
        return out
    out = put_head(out, tag, blob.size)
    memcpy(out, blob.data, <size_t>blob.size)
    return out + blob.size


# -- decoding ------------------------------------------------------------------------------

# Where reading is. What reads a field goes on behind it; `wrong` stays once it is set, and
# what is read then is empty.
ctypedef struct Reading:
    const uint8_t *at
    const uint8_t *end
    bint wrong


def decode_messages(bytes request not None):
    """The batch of a PublishRequest; None when it has another form. See the twin."""
    cdef Reading batch, item
    cdef uint64_t sequence
    cdef Blob key, payload
    cdef Blob last_key = Blob(NULL, 0)
    cdef list found = []
    cdef str text = ""
    if not open_batch(request, BATCH_OF_MESSAGES, &batch):
        return None
    try:
        while take_item(&batch, &item):
            sequence = take_number(&item, 0x08)
            key = take_blob(&item, 0x12)
            payload = take_blob(&item, 0x1A)
            if item.wrong or item.at != item.end:
                return None
            if not equal(&key, &last_key):
                text = PyUnicode_DecodeUTF8(key.data, key.size, NULL)
                last_key = key
            found.append((sequence, text, PyBytes_FromStringAndSize(payload.data, payload.size)))
    except UnicodeDecodeError:
        return None
    return None if batch.wrong else found


def decode_deliveries(bytes response not None):
    """The batch of a ConsumeResponse; None when it has another form. See the twin."""
    cdef Reading batch, item
    cdef uint64_t partition, offset, attempt, epoch, sequence
    cdef int64_t stored_at_ns
    cdef Blob producer, payload
    cdef Blob last_producer = Blob(NULL, 0)
    cdef list found = []
    cdef str text = ""
    if not open_batch(response, BATCH_OF_DELIVERIES, &batch):
        return None
    try:
        while take_item(&batch, &item):
            partition = take_number(&item, 0x08)
            offset = take_number(&item, 0x10)
            stored_at_ns = take_time(&item, 0x19)
            attempt = take_number(&item, 0x20)
            producer = take_blob(&item, 0x2A)
            epoch = take_number(&item, 0x30)
            sequence = take_number(&item, 0x38)
            payload = take_blob(&item, 0x42)
            if item.wrong or item.at != item.end:
                return None
            if partition > UINT32_MAX or attempt > UINT32_MAX:
                return None
            if not equal(&producer, &last_producer):
                text = PyUnicode_DecodeUTF8(producer.data, producer.size, NULL)
                last_producer = producer
            found.append(
                (
                    partition,
                    offset,
                    stored_at_ns,
                    attempt,
                    text,
                    epoch,
                    sequence,
                    PyBytes_FromStringAndSize(payload.data, payload.size),
                )
            )
    except UnicodeDecodeError:
        return None
    return None if batch.wrong else found


cdef inline bint equal(const Blob *one, const Blob *other) noexcept nogil:
    return one.size == other.size and (
        one.size == 0 or memcmp(one.data, other.data, <size_t>one.size) == 0
    )


cdef bint open_batch(bytes data, int tag, Reading *batch) noexcept:
    """Whether `data` is one field `tag`, which `batch` then is the content of."""
    cdef Blob content
    batch.at = <const uint8_t *>PyBytes_AS_STRING(data)
    batch.end = batch.at + PyBytes_GET_SIZE(data)
    batch.wrong = False
    if not has(batch, tag):
        return False
    content = take_content(batch)
    if batch.wrong or batch.at != batch.end:
        return False
    batch.at = <const uint8_t *>content.data
    return True


cdef inline bint take_item(Reading *batch, Reading *item) noexcept nogil:
    """Whether there is one more; at another field `batch` is wrong."""
    cdef Blob content
    if batch.at == batch.end:
        return False
    if not has(batch, ITEM):
        batch.wrong = True
        return False
    content = take_content(batch)
    item.at = <const uint8_t *>content.data
    item.end = item.at + content.size
    item.wrong = False
    return not batch.wrong


cdef inline bint has(Reading *reading, int tag) noexcept nogil:
    if reading.at == reading.end or reading.at[0] != tag:
        return False
    reading.at += 1
    return True


cdef inline uint64_t take_varint(Reading *reading) noexcept nogil:
    cdef uint64_t number = 0
    cdef uint64_t byte
    cdef int shift = 0
    while reading.at < reading.end and shift < 64:
        byte = reading.at[0]
        if shift == 63 and byte > 1:
            break
        reading.at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number
        shift += 7
    reading.wrong = True
    return 0


cdef inline uint64_t take_number(Reading *reading, int tag) noexcept nogil:
    return take_varint(reading) if has(reading, tag) else 0


cdef inline int64_t take_time(Reading *reading, int tag) noexcept nogil:
    cdef uint64_t time_ns = 0
    cdef int byte
    if not has(reading, tag):
        return 0
    if reading.end - reading.at < 8:
        reading.wrong = True
        return 0
    for byte in range(8):
        time_ns |= <uint64_t>reading.at[byte] << (8 * byte)
    reading.at += 8
    return <int64_t>time_ns


cdef inline Blob take_blob(Reading *reading, int tag) noexcept nogil:
    cdef Blob empty
    if has(reading, tag):
        return take_content(reading)
    empty.data = <const char *>reading.at
    empty.size = 0
    return empty


cdef inline Blob take_content(Reading *reading) noexcept nogil:
    cdef Blob content
    cdef uint64_t size = take_varint(reading)
    if size > <uint64_t>(reading.end - reading.at):
        reading.wrong = True
        size = 0
    content.data = <const char *>reading.at
    content.size = <Py_ssize_t>size
    reading.at += content.size
    return content
