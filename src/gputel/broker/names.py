"""What clients may call a topic, a group, a producer or a key.

Topics and groups become directory and file names, hence their alphabet; nothing in it can
leave the data directory or hide in it.
"""

from __future__ import annotations

import re

import google_crc32c

from gputel import limits
from gputel.errors import InputError

DEAD_LETTER_SUFFIX = ".dlq"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_topic(topic: str) -> str:
    """`topic` itself, or InputError. Room for the dead letters' suffix is kept."""
    limit = limits.TOPIC_BYTES_MAX
    if not topic.endswith(DEAD_LETTER_SUFFIX):
        limit -= len(DEAD_LETTER_SUFFIX)
    return _check_name("topic", topic, limit)


def check_group(group: str) -> str:
    """`group` itself, or InputError."""
    return _check_name("group", group, limits.TOPIC_BYTES_MAX)


def check_producer(producer: str) -> str:
    """`producer` itself, or InputError."""
    if not producer:
        raise InputError("producer: a name is needed")
    size_bytes = len(producer.encode())
    if size_bytes > limits.PRODUCER_BYTES_MAX:
        raise InputError(
            f"producer: {size_bytes} bytes, at most {limits.PRODUCER_BYTES_MAX} are allowed"
        )
    return producer


def encode_key(key: str) -> bytes:
    """A key's bytes, or InputError when there are too many."""
    data = key.encode()
    if len(data) > limits.KEY_BYTES_MAX:
        raise InputError(f"key: {len(data)} bytes, at most {limits.KEY_BYTES_MAX} are allowed")
    return data


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of all messages with this key."""
    return int(google_crc32c.value(key)) % partitions


def dead_letters(topic: str) -> str | None:
    """Where the dead letters of `topic` go; None for a topic of dead letters itself."""
    return None if topic.endswith(DEAD_LETTER_SUFFIX) else topic + DEAD_LETTER_SUFFIX


def _check_name(kind: str, name: str, limit: int) -> str:
    if not _NAME.fullmatch(name) or len(name) > limit:
        raise InputError(
            f"{kind} {name[:64]!r}: 1 to {limit} letters, digits, '.', '_' or '-' are allowed, "
            "beginning with a letter or digit"
        )
    return name
