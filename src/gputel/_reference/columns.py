"""The column batcher in readable Python: rows of all GPUs in, columns a GPU out.

    ring:  |t0 g0 ..|t0 g1 ..|t1 g0 ..|t1 g1 ..|      one row a GPU and sweep

    gpu 0  time_ns   t0 t1            gpu 1  time_ns   t0 t1
           c0        .. ..                   c0        .. ..
           c1        .. ..                   c1        .. ..
           valid     one bit a cell          valid     one bit a cell

Each GPU has room for `capacity_samples` from the start; nothing grows while rows arrive.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gputel import limits
from gputel._reference.ring import Ring
from gputel.rows import Sealed, row_dtype

ROWS_ALL = 2**62


class Columns:
    """Holds up to `capacity_samples` rows of each of `gpus` GPUs as columns.

    ValueError: storages that `row_dtype` refuses, or sizes out of bounds.
    """

    def __init__(self, storages: str, gpus: int, capacity_samples: int) -> None:
        if not 1 <= capacity_samples <= limits.CHUNK_SAMPLES_MAX:
            raise ValueError(
                f"{capacity_samples} samples a GPU, 1 to {limits.CHUNK_SAMPLES_MAX} are allowed"
            )
        if not 0 <= gpus <= limits.GPUS_PER_COLLECTOR_MAX:
            raise ValueError(f"{gpus} GPUs, 0 to {limits.GPUS_PER_COLLECTOR_MAX} are allowed")
        self.storages = storages
        self.capacity_samples = capacity_samples
        self._dtype = row_dtype(storages)
        self._rows: list[npt.NDArray[np.void]] = []
        self._counts: list[int] = []
        self.grow(gpus)

    @property
    def gpus(self) -> int:
        """GPU slots there is room for."""
        return len(self._counts)

    @property
    def pending_rows(self) -> int:
        """Rows held of all GPUs."""
        return sum(self._counts)

    @property
    def fullest(self) -> int:
        """Rows held of the GPU that has the most."""
        return max(self._counts, default=0)

    def grow(self, gpus: int) -> None:
        """Make room for `gpus` GPUs in all; fewer than now changes nothing. ValueError."""
        if gpus > limits.GPUS_PER_COLLECTOR_MAX:
            raise ValueError(f"{gpus} GPUs, at most {limits.GPUS_PER_COLLECTOR_MAX} are allowed")
        while len(self._counts) < gpus:
            self._rows.append(np.zeros(self.capacity_samples, self._dtype))
            self._counts.append(0)

    def drain(self, ring: Ring, rows_max: int = ROWS_ALL) -> int:
        """Move up to `rows_max` of the rows pending now out of `ring`; return how many.

        Stops before a row whose GPU is full: seal, then drain again. ValueError: a ring of
        other storages; a row of a slot beyond `gpus`, which stays in the ring (grow first).
        """
        if ring.storages != self.storages:
            raise ValueError(f"ring of {ring.storages!r}, columns of {self.storages!r}")
        moved = 0
        for row in ring.peek(rows_max):
            gpu = int(row["gpu"])
            if gpu >= self.gpus:
                ring.release(moved)
                raise ValueError(f"row of GPU slot {gpu}; there are {self.gpus}, grow first")
            if self._counts[gpu] == self.capacity_samples:
                break
            self._rows[gpu][self._counts[gpu]] = row
            self._counts[gpu] += 1
            moved += 1
        ring.release(moved)
        return moved

    def take(self, other: Columns) -> bool:
        """Add a copy of the rows that `other` holds, which keeps them.

        False when one of its GPUs has no room for them: nothing is added then. ValueError:
        columns of other storages; rows of a slot beyond `gpus` (grow first).
        """
        if other.storages != self.storages:
            raise ValueError(f"columns of {other.storages!r} into columns of {self.storages!r}")
        for gpu, rows in enumerate(other._counts):
            if rows and gpu >= self.gpus:
                raise ValueError(f"row of GPU slot {gpu}; there are {self.gpus}, grow first")
            if rows and self._counts[gpu] + rows > self.capacity_samples:
                return False
        for gpu, rows in enumerate(other._counts):
            if rows:
                first = self._counts[gpu]
                self._rows[gpu][first : first + rows] = other._rows[gpu][:rows]
                self._counts[gpu] = first + rows
        return True

    def seal(self) -> list[Sealed]:
        """Hand out what is held, GPUs in slot order, and begin anew."""
        sealed = []
        for gpu, count in enumerate(self._counts):
            if count:
                sealed.append(self._seal(gpu, self._rows[gpu][:count]))
                self._counts[gpu] = 0
        return sealed

    def _seal(self, gpu: int, rows: npt.NDArray[np.void]) -> Sealed:
        columns = []
        valid = np.zeros((len(self.storages), (len(rows) + 7) // 8), np.uint8)
        for j in range(len(self.storages)):
            mask = (rows["valid"] >> np.uint64(j)) & np.uint64(1) != 0
            column = np.where(mask, rows[f"c{j}"], np.zeros(1, self._dtype[f"c{j}"]))
            columns.append(column)
            valid[j] = np.packbits(mask, bitorder="little")
        return Sealed(
            gpu,
            rows["time_ns"].copy(),
            rows["sequence"].copy(),
            tuple(columns),
            valid,
            rows["lateness_us"].copy(),
        )
