"""The samples that the exporter and the rates have not seen yet.

Between two scrapes nobody waits for them, and to look at fifty samples at once costs what
looking at a few does. So they stay in columns of their own until a page is asked for, LOOK_S
are over, or there is no room for more:

    with a broker     rings --> batcher --> chunks --> frames
                                   | copies
                                recent --+
    without           rings --> recent --+--> exporter, rates
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from gputel.batch import Batch
from gputel.catalog import METRIC_SETS, Cadence, MetricSet
from gputel.clock import NS_PER_S, Clock
from gputel.collector.exporter.latest import Arrivals
from gputel.kernels import Columns
from gputel.limits import GPUS_PER_NODE_MAX
from gputel.sources import Rings

LOOK_S: Final = 5
#: Samples of a GPU and set that there is room for: more than come in LOOK_S at 10 Hz, and from
#: the driver's own buffer. Whoever has more GPUs than a node looks more often.
CAPACITY_SAMPLES: Final = 64
CAPACITY_SAMPLES_DRAIN: Final = 512
CAPACITY_SAMPLES_FLEET: Final = 16

Look = Callable[[int, Batch, Arrivals], None]


class Recent:
    """Of a live source: its samples carry the time now. Used on one thread.

    capacity_samples_min  as many of a GPU and set may come at once
    waits_ns              how long a sample may be on its way here
    look                  is given each GPU's samples of each set, in the order of their times
    """

    def __init__(
        self, gpus: int, capacity_samples_min: int, waits_ns: int, clock: Clock, look: Look
    ) -> None:

        def room(metric_set: MetricSet) -> int:
            drains = metric_set.cadence is Cadence.DRAIN
            usual = CAPACITY_SAMPLES_DRAIN if drains else CAPACITY_SAMPLES
            return usual if gpus <= GPUS_PER_NODE_MAX else CAPACITY_SAMPLES_FLEET

        self._columns: Mapping[MetricSet, Columns] = {
            metric_set: Columns(
                metric_set.storages, gpus, max(room(metric_set), capacity_samples_min)
            )
            for metric_set in METRIC_SETS
        }
        self._waits_ns = waits_ns
        self._clock = clock
        self._look = look
        self._looked_ns = clock.monotonic_ns()

    @property
    def due(self) -> bool:
        """Is it time to look again?"""
        return self._clock.monotonic_ns() - self._looked_ns >= LOOK_S * NS_PER_S

    def grow(self, gpus: int) -> None:
        """Make room for the rows of GPUs that were added."""
        for columns in self._columns.values():
            columns.grow(gpus)

    def drain(self, rings: Rings) -> int:
        """Take all rows out of the rings; returns how many."""
        moved = 0
        for metric_set, ring in rings.items():
            columns = self._columns[metric_set]
            while ring.pending_rows:
                taken = columns.drain(ring)
                moved += taken
                if taken == 0:  # a GPU's columns are full
                    self.look()
        return moved

    def take(self, metric_set: MetricSet, columns: Columns) -> None:
        """Copy what `columns` hold."""
        mine = self._columns[metric_set]
        if mine.take(columns):
            return
        self.look()
        taken = mine.take(columns)
        assert taken, "capacity_samples_min is the capacity of these columns"

    def look(self) -> None:
        """Hand out what is there."""
        now_ns = self._clock.monotonic_ns()
        # What was swept before the last look may have come here after it.
        since_ns = self._looked_ns - self._waits_ns
        arrivals = Arrivals(now_ns, since_ns, self._clock.time_ns() - now_ns)
        self._looked_ns = now_ns
        for metric_set, columns in self._columns.items():
            if columns.pending_rows:
                for part in columns.seal():
                    batch = Batch(metric_set, part.time_ns, part.sequence, part.columns, part.valid)
                    self._look(part.gpu, batch, arrivals)
