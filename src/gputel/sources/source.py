"""The seam between the collector and whatever measures GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from gputel.catalog import Cadence, MetricSet
from gputel.inventory import Event, Gpu, ProcessSample
from gputel.kernels import Ring

Rings = Mapping[MetricSet, Ring]


class Source(Protocol):
    """One origin of samples. Called by one thread, the sampler's."""

    #: "nvml", "sim" or "replay"; shown to the user.
    name: str
    #: What the user is told about it: driver version, file name, ...
    description: str
    #: A finite source (a replay that ends) names its stream of frames itself, so that the
    #: same input published twice is stored once. None: live, each run is a new epoch.
    identity: str | None

    def open(self) -> Sequence[Gpu]:
        """The GPUs, in slot order: row.gpu is an index into this. SourceUnavailable, InputError.

        A second call returns the GPUs as they are known now.
        """
        ...

    def cadences(self) -> Mapping[Cadence, int]:
        """What to call `sweep` for, and the period of each in ns."""
        ...

    def sweep(self, cadence: Cadence, time_ns: int, rings: Rings, lateness_us: int = 0) -> bool:
        """Write the rows that are due at wall time `time_ns`, a multiple of 1,000.

        `lateness_us` says how long after its due time the sweep began; it is kept with the
        rows. A live source writes one row a GPU into the ring of `cadence`; when the ring is
        full the ring counts the drop. A replay writes only what fits and goes on at the next
        call; its rows end at a boundary that depends on its input alone, and True means:
        everything until here belongs into one frame a node, seal it now.
        """
        ...

    def events(self) -> Sequence[Event]:
        """What happened since the last call."""
        ...

    def processes(self) -> Sequence[ProcessSample]:
        """The processes seen by the slow sweeps since the last call; () when none are asked for."""
        ...

    @property
    def exhausted(self) -> bool:
        """True when a finite source has written its last row."""
        ...

    def close(self) -> None:
        """Release the driver or file."""
        ...
