"""Where samples come from. The collector knows only this seam.

    source                      what it reads
    ------                      -------------
    nvml                        the driver, through NVML
    sim                         a model of a node
    replay                      a DCGM CSV dump or an nvidia-smi log

A source never blocks on what comes after it: it writes rows into rings and returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from gputel.catalog import Cadence, MetricSet
from gputel.inventory import Event, Gpu

if TYPE_CHECKING:  # the configuration imports this package, and must not load numpy
    from gputel.kernels import Ring

Rings = Mapping[MetricSet, "Ring"]


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
        """The GPUs, in slot order: row.gpu is an index into this. SourceUnavailable, InputError."""
        ...

    def cadences(self) -> Mapping[Cadence, int]:
        """What to call `sweep` for, and the period of each in ns."""
        ...

    def sweep(self, cadence: Cadence, time_ns: int, rings: Rings) -> bool:
        """Write the rows that are due at wall time `time_ns`.

        A live source writes one row a GPU into the ring of `cadence`; when the ring is full
        the ring counts the drop. A finite source writes only what fits and goes on at the
        next call; its rows end at a boundary that depends on its input alone, and True
        means: everything until here belongs into one frame a node, seal it now.
        """
        ...

    def events(self) -> Sequence[Event]:
        """What happened since the last call."""
        ...

    @property
    def exhausted(self) -> bool:
        """True when a finite source has written its last row."""
        ...

    def close(self) -> None:
        """Release the driver or file."""
        ...
