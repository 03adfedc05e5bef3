"""An NVML source on a manual clock, or two on the same driver, and what their sweeps write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gputel._reference.nvml import Sweeper as Twin
from gputel.catalog import METRIC_SETS, SET_BY_CADENCE, Cadence
from gputel.clock import ManualClock, SystemClock
from gputel.inventory import EventKind
from gputel.kernels import Columns, Ring, Sealed
from gputel.limits import GPUS_PER_NODE_MAX
from gputel.plan import Plan
from gputel.sources.nvml import Nvml
from support.simulation import LIBRARY, Sim

PERIODS_NS = dict.fromkeys(Cadence, 1_000_000_000)
Row = dict[str, Any]


def make_twin(plans: Sequence[Plan], nvml: Any, _: Mapping[str, int], devices: int) -> Any:
    """The readable kernel, whatever GPUTEL_KERNELS says."""
    return Twin(plans, nvml, devices)


class Rig:
    """One source and its rings. `sim` is advanced with the clock when it is given."""

    def __init__(
        self,
        sim: Sim | None = None,
        *,
        twin: bool = False,
        clock: ManualClock | SystemClock | None = None,
        **options: Any,
    ) -> None:
        self.sim = sim
        self.clock = clock or ManualClock()
        if twin:
            options["make_sweeper"] = make_twin
        if sim is not None:
            options["library"] = str(LIBRARY)
        options.setdefault("periods_ns", PERIODS_NS)
        self.source = Nvml(node="n", clock=self.clock, **options)
        self.gpus = self.source.open()
        self.rings = {s: Ring(s.storages, 8192) for s in METRIC_SETS}

    def advance(self, seconds: float) -> None:
        """Let time pass, here and in the driver."""
        if isinstance(self.clock, ManualClock):
            self.clock.advance(seconds)
        if self.sim is not None:
            self.sim.advance(seconds)

    def take(self, cadence: Cadence) -> dict[int, Sealed]:
        """What is in the ring of `cadence`, by slot."""
        metric_set = SET_BY_CADENCE[cadence]
        columns = Columns(metric_set.storages, GPUS_PER_NODE_MAX, 8192)
        columns.drain(self.rings[metric_set])
        return {part.gpu: part for part in columns.seal()}

    def sweep(self, cadence: Cadence, seconds: float = 1.0) -> dict[int, Row]:
        """Slot -> metric -> value of the newest row, valid ones only, `seconds` later."""
        self.advance(seconds)
        self.source.sweep(cadence, self.clock.time_ns(), self.rings)
        metrics = SET_BY_CADENCE[cadence].metrics
        return {
            slot: {
                metric.name: part.columns[c][-1].item()
                for c, metric in enumerate(metrics)
                if part.valid[c][(len(part.time_ns) - 1) // 8] >> ((len(part.time_ns) - 1) % 8) & 1
            }
            for slot, part in self.take(cadence).items()
        }

    def kinds(self) -> list[EventKind]:
        """The kinds of the events since the last call."""
        return [event.kind for event in self.source.events()]
