"""How often a metric really changes, beside how often it is asked.

A driver refreshes most values every 100 ms or slower, whoever asks how often. From
outside, that is the distance between changes of the value:

    samples   5 5 5 5 5 7 7 7 7 7 8 8 8 8 8 8 8 8 8 8 6     sampled at 50 Hz
    changes             |         |                   |     5 and 10 samples apart: 10 Hz

A value that stays the same tells nothing: it may be refreshed all the time. And a refresh
that brings the same value hides a change. So the rate is taken from the shortest distances
that are usual, those up to 1.8 times the lowest tenth, and their mean evens out that a
change is seen up to a sample late. A metric that does not change has no rate, and no rate
is above our own: what is refreshed faster than asked changes with each sample.

PERF(rates): batches are held and looked at hundreds of samples at a time: numpy costs
microseconds a call, whatever the size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gputel.batch import Batch
from gputel.catalog import METRIC_SETS, Metric, MetricSet
from gputel.clock import NS_PER_S
from gputel.limits import GPUS_PER_NODE_MAX
from gputel.observe import Telemetry

#: Distances kept for each GPU and metric, the latest; fewer than the minimum say nothing.
DISTANCES: Final = 32
DISTANCES_MIN: Final = 8
USUAL_FACTOR: Final = 1.8
#: Batches are held until they have so many samples, the first ones fewer, or span so long.
HELD_SAMPLES_FIRST: Final = 128
HELD_SAMPLES: Final = 1024
HELD_NS: Final = 30 * NS_PER_S
#: What has not changed for so long does not change now.
QUIET_NS: Final = 60 * NS_PER_S

Bits = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]


class Rate(NamedTuple):
    """One metric. `effective_hz` is the fastest of the `changing_gpus`, because one driver
    refreshes all of them alike; None while it changes on none."""

    metric: Metric
    nominal_hz: float
    effective_hz: float | None
    changing_gpus: int


class Rates:
    """Looks at the sealed batches of the first GPUS_PER_NODE_MAX GPUs; one thread."""

    def __init__(self, gpus: int) -> None:
        self._gpus = min(gpus, GPUS_PER_NODE_MAX)
        self._sets = {metric_set: _SetRates(metric_set, self._gpus) for metric_set in METRIC_SETS}

    def update(self, slot: int, batch: Batch) -> None:
        """Take the next samples of a GPU, in the order of their times."""
        if slot < self._gpus:
            self._sets[batch.metric_set].hold(slot, batch)

    def rates(self) -> Iterator[Rate]:
        """Every metric that has been asked for long enough."""
        for of_set in self._sets.values():
            yield from of_set.rates()


def describe(telemetry: Telemetry, rates: Callable[[], Rates]) -> None:
    """Export the rates that are there when somebody asks."""

    def labelled(field: str) -> list[tuple[float, dict[str, str]]]:
        return [
            (value, {"metric": rate.metric.name})
            for rate in rates().rates()
            if (value := getattr(rate, field)) is not None
        ]

    for name, help_, field in (
        ("nominal_hertz", "How often a metric is asked", "nominal_hz"),
        ("effective_hertz", "How often it really changes, while it does", "effective_hz"),
        ("changing_gpus", "GPUs on which it changes", "changing_gpus"),
    ):
        read = partial(labelled, field)
        telemetry.observe_gauge(f"gputel_metric_{name}", help_, read)


class _SetRates:
    """The metrics of one set; arrays over (GPU, column)."""

    def __init__(self, metric_set: MetricSet, gpus: int) -> None:
        shape = (gpus, len(metric_set.metrics))
        self._metric_set = metric_set
        self._held: list[list[Batch]] = [[] for _ in range(gpus)]
        self._held_samples = [0] * gpus
        self._looked = False  # since the rates were last measured
        self._rates: Sequence[Rate] = ()
        self._samples = np.zeros(gpus, np.int64)
        self._sampled_ns = np.zeros(gpus, np.int64)  # the last sample
        self._period_ns = np.zeros(gpus, np.float64)
        self._value = np.zeros(shape, np.uint64)  # of the last sample, as bits
        self._valid = np.zeros(shape, np.bool_)
        self._had = np.zeros(shape, np.bool_)  # a value, ever
        self._changed_ns = np.zeros(shape, np.int64)
        self._changed_at = np.full(shape, -1, np.int64)  # number of the sample; -1: never
        self._count = np.zeros(shape, np.int64)  # distances noted
        self._distance_ns = np.zeros((*shape, DISTANCES), np.int64)
        self._distance = np.zeros((*shape, DISTANCES), np.int64)  # in samples

    def hold(self, gpu: int, batch: Batch) -> None:
        held = self._held[gpu]
        held.append(batch)
        self._held_samples[gpu] += len(batch)
        enough = HELD_SAMPLES if self._samples[gpu] else HELD_SAMPLES_FIRST
        if self._held_samples[gpu] >= enough or batch.time_ns[-1] - held[0].time_ns[0] >= HELD_NS:
            self._look(gpu, held)
            held.clear()
            self._held_samples[gpu] = 0

    def rates(self) -> Sequence[Rate]:
        if self._looked:
            self._looked = False
            self._rates = self._measure()
        return self._rates

    def _measure(self) -> list[Rate]:
        asked = self._period_ns > 0
        if not asked.any():
            return []
        nominal_hz = NS_PER_S / float(np.median(self._period_ns[asked]))
        quiet = self._sampled_ns[:, None] - self._changed_ns > QUIET_NS
        changing = (self._count >= DISTANCES_MIN) & ~quiet
        fastest_hz = np.where(changing, self._effective_hz(), 0).max(axis=0)
        changing_gpus = changing.sum(axis=0)
        return [
            Rate(
                metric,
                nominal_hz,
                min(float(fastest_hz[column]), nominal_hz) if changing_gpus[column] else None,
                int(changing_gpus[column]),
            )
            for column, metric in enumerate(self._metric_set.metrics)
            if self._had[:, column].any()
        ]

    def _effective_hz(self) -> npt.NDArray[np.float64]:
        """float[gpus, columns]; 0 where there are too few distances."""
        kept = np.minimum(self._count, DISTANCES)[..., None]
        there = np.arange(DISTANCES) < kept
        ordered = np.sort(np.where(there, self._distance, np.iinfo(np.int64).max), axis=2)
        lowest = np.take_along_axis(ordered, kept // 10, axis=2).astype(np.float64)
        longest = np.maximum(2, np.ceil(USUAL_FACTOR * lowest) - 1)
        usual = there & (self._distance <= longest)
        total_ns = np.where(usual, self._distance_ns, 0).sum(axis=2)
        enough = (self._count >= DISTANCES_MIN) & (total_ns > 0)
        return np.where(enough, usual.sum(axis=2) * NS_PER_S / np.maximum(total_ns, 1), 0.0)

    def _look(self, gpu: int, held: list[Batch]) -> None:
        self._looked = True
        times, bits, valid = _joined(held)
        n = len(times)
        first = int(self._samples[gpu])
        since_ns = int(times[-1]) - (int(self._sampled_ns[gpu]) if first else int(times[0]))
        intervals = n if first else n - 1
        if intervals and since_ns > 0:
            self._period_ns[gpu] = since_ns / intervals
        before = np.concatenate((self._value[gpu][:, None], bits[:, :-1]), axis=1)
        known = np.concatenate((self._valid[gpu][:, None], valid[:, :-1]), axis=1)
        columns, at = np.nonzero((bits != before) & valid & known)
        if len(columns):
            self._note(gpu, columns, at + first, times[at])
        self._samples[gpu] = first + n
        self._sampled_ns[gpu] = times[-1]
        self._value[gpu] = bits[:, -1]
        self._valid[gpu] = valid[:, -1]
        self._had[gpu] |= valid.any(axis=1)

    def _note(self, gpu: int, columns: Int64s, at: Int64s, time_ns: Int64s) -> None:
        """Changes in the order of columns, and of time within a column."""
        opens = np.concatenate(([True], columns[1:] != columns[:-1]))
        starts = np.flatnonzero(opens)
        previous_at = np.where(opens, self._changed_at[gpu, columns], np.roll(at, 1))
        previous_ns = np.where(opens, self._changed_ns[gpu, columns], np.roll(time_ns, 1))
        lasts = np.concatenate((starts[1:] - 1, [len(columns) - 1]))
        self._changed_at[gpu, columns[lasts]] = at[lasts]
        self._changed_ns[gpu, columns[lasts]] = time_ns[lasts]
        # A metric's first change ever has no distance to one before.
        noted = previous_at >= 0
        of = columns[noted]
        rank = np.arange(len(of)) - np.searchsorted(of, of)
        place = (self._count[gpu, of] + rank) % DISTANCES
        self._distance[gpu, of, place] = (at - previous_at)[noted]
        self._distance_ns[gpu, of, place] = (time_ns - previous_ns)[noted]
        self._count[gpu] += np.bincount(of, minlength=self._count.shape[1])


def _joined(held: list[Batch]) -> tuple[Int64s, Bits, Bools]:
    """Times, values as bits, and validity of batches behind one another."""
    times = np.concatenate([batch.time_ns for batch in held])
    bits = np.empty((len(held[0].columns), len(times)), np.uint64)
    for column, parts in enumerate(zip(*[batch.columns for batch in held], strict=True)):
        joined = np.concatenate(parts)
        bits[column] = joined.view(f"u{joined.itemsize}")
    # Each batch begins with a byte of its own: unpack all, then pick the bits that are samples.
    unpacked = np.unpackbits(
        np.concatenate([batch.valid for batch in held], axis=1), axis=1, bitorder="little"
    )
    lengths = np.array([len(batch.time_ns) for batch in held])
    starts = np.cumsum((lengths + 7) // 8 * 8) - (lengths + 7) // 8 * 8
    within = np.arange(len(times)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return times, bits, unpacked[:, np.repeat(starts, lengths) + within].view(np.bool_)
