"""Read every record of a broker's data directory and say what is sound. Writes nothing.

A broker may be running on it: what it has not written yet is no damage. A torn tail is none
either, for nothing of it was acknowledged; the next start cuts it off.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gputel.broker.engine.record import Located
from gputel.broker.engine.segment import SUFFIX, Segment, is_padding, walk
from gputel.errors import InputError


@dataclass(slots=True)
class Verdict:
    """What one partition holds. `missing_messages` are offsets between the first and the last
    that no sound record has; `tail_bytes` lie unsound at the very end."""

    topic: str
    partition: int
    segments: int = 0
    messages: int = 0
    size_bytes: int = 0
    first_offset: int = 0
    next_offset: int = 0
    missing_messages: int = 0
    damaged_bytes: int = 0
    tail_bytes: int = 0

    @property
    def sound(self) -> bool:
        """Whether every message that was acknowledged can still be read."""
        return not self.damaged_bytes and not self.missing_messages


def verify(data_dir: Path) -> Iterator[Verdict]:
    """One verdict a partition, in order. Blocks; InputError when there is no log, OSError."""
    topics = data_dir / "topics"
    if not topics.is_dir():
        raise InputError(
            f"{data_dir} is no broker's data directory: it has no folder `topics`",
            hint="name the one that the broker uses with --data-dir",
        )
    for topic in sorted(topics.iterdir()):
        numbers = sorted(int(path.name) for path in topic.glob("*") if path.name.isdigit())
        for number in numbers:
            yield _verify_partition(topic.name, number, topic / str(number))


def _verify_partition(topic: str, number: int, directory: Path) -> Verdict:
    paths = sorted(directory.glob(f"*{SUFFIX}"))
    verdict = Verdict(topic, number, segments=len(paths))
    if paths:
        verdict.first_offset = verdict.next_offset = int(paths[0].stem)
    for path in paths:
        try:
            segment = Segment(path, int(path.stem), path.stat().st_size)
            _verify_segment(segment, verdict)
        except FileNotFoundError:  # retention was faster
            verdict.segments -= 1
    return verdict


def _verify_segment(segment: Segment, verdict: Verdict) -> None:
    # What seemed a torn tail is damage when another segment follows.
    verdict.damaged_bytes += verdict.tail_bytes
    verdict.tail_bytes = 0
    verdict.size_bytes += segment.size_bytes
    verdict.missing_messages += max(segment.base_offset - verdict.next_offset, 0)
    verdict.next_offset = max(verdict.next_offset, segment.base_offset)
    fd = segment.open()
    try:
        for found in walk(fd, segment.size_bytes, offset_min=segment.base_offset):
            verdict.damaged_bytes += verdict.tail_bytes
            verdict.tail_bytes = 0
            if not isinstance(found, Located):
                if found.end == segment.size_bytes and is_padding(fd, found):
                    # If messages were there, the next segment tells that they are missing.
                    verdict.size_bytes -= found.end - found.position
                    return
                verdict.tail_bytes = found.end - found.position
                continue
            verdict.missing_messages += found.record.offset - verdict.next_offset
            verdict.next_offset = found.record.offset + 1
            verdict.messages += 1
    finally:
        os.close(fd)
