"""Opening a partition's files after whatever ended the last process.

Only the last segment can have a torn tail, because a segment is synced before the next
one begins. What is torn is cut off; what is damaged stays where it is and is reported. The last
but one may still end with a filled up block: its end is cut while the last one is written.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NamedTuple

import msgspec

from gputel.broker.engine.disk import BLOCK_BYTES, Disk
from gputel.broker.engine.producers import Mark, Producers
from gputel.broker.engine.record import Located
from gputel.broker.engine.segment import (
    SNAPSHOT_SUFFIX,
    SUFFIX,
    Gap,
    Segment,
    is_padding,
    walk,
)
from gputel.errors import LogCorrupt

log = logging.getLogger(__name__)


class Recovered(NamedTuple):
    """A partition as it was found. `gaps` are those of the last segment."""

    segments: list[Segment]
    next_offset: int
    producers: Producers
    gaps: list[Gap]
    torn_bytes: int


def recover(directory: Path, disk: Disk) -> Recovered:
    """Open the partition in `directory`, which is made when missing. Blocks; OSError."""
    if not directory.exists():
        directory.mkdir(parents=True)
        disk.sync_dir(directory.parent)
    segments = [
        Segment(path, int(path.stem), path.stat().st_size)
        for path in sorted(directory.glob(f"*{SUFFIX}"))
    ]
    if not segments:
        segments = [create(directory, 0, disk)]
    for orphan in directory.glob(f"*{SNAPSHOT_SUFFIX}"):
        if not orphan.with_suffix(SUFFIX).exists():
            orphan.unlink()
    if len(segments) > 1:
        _trim(segments[-2], segments[-1].base_offset, disk)
    producers, first = _known_producers(segments)
    for segment in segments[first:-1]:
        _scan_sealed(segment, producers)
    scan = _scan_last(segments[-1], producers)
    torn_bytes = _cut(segments[-1], scan.size_bytes, disk)
    return Recovered(segments, scan.next_offset, producers, scan.gaps, torn_bytes)


def _cut(segment: Segment, size_bytes: int, disk: Disk) -> int:
    """Let the last segment end with its last record; how many bytes were torn."""
    torn_bytes = segment.size_bytes - size_bytes
    if not torn_bytes:
        return 0
    fd = segment.open()
    try:
        if is_padding(fd, Gap(size_bytes, segment.size_bytes)):
            torn_bytes = 0
    finally:
        os.close(fd)
    if torn_bytes:
        log.warning(
            "%s: cut a torn tail of %d bytes; none of it was acknowledged",
            segment.path,
            torn_bytes,
        )
    disk.truncate(segment.path, size_bytes)
    segment.size_bytes = size_bytes
    return torn_bytes


def _trim(segment: Segment, end_offset: int, disk: Disk) -> None:
    """Let a segment that was left end with its last record, the one before `end_offset`."""
    if segment.size_bytes % BLOCK_BYTES:
        return  # it ends with a record already
    fd = segment.open()
    try:
        offset, end = segment.base_offset, Gap(0, 0)
        for found in walk(fd, segment.size_bytes, offset_min=segment.base_offset):
            if isinstance(found, Located):
                offset = found.record.offset + 1
            else:
                end = found
        # Where a message is missing zeros are damage.
        if offset != end_offset or end.end != segment.size_bytes or not is_padding(fd, end):
            return
    finally:
        os.close(fd)
    disk.truncate(segment.path, end.position)
    segment.size_bytes = end.position


def create(directory: Path, base_offset: int, disk: Disk) -> Segment:
    """An empty segment, its name durable."""
    path = Segment.named(directory, base_offset)
    os.close(disk.open_append(path))
    disk.sync_dir(directory)
    return Segment(path, base_offset, 0)


def _known_producers(segments: list[Segment]) -> tuple[Producers, int]:
    """The newest sound snapshot, and the segment from which on the log must be read."""
    for first in range(len(segments) - 1, -1, -1):
        path = segments[first].snapshot_path
        try:
            return Producers.restore(path.read_bytes(), segments[first].base_offset), first
        except FileNotFoundError:
            if segments[first].base_offset > 0:
                log.warning("%s is missing; reading an older segment instead", path)
        except LogCorrupt as error:
            log.error("%s: %s; reading an older segment instead", path, error)
    return Producers(), 0


def _scan_sealed(segment: Segment, producers: Producers) -> None:
    fd = segment.open()
    try:
        for found in walk(fd, segment.size_bytes, offset_min=segment.base_offset):
            if isinstance(found, Located):
                _remember(producers, found)
    finally:
        os.close(fd)


class _Scan(NamedTuple):
    size_bytes: int
    next_offset: int
    gaps: list[Gap]


def _scan_last(segment: Segment, producers: Producers) -> _Scan:
    """Take in the last segment up to its torn tail, if it has one.

    Records behind a gap count only once one of them proves that the gap was synced: that
    one's commit began behind the gap (see `in_commit` in the record's layout).
    """
    size_bytes, next_offset = 0, segment.base_offset
    gaps: list[Gap] = []
    unproven: list[Gap | Located] = []
    fd = segment.open()
    try:
        for found in walk(fd, segment.size_bytes, offset_min=segment.base_offset):
            if isinstance(found, Gap) or unproven:
                # A payload is not needed and may be large.
                unproven.append(_bare(found))
                if isinstance(found, Gap) or found.record.offset - found.in_commit <= next_offset:
                    continue
                confirmed, unproven = unproven, []
            else:
                confirmed = [found]
            for item in confirmed:
                if isinstance(item, Gap):
                    gaps.append(item)
                    continue
                _remember(producers, item)
                segment.note(item.record, item.position, item.size_bytes)
                size_bytes = item.position + item.size_bytes
                next_offset = item.record.offset + 1
    finally:
        os.close(fd)
    return _Scan(size_bytes, next_offset, gaps)


def _bare(found: Gap | Located) -> Gap | Located:
    if isinstance(found, Gap):
        return found
    return found._replace(record=msgspec.structs.replace(found.record, payload=b""))


def _remember(producers: Producers, found: Located) -> None:
    record = found.record
    producers.rebuild(record.producer, Mark(record.epoch, record.sequence, record.offset))
