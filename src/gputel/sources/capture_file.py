"""A capture as a recording: the frames that `gputel capture` wrote, as records and events.

What is known of a GPU may come later than its first samples, so all of the file is read
before the first record is given out.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gputel import limits, wire
from gputel.batch import Batch
from gputel.errors import CaptureCorrupt, ChunkCorrupt, FrameCorrupt, InputError
from gputel.inventory import Event, Gpu
from gputel.sources.lines import PROGRESS_BYTES, check_file
from gputel.sources.records import Record
from gputel.wire import capture

EVENTS_MAX: Final = 1_000_000
EXAMPLES_MAX: Final = 10

_log = logging.getLogger(__name__)


def is_capture(path: Path) -> bool:
    """Does the file begin like a capture? InputError: it can't be read."""
    check_file(path)
    try:
        with path.open("rb") as file:
            return file.read(len(capture.MAGIC)) == capture.MAGIC
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


class CaptureFile:
    """One capture. See `Recording`."""

    format = "capture"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size_bytes = check_file(path)
        self._slots: dict[tuple[str, str], int] = {}
        self._gpus: list[Gpu] = []
        self._per_node: dict[str, int] = {}
        self.faults = 0  # frames and chunks that could not be read
        self.values = 0
        self.first_ns = self.last_ns = 0
        self.identity = ""
        self.events: tuple[Event, ...] = ()

    def gpus(self) -> tuple[Gpu, ...]:
        """Every GPU, in slot order; known after `scan`."""
        return tuple(self._gpus)

    @property
    def left_out(self) -> str:
        """What could not be used, in words."""
        return f"{self.faults} damaged frames or chunks left out"

    def scan(self) -> None:
        """Read the file once: its GPUs, its span of time, its events. InputError: no sample."""
        digest = hashlib.sha256()
        events: list[Event] = []
        first: int | None = None
        last = 0
        for frame in self._frames(digest, log=True):
            for gpu in frame.inventory:
                self._learn(gpu)
            events += frame.events
            if len(events) > EVENTS_MAX:
                raise InputError(f"{self.path}: more than {EVENTS_MAX} events")
            for _, batch in self._batches(frame, log=True):
                self.values += sum(int(batch.mask(j).sum()) for j in range(len(batch.columns)))
                earliest = int(batch.time_ns.min())
                first = earliest if first is None else min(first, earliest)
                last = max(last, int(batch.time_ns.max()))
        if first is None:
            raise InputError(f"{self.path}: no sample in it")
        if self.faults:
            _log.warning("%s: %s", self.path, self.left_out)
        self.first_ns, self.last_ns = first, last
        self.events = tuple(sorted(events, key=lambda event: event.time_ns))
        self.identity = f"replay:{digest.hexdigest()[:32]}"

    def records(self) -> Iterator[Record]:
        """The samples again, frame by frame; InputError when the file was changed meanwhile."""
        known = len(self._gpus)
        for frame in self._frames(None, log=False):
            for slot, batch in self._batches(frame, log=False):
                if slot >= known:
                    raise InputError(f"{self.path}: was changed while it was read")
                yield from _records(slot, batch)

    def _frames(self, digest: hashlib._Hash | None, *, log: bool) -> Iterator[wire.Frame]:
        read = PROGRESS_BYTES
        try:
            with self.path.open("rb") as file:
                end = len(capture.MAGIC)
                for payload, end in capture.read_records(file, self._size_bytes):
                    if payload is None:
                        self._fault("a frame with a wrong checksum before byte", end, log=log)
                        continue
                    if digest is not None:
                        digest.update(payload)
                    try:
                        yield wire.decode_frame(payload)
                    except FrameCorrupt as error:
                        self._fault(str(error), end, log=log)
                    if log and end >= read:
                        read += PROGRESS_BYTES
                        _log.info("%s: read %d %%", self.path, end * 100 // self._size_bytes)
                if log and end < self._size_bytes:
                    cut = self._size_bytes - end
                    _log.warning("%s: the last %d bytes are no whole record", self.path, cut)
        except CaptureCorrupt as error:
            if error.position == 0:
                raise InputError(f"{self.path}: {error}") from None
            self._fault(f"{error}; the rest of the file is left out", error.position, log=log)
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror or error}") from None

    def _batches(self, frame: wire.Frame, *, log: bool) -> Iterator[tuple[int, Batch]]:
        for gpu in frame.gpus:
            slot = self._slot(frame.node, gpu.uuid)
            for chunk in gpu.chunks:
                try:
                    yield slot, wire.decode_chunk(chunk)
                except ChunkCorrupt as error:
                    self._fault(f"{gpu.uuid}: {error}", 0, log=log)

    def _fault(self, message: str, position: int, *, log: bool) -> None:
        if not log:
            return
        self.faults += 1
        if self.faults <= EXAMPLES_MAX:
            _log.warning("%s: %s (%d)", self.path, message, position)

    def _slot(self, node: str, uuid: str) -> int:
        slot = self._slots.get((node, uuid))
        if slot is None:
            slot = self._slots[node, uuid] = len(self._gpus)
            if slot >= limits.GPUS_PER_COLLECTOR_MAX:
                raise InputError(f"{self.path}: more than {limits.GPUS_PER_COLLECTOR_MAX} GPUs")
            index = self._per_node[node] = self._per_node.get(node, -1) + 1
            self._gpus.append(Gpu(uuid=uuid, node=node, index=index, device=f"nvidia{index}"))
        return slot

    def _learn(self, gpu: Gpu) -> None:
        self._gpus[self._slot(gpu.node, gpu.uuid)] = gpu  # the newest facts win


def _records(slot: int, batch: Batch) -> Iterator[Record]:
    metrics = batch.metric_set.metrics
    masks = [batch.mask(j).tolist() for j in range(len(metrics))]
    columns = [column.tolist() for column in batch.columns]
    for row, time_ns in enumerate(batch.time_ns.tolist()):
        cells = tuple(
            (metric, columns[j][row]) for j, metric in enumerate(metrics) if masks[j][row]
        )
        if cells:
            yield Record(time_ns, slot, cells)
