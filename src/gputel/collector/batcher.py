"""The batcher: rows from the rings into columns, columns into chunks, chunks into frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from gputel import limits, wire
from gputel.batch import Batch
from gputel.catalog import MetricSet
from gputel.clock import NS_PER_S
from gputel.inventory import Event, Gpu, ProcessSample
from gputel.kernels import Columns
from gputel.sources import Rings

T = TypeVar("T")

INVENTORY_PERIOD_S: Final = 60
CHUNK_OVERHEAD_BYTES: Final = 16  # protobuf's tags and lengths around a chunk
UUID_OVERHEAD_BYTES: Final = 48
PROCESS_OVERHEAD_BYTES: Final = 72  # of a process besides its texts


class Sealed(NamedTuple):
    """One GPU's samples of one set, encoded."""

    slot: int
    batch: Batch
    chunk: bytes


@dataclass(frozen=True, slots=True)
class Draft:
    """A frame before it has a sequence."""

    node: str
    gpus: tuple[wire.GpuChunks, ...]
    inventory: tuple[Gpu, ...]
    events: tuple[Event, ...]
    rows: int
    batches: tuple[Batch, ...] = ()  # what the chunks hold
    processes: tuple[ProcessSample, ...] = ()

    def newest_ns(self) -> int:
        """The time of the newest sample; of the newest event where there is none."""
        times_ns = [int(batch.time_ns.max()) for batch in self.batches]
        times_ns += [sample.time_ns for sample in self.processes]
        return max(times_ns or [event.time_ns for event in self.events])


class Batcher:
    """Holds the columns between the rings and the frames; used on one thread."""

    def __init__(
        self,
        rings: Rings,
        gpus: Sequence[Gpu],
        capacity_samples: int,
        copy: Callable[[MetricSet, Columns], None] | None = None,
        *,
        encodes: bool = True,
    ) -> None:
        self._rings = rings
        self._copy = copy  # is shown the columns before they are sealed
        self._encodes = encodes  # False where nothing is published: chunks are empty
        self._columns: Mapping[MetricSet, Columns] = {
            metric_set: Columns(metric_set.storages, len(gpus), capacity_samples)
            for metric_set in rings
        }
        self._sealed: list[Sealed] = []

    def grow(self, gpus: int) -> None:
        """Make room for the rows of GPUs that were added."""
        for columns in self._columns.values():
            columns.grow(gpus)

    def drain(self) -> int:
        """Empty the rings into the columns; returns the rows moved."""
        moved = 0
        for metric_set, ring in self._rings.items():
            columns = self._columns[metric_set]
            while ring.pending_rows:
                taken = columns.drain(ring)
                moved += taken
                if taken == 0:  # a GPU's columns are full
                    self._seal(metric_set, columns)
        return moved

    def seal(self) -> list[Sealed]:
        """Everything drained since the last seal, in slot order."""
        for metric_set, columns in self._columns.items():
            self._seal(metric_set, columns)
        sealed, self._sealed = self._sealed, []
        sealed.sort(key=lambda part: (part.slot, part.batch.metric_set.id))  # stable
        return sealed

    def _seal(self, metric_set: MetricSet, columns: Columns) -> None:
        if columns.pending_rows == 0:
            return
        if self._copy is not None:
            self._copy(metric_set, columns)
        for part in columns.seal():
            batch = Batch(metric_set, part.time_ns, part.sequence, part.columns, part.valid)
            chunk = wire.encode_batch(batch) if self._encodes else b""
            self._sealed.append(Sealed(part.gpu, batch, chunk))


class Framer:
    """Packs chunks into frames of one node each, near FRAME_BYTES_TARGET."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self.gpus = gpus
        self._told_at_ns: dict[tuple[str, int], int] = {}

    def grow(self, gpus: Sequence[Gpu]) -> None:
        """Take the GPUs as they are known now, and tell the inventory again."""
        self.gpus = gpus
        self._told_at_ns.clear()

    def frames(
        self, sealed: Sequence[Sealed], events: Sequence[Event], now_ns: int, *, repeat: bool
    ) -> Iterator[Draft]:
        """The frames of one seal. `repeat`: tell the inventory every minute, not only once."""
        units: dict[tuple[str, int], list[Sealed]] = {}
        for part in sealed:
            node = self.gpus[part.slot].node
            units.setdefault((node, part.slot // limits.FRAME_GPUS_MAX), []).append(part)
        left = list(events)
        for unit, parts in units.items():
            inventory = self._inventory(unit, now_ns, repeat=repeat)
            for chosen in _pack(parts, _chunk_bytes, limits.FRAME_BYTES_TARGET):
                yield self._draft(unit[0], chosen, inventory, left)
                inventory, left = (), []
        if left and self.gpus:
            yield Draft(self.gpus[0].node, (), (), tuple(left), 0)

    def process_frames(self, samples: Sequence[ProcessSample]) -> Iterator[Draft]:
        """Frames that hold processes alone: they come rarely, and would make others too large."""
        nodes = {gpu.uuid: gpu.node for gpu in self.gpus}
        by_node: dict[str, list[ProcessSample]] = {}
        for sample in samples:
            # A MIG device need not be a slot of its own; a live source is of one node.
            node = nodes.get(sample.gpu_uuid, self.gpus[0].node)
            by_node.setdefault(node, []).append(sample)
        for node, found in by_node.items():
            for chosen in _pack(found, _process_bytes, limits.FRAME_BYTES_TARGET):
                yield Draft(node, (), (), (), 0, processes=tuple(chosen))

    def _inventory(self, unit: tuple[str, int], now_ns: int, *, repeat: bool) -> tuple[Gpu, ...]:
        told_ns = self._told_at_ns.get(unit)
        fresh = not repeat or now_ns - (told_ns or 0) < INVENTORY_PERIOD_S * NS_PER_S
        if told_ns is not None and fresh:
            return ()
        self._told_at_ns[unit] = now_ns
        node, number = unit
        first = number * limits.FRAME_GPUS_MAX
        slots = range(first, min(first + limits.FRAME_GPUS_MAX, len(self.gpus)))
        return tuple(self.gpus[slot] for slot in slots if self.gpus[slot].node == node)

    def _draft(
        self, node: str, parts: list[Sealed], inventory: tuple[Gpu, ...], events: list[Event]
    ) -> Draft:
        chunks: dict[str, list[bytes]] = {}
        for part in parts:
            chunks.setdefault(self.gpus[part.slot].uuid, []).append(part.chunk)
        return Draft(
            node,
            tuple(wire.GpuChunks(uuid, tuple(found)) for uuid, found in chunks.items()),
            inventory,
            tuple(events),
            sum(len(part.batch) for part in parts),
            tuple(part.batch for part in parts),
        )


def _chunk_bytes(part: Sealed) -> int:
    return len(part.chunk) + CHUNK_OVERHEAD_BYTES + UUID_OVERHEAD_BYTES


def _process_bytes(sample: ProcessSample) -> int:
    texts = len(sample.name.encode()) + len(sample.cgroup.encode()) + len(sample.container_id)
    return texts + UUID_OVERHEAD_BYTES + PROCESS_OVERHEAD_BYTES


def _pack(
    parts: Sequence[T], size_of: Callable[[T], int], size_bytes_max: int
) -> Iterator[list[T]]:
    chosen: list[T] = []
    size_bytes = 0
    for part in parts:
        cost = size_of(part)
        if chosen and size_bytes + cost > size_bytes_max:
            yield chosen
            chosen, size_bytes = [], 0
        chosen.append(part)
        size_bytes += cost
    if chosen:
        yield chosen
