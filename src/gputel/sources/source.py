"""The seam between the collector and whatever measures GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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


#: nvmlGpuP2PStatus_t over NVLink, by the uuids of a GPU and its peer.
PeerStatuses = Mapping[tuple[str, str], int]


@runtime_checkable
class Peering(Protocol):
    """What a source adds that knows which GPUs reach each other."""

    def want_peers(self) -> None:
        """Look at each slow sweep from now on; before `open`."""
        ...

    def peers(self) -> PeerStatuses:
        """As of the last slow sweep; not to be mutated. A pair that is not known is missing."""
        ...


class Abandoned(Exception):
    """Raised by `sweep` on a thread whose work another thread has taken over; it shall end."""


class Preempted(Exception):
    """Raised by `sweep` when its time is over: call it again with the same arguments."""


@runtime_checkable
class Hardware(Protocol):
    """What a source adds that asks a driver, whose calls may fail to return.

    A sweep that hangs is taken over: `watch` returns, `abandon` takes the work away from the
    thread that is stuck, and another thread calls `sweep` again with the same arguments; it
    leaves out the GPUs that were asked already and the one that is stuck. The stuck thread's
    `sweep` raises Abandoned when it returns, if ever.
    """

    def give_way_at(self, monotonic_ns: int | None) -> None:
        """From this time on the next `sweep` begins no further GPU, but raises Preempted."""
        ...

    def watch(self, limit_ns: int) -> bool:
        """Wait until a driver call of the sweeping thread lasts for `limit_ns`: True. False
        after `unwatch`."""
        ...

    def abandon(self, limit_ns: int) -> bool:
        """Take the work from the sweeping thread; False when its call has ended meanwhile."""
        ...

    def unwatch(self) -> None:
        """Let `watch` return."""
        ...

    def pause(self) -> None:
        """Make no driver call besides `sweep`'s until `resume`; may be called twice."""
        ...

    def resume(self) -> None:
        """Go on."""
        ...

    def problem(self) -> str | None:
        """Why the driver can't be used any more, None when it can."""
        ...

    def call_costs(self) -> Sequence[CallCost]:
        """What the driver's functions have cost so far, one entry a function."""
        ...

    def counts(self) -> Mapping[str, int]:
        """Values left out, by reason."""
        ...


@dataclass(frozen=True, slots=True)
class CallCost:
    """Calls of one function of the driver; errors by what they mean."""

    call: str
    calls: int
    ns: int
    longest_ns: int
    errors: Mapping[str, int]
