"""Messages that are stored together: one JetStream message, one sync of the servers.

The head is a NATS header, so that brokers can follow a stream without its payloads. ASCII JSON:

    Gputel-Block: {"id": "<writer>-<number>", "after": 41, "base": 812, "count": 3, "at": <ns>,
                   "marks": [["collector:n1", 17, 4], ...]}

`after` is the stream sequence of its predecessor: a block that lies elsewhere, since a server let
it pass, counts as not stored, for its `base` is wrong. `base` is the offset of the first message,
the others count on; `at` is when they were stored; `marks` says for each producer in the block its
epoch and its last sequence. The payload, all integers little-endian:

     0      4        8
    +------+--------+-----+-----+ - -
    |"GQB1"| crc32c | run | run |           crc32c covers everything behind itself
    +------+--------+-----+-----+ - -

    run     | producer_len u16 | count u32 | epoch u64 | producer UTF-8 | record ... |
    record  | sequence u64 | key_len u16 | payload_len u32 | key | payload |
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import google_crc32c

from gputel import limits
from gputel.broker.engine import Message
from gputel.broker.engine.record import Record
from gputel.errors import LogCorrupt
from gputel.limits import PAYLOAD_BYTES_MAX

HEAD: Final = "Gputel-Block"
MAGIC: Final = b"GQB1"
#: A NATS server takes 1 MiB with its headers unless it is told otherwise.
BLOCK_BYTES_MAX: Final = 896 * limits.KIB
#: A stream stores at most 65,535 bytes of headers.
HEAD_BYTES_MAX: Final = 48 * limits.KIB
BLOCK_MESSAGES_MAX: Final = 65_536

assert BLOCK_BYTES_MAX + HEAD_BYTES_MAX + limits.KIB <= limits.NATS_PAYLOAD_BYTES_MAX

_RUN = struct.Struct("<HIQ")
_RECORD = struct.Struct("<QHI")
_PREFIX_BYTES = len(MAGIC) + 4

assert (
    _PREFIX_BYTES
    + _RUN.size
    + limits.PRODUCER_BYTES_MAX
    + _RECORD.size
    + limits.KEY_BYTES_MAX
    + PAYLOAD_BYTES_MAX
    <= BLOCK_BYTES_MAX
)


class Head(NamedTuple):
    """What a block's header says."""

    id: str
    after: int
    base: int
    messages: int
    stored_at_ns: int
    marks: Sequence[tuple[str, int, int]]

    @property
    def end(self) -> int:
        """The offset behind the last message."""
        return self.base + self.messages

    def encode(self) -> str:
        """The header's value."""
        return json.dumps(
            {
                "id": self.id,
                "after": self.after,
                "base": self.base,
                "count": self.messages,
                "at": self.stored_at_ns,
                "marks": self.marks,
            },
            separators=(",", ":"),
        )

    @classmethod
    def decode(cls, text: str | None) -> Head:
        """The head of a stored message; LogCorrupt when it has none."""
        try:
            of = json.loads(text or "")
            marks = [(str(p), int(e), int(s)) for p, e, s in of["marks"]]
            after, base, count, at = (int(of[name]) for name in ("after", "base", "count", "at"))
            return cls(str(of["id"]), after, base, count, at, marks)
        except (ValueError, TypeError, KeyError):
            raise LogCorrupt(f"a message without a sound {HEAD} header") from None


def message_bytes(key: bytes, payload: bytes) -> int:
    """What a message takes in a block."""
    return _RECORD.size + len(key) + len(payload)


def run_bytes(producer: str) -> int:
    """What the beginning of a run takes in a block."""
    return _RUN.size + len(producer.encode())


def mark_bytes(producer: str) -> int:
    """What a producer takes in a block's head, at most."""
    return len(json.dumps(producer)) + 48


def encode(runs: Iterable[tuple[str, int, Sequence[Message]]]) -> bytes:
    """The payload of a block of (producer, epoch, messages)."""
    parts: list[bytes] = []
    for producer, epoch, messages in runs:
        name = producer.encode()
        parts += (_RUN.pack(len(name), len(messages), epoch), name)
        for sequence, key, payload in messages:
            parts += (_RECORD.pack(sequence, len(key), len(payload)), key, payload)
    body = b"".join(parts)
    crc: int = google_crc32c.value(body)
    return b"".join((MAGIC, crc.to_bytes(4, "little"), body))


def decode(head: Head, payload: bytes) -> list[Record]:
    """The messages of a block; LogCorrupt when it isn't sound."""
    crc = int.from_bytes(payload[4:8], "little")
    if payload[:4] != MAGIC or google_crc32c.value(payload[_PREFIX_BYTES:]) != crc:
        raise LogCorrupt(f"the block at offset {head.base} fails its checksum")
    records: list[Record] = []
    try:
        _decode(head, payload, records)
    except (struct.error, UnicodeDecodeError) as error:
        raise LogCorrupt(f"the block at offset {head.base}: {error}") from None
    if len(records) != head.messages:
        raise LogCorrupt(
            f"the block at offset {head.base} has {len(records)} messages, not {head.messages}"
        )
    return records


def _decode(head: Head, payload: bytes, records: list[Record]) -> None:
    at, offset, stored_at_ns = _PREFIX_BYTES, head.base, head.stored_at_ns
    while at < len(payload):
        name_len, count, epoch = _RUN.unpack_from(payload, at)
        at += _RUN.size
        producer = payload[at : at + name_len].decode()
        at += name_len
        for _ in range(count):
            sequence, key_len, payload_len = _RECORD.unpack_from(payload, at)
            at += _RECORD.size
            key = payload[at : at + key_len]
            at += key_len
            data = payload[at : at + payload_len]
            at += payload_len
            records.append(Record(offset, stored_at_ns, producer, epoch, sequence, key, data))
            offset += 1
