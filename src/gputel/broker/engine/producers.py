"""Which sequences of which producers a partition holds: what makes a repeat recognisable.

The table is rebuilt from the log when a partition is opened. A snapshot beside each
segment holds the state at the segment's first offset, so that retention, which deletes
segments, does not forget producers, and so that opening reads the last segment only:

    8 bytes "GQP1" + crc32c u32 of all that follows, then JSON: {"producer": [epoch, sequence]}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import google_crc32c
import msgspec

from gputel import limits
from gputel.broker.engine import Message, NoRoom
from gputel.errors import LogCorrupt, ProducerFenced

_MAGIC = b"GQP1"
_MARKS = msgspec.json.Decoder(dict[str, tuple[int, int]])


class Mark(NamedTuple):
    """The last message of a producer in one partition, and the offset where it lies."""

    epoch: int
    sequence: int
    offset: int


class Producers:
    """The marks of one partition."""

    def __init__(self) -> None:
        self._marks: dict[str, Mark] = {}

    def __len__(self) -> int:
        return len(self._marks)

    def items(self) -> Iterable[tuple[str, Mark]]:
        """All producers with their marks."""
        return self._marks.items()

    def get(self, producer: str) -> Mark | None:
        """What is known of `producer`."""
        return self._marks.get(producer)

    def fresh(
        self, producer: str, epoch: int, messages: Sequence[Message]
    ) -> tuple[Sequence[Message], int]:
        """Those of `messages` that are no repeats, and the offset where the last of the others
        lies: with none fresh there is one. ProducerFenced."""
        mark = self._marks.get(producer)
        if mark is None or epoch > mark.epoch:
            return messages, -1
        if epoch < mark.epoch:
            raise ProducerFenced(producer, epoch, mark.epoch)
        if messages[0].sequence > mark.sequence:
            return messages, mark.offset
        return [of for of in messages if of.sequence > mark.sequence], mark.offset

    def advance(self, producer: str, mark: Mark) -> None:
        """Remember a message; NoRoom when there is no room for a new producer."""
        if len(self._marks) >= limits.PRODUCERS_PER_PARTITION_MAX and producer not in self._marks:
            raise NoRoom(
                f"a partition remembers {limits.PRODUCERS_PER_PARTITION_MAX} producers at most",
                hint="use stable producer names, or another topic",
            )
        self._marks[producer] = mark

    def copy(self) -> Producers:
        """An independent table with the same marks."""
        twin = Producers()
        twin._marks = dict(self._marks)
        return twin

    def rebuild(self, producer: str, mark: Mark) -> None:
        """Take a message read from the log; it never moves a mark back."""
        known = self._marks.get(producer)
        if known is None or (mark.epoch, mark.sequence) > (known.epoch, known.sequence):
            self._marks[producer] = mark

    def snapshot(self) -> bytes:
        """The whole table as the bytes of a snapshot file."""
        marks = {name: (mark.epoch, mark.sequence) for name, mark in self._marks.items()}
        body = msgspec.json.encode(marks)
        crc: int = google_crc32c.value(body)
        return _MAGIC + crc.to_bytes(4, "little") + body

    @classmethod
    def restore(cls, data: bytes, next_offset: int) -> Producers:
        """The table of a snapshot taken at `next_offset`; LogCorrupt when it isn't sound."""
        body = data[8:]
        if data[:4] != _MAGIC or google_crc32c.value(body).to_bytes(4, "little") != data[4:8]:
            raise LogCorrupt("a snapshot of producers fails its checksum")
        try:
            marks = _MARKS.decode(body)
        except msgspec.DecodeError as error:
            raise LogCorrupt(f"a snapshot of producers can't be read: {error}") from None
        table = cls()
        offset = max(next_offset - 1, 0)
        table._marks = {name: Mark(*mark, offset) for name, mark in marks.items()}
        return table


class Opened:
    """The newest epochs of producers that have opened a stream: they fence before they publish."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._epochs: dict[str, int] = {}

    def get(self, producer: str) -> int:
        """The newest epoch; 0 for a producer that has opened none."""
        return self._epochs.get(producer, 0)

    def open(self, producer: str, epoch: int, newest: int) -> None:
        """Remember `epoch`, if `newest`, which the log may know better, isn't beyond it.
        ProducerFenced, NoRoom."""
        if epoch < newest:
            raise ProducerFenced(producer, epoch, newest)
        if self._full and producer not in self._epochs:
            raise NoRoom(
                f"topic {self._topic!r} has {len(self._epochs)} producers, the most it may have"
            )
        self._epochs[producer] = epoch

    def hear(self, producer: str, epoch: int) -> None:
        """A producer was opened at another broker. Without room it is the log that fences."""
        known = self.get(producer)
        if epoch > known and (known or not self._full):
            self._epochs[producer] = epoch

    @property
    def _full(self) -> bool:
        return len(self._epochs) >= limits.PRODUCERS_PER_PARTITION_MAX
