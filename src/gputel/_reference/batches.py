"""Batches of gputel.mq.v1 on the wire, without an object of protobuf's for each message.

    PublishRequest   12 <size> { 0A <size> Message }...
    Message          [08 sequence] [12 <size> key] [1A <size> payload]

    ConsumeResponse  1A <size> { 0A <size> Delivery }...
    Delivery         [08 partition] [10 offset] [19 stored_at_ns, 8 bytes] [20 attempt]
                     [2A <size> producer] [30 epoch] [38 sequence] [42 <size> payload]

Tags are in hexadecimal, as proto/gputel/mq/v1/broker.proto has them; sizes and numbers are
varints, the time is little-endian. A field that is zero or empty is left out. Only what has
exactly this form is decoded: of all else (another request, other fields, another order)
protobuf says what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol, TypeVar

from gputel._reference.bits import varint

UINT64_MAX: Final = 2**64 - 1
UINT32_MAX: Final = 2**32 - 1

_BATCH_OF_MESSAGES: Final = 0x12
_BATCH_OF_DELIVERIES: Final = 0x1A
_ITEM: Final = 0x0A

#: sequence, key, payload
MessageFields = tuple[int, str, bytes]
#: partition, offset, stored_at_ns, attempt, producer, epoch, sequence, payload
DeliveryFields = tuple[int, int, int, int, str, int, int, bytes]


Item = TypeVar("Item")


class Sent(Protocol):
    """A message of a producer."""

    @property
    def sequence(self) -> int: ...
    @property
    def key(self) -> str: ...
    @property
    def payload(self) -> bytes: ...


class Stored(Protocol):
    """A message in a log."""

    @property
    def offset(self) -> int: ...
    @property
    def stored_at_ns(self) -> int: ...
    @property
    def producer(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    @property
    def payload(self) -> bytes: ...


def encode_messages(messages: Iterable[Sent]) -> bytes:
    """A PublishRequest with `messages` as its batch.

    OverflowError for a sequence beyond u64, UnicodeEncodeError for a key that is no Unicode.
    """
    items = b"".join(
        _blob(
            _ITEM,
            _number(0x08, message.sequence, UINT64_MAX)
            + _text(0x12, message.key)
            + _text(0x1A, message.payload),
        )
        for message in messages
    )
    return _blob(_BATCH_OF_MESSAGES, items)


def encode_deliveries(partition: int, deliveries: Iterable[tuple[Stored, int]]) -> bytes:
    """A ConsumeResponse with records of `partition`, each with its attempt, as its batch."""
    items = b"".join(
        _blob(
            _ITEM,
            _number(0x08, partition, UINT32_MAX)
            + _number(0x10, record.offset, UINT64_MAX)
            + _time(0x19, record.stored_at_ns)
            + _number(0x20, attempt, UINT32_MAX)
            + _text(0x2A, record.producer)
            + _number(0x30, record.epoch, UINT64_MAX)
            + _number(0x38, record.sequence, UINT64_MAX)
            + _text(0x42, record.payload),
        )
        for record, attempt in deliveries
    )
    return _blob(_BATCH_OF_DELIVERIES, items)


def decode_messages(request: bytes) -> list[MessageFields] | None:
    """The batch of a PublishRequest; None when it has another form."""
    return _items(request, _BATCH_OF_MESSAGES, _message)


def decode_deliveries(response: bytes) -> list[DeliveryFields] | None:
    """The batch of a ConsumeResponse; None when it has another form."""
    return _items(response, _BATCH_OF_DELIVERIES, _delivery)


def _blob(tag: int, content: bytes) -> bytes:
    return bytes((tag,)) + varint(len(content)) + content


def _number(tag: int, number: int, most: int) -> bytes:
    if not 0 <= number <= most:
        raise OverflowError(f"{number} is not from 0 to {most}")
    return bytes((tag,)) + varint(number) if number else b""


def _time(tag: int, time_ns: int) -> bytes:
    return bytes((tag,)) + time_ns.to_bytes(8, "little", signed=True) if time_ns else b""


def _text(tag: int, content: str | bytes) -> bytes:
    encoded = content.encode() if isinstance(content, str) else content
    return _blob(tag, encoded) if encoded else b""


class _OtherForm(ValueError):
    pass


class _Fields:
    """The fields of a message, in the order of their tags."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def ended(self) -> bool:
        return self._at == len(self._data)

    def has(self, tag: int) -> bool:
        if self.ended() or self._data[self._at] != tag:
            return False
        self._at += 1
        return True

    def number(self, tag: int, most: int) -> int:
        if not self.has(tag):
            return 0
        number = self._varint()
        if number > most:
            raise _OtherForm
        return number

    def time(self, tag: int) -> int:
        return int.from_bytes(self._take(8), "little", signed=True) if self.has(tag) else 0

    def blob(self, tag: int) -> bytes:
        return self.content() if self.has(tag) else b""

    def text(self, tag: int) -> str:
        return self.blob(tag).decode()

    def content(self) -> bytes:
        return self._take(self._varint())

    def _take(self, size_bytes: int) -> bytes:
        if size_bytes > len(self._data) - self._at:
            raise _OtherForm
        self._at += size_bytes
        return self._data[self._at - size_bytes : self._at]

    def _varint(self) -> int:
        number = 0
        for shift in range(0, 64, 7):
            byte = self._take(1)[0]
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                if number > UINT64_MAX:
                    break
                return number
        raise _OtherForm


def _items(data: bytes, tag: int, read: Callable[[_Fields], Item]) -> list[Item] | None:
    found: list[Item] = []
    whole = _Fields(data)
    try:
        if not whole.has(tag):
            return None
        batch = _Fields(whole.content())
        while batch.has(_ITEM):
            item = _Fields(batch.content())
            found.append(read(item))
            if not item.ended():
                return None
        return found if batch.ended() and whole.ended() else None
    except (_OtherForm, UnicodeDecodeError):
        return None


def _message(fields: _Fields) -> MessageFields:
    return fields.number(0x08, UINT64_MAX), fields.text(0x12), fields.blob(0x1A)


def _delivery(fields: _Fields) -> DeliveryFields:
    return (
        fields.number(0x08, UINT32_MAX),
        fields.number(0x10, UINT64_MAX),
        fields.time(0x19),
        fields.number(0x20, UINT32_MAX),
        fields.text(0x2A),
        fields.number(0x30, UINT64_MAX),
        fields.number(0x38, UINT64_MAX),
        fields.blob(0x42),
    )
