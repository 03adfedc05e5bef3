"""Effective rates: the driver's refresh seen through our samples, and honest silence."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from gputel.batch import DTYPES, Batch
from gputel.catalog import METRIC_SETS, SET_BY_CADENCE, Cadence, MetricSet
from gputel.clock import NS_PER_MS, NS_PER_S, ManualClock
from gputel.collector.batcher import Batcher
from gputel.collector.rates import Rate, Rates, describe
from gputel.kernels import Ring
from gputel.observe import Telemetry
from gputel.sources.sim import Simulator

FAST = SET_BY_CADENCE[Cadence.FAST]
START_NS = 1_700_000_000 * NS_PER_S


def batch_of(metric_set: MetricSet, times: list[int], values: list[list[int | None]]) -> Batch:
    """`values` by column, the last one for all that follow."""
    columns, valid = [], []
    for column, metric in enumerate(metric_set.metrics):
        given = values[min(column, len(values) - 1)]
        dtype = DTYPES[metric.storage.value]
        columns.append(np.array([0 if v is None else v for v in given], dtype))
        valid.append(np.packbits([v is not None for v in given], bitorder="little"))
    return Batch(
        metric_set,
        np.array(times, np.int64),
        np.arange(len(times)),
        tuple(columns),
        np.array(valid),
    )


def feed(
    rates: Rates,
    hz: float,
    seconds: float,
    value: Callable[[int], int | None],
    *,
    gpu: int = 0,
    samples: int = 1,
    jitter_ns: int = 0,
) -> None:
    """`value(time)` sampled at `hz`, in batches of `samples`."""
    dice = random.Random(1)
    times = [
        START_NS + round(i * NS_PER_S / hz) + dice.randint(0, jitter_ns)
        for i in range(round(hz * seconds))
    ]
    for first in range(0, len(times), samples):
        part = times[first : first + samples]
        rates.update(gpu, batch_of(FAST, part, [[value(t) for t in part]]))


def of_first(rates: Rates) -> Rate:
    return next(rate for rate in rates.rates() if rate.metric is FAST.metrics[0])


def counter(refresh_ms: float) -> Callable[[int], int]:
    return lambda time_ns: int((time_ns - START_NS) // (refresh_ms * NS_PER_MS))


def repeating(refresh_ms: float, share: float) -> Callable[[int], int]:
    """Refreshed every `refresh_ms`, with the same value again in `share` of the cases."""
    dice = random.Random(2)
    values = [0]
    for _ in range(10_000):
        values.append(values[-1] if dice.random() < share else values[-1] + 1)
    return lambda time_ns: values[counter(refresh_ms)(time_ns)]


@pytest.mark.parametrize(
    ("hz", "refresh_ms", "expected"),
    [
        (50, 100, 10),
        (100, 100, 10),
        (20, 100, 10),
        (25, 100, 10),
        (15, 100, 10),
        (10, 100, 10),
        (10, 20, 10),  # no rate is above our own
        (50, 1000, 1),
        (10, 33, 10),
    ],
)
@pytest.mark.parametrize("samples", [1, 5, 200])
def test_the_refresh_is_found(hz: float, refresh_ms: float, expected: float, samples: int) -> None:
    rates = Rates(1)
    feed(rates, hz, 40, counter(refresh_ms), samples=samples, jitter_ns=NS_PER_MS)
    rate = of_first(rates)
    assert rate.nominal_hz == pytest.approx(hz, rel=0.02)
    assert rate.effective_hz == pytest.approx(expected, rel=0.1)
    assert rate.changing_gpus == 1


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
def test_refreshes_that_bring_the_same_value_do_not_deceive(share: float) -> None:
    rates = Rates(1)
    feed(rates, 50, 60, repeating(100, share))
    assert of_first(rates).effective_hz == pytest.approx(10, rel=0.15)


def test_what_does_not_change_has_no_rate() -> None:
    rates = Rates(2)
    assert list(rates.rates()) == []
    feed(rates, 50, 20, lambda _: 7)
    rate = of_first(rates)
    assert (rate.effective_hz, rate.changing_gpus) == (None, 0)
    assert rate.nominal_hz == pytest.approx(50, rel=0.02)


def test_what_changed_long_ago_does_not_change_now() -> None:
    rates = Rates(1)
    moving = counter(100)
    until_ns = START_NS + 20 * NS_PER_S
    feed(rates, 50, 70, lambda t: moving(min(t, until_ns)))
    assert of_first(rates).effective_hz == pytest.approx(10, rel=0.1)
    feed_more = Rates(1)
    feed(feed_more, 50, 90, lambda t: moving(min(t, until_ns)))
    assert of_first(feed_more).effective_hz is None


def test_a_missing_value_is_no_change() -> None:
    rates = Rates(1)
    feed(rates, 50, 20, lambda t: None if t // NS_PER_S % 2 else 7)
    assert of_first(rates).effective_hz is None
    never = Rates(1)
    feed(never, 50, 20, lambda _: None)
    assert list(never.rates()) == []


def test_the_fastest_gpu_tells_the_refresh() -> None:
    rates = Rates(3)
    feed(rates, 50, 40, counter(1000), gpu=0)
    feed(rates, 50, 40, counter(100), gpu=1)
    feed(rates, 50, 40, lambda _: 1, gpu=2)
    feed(rates, 50, 40, counter(100), gpu=900)  # beyond the bound: ignored
    rate = of_first(rates)
    assert rate.changing_gpus == 2
    assert rate.effective_hz == pytest.approx(10, rel=0.1)


def test_the_simulator_refreshes_at_ten_hertz_and_its_metrics_say_so() -> None:
    clock = ManualClock()
    periods = dict.fromkeys(Cadence, NS_PER_S) | {Cadence.FAST: 20 * NS_PER_MS}
    source = Simulator(node="n", gpus=2, model="NVIDIA H100 80GB HBM3", seed=3, periods_ns=periods)
    gpus = source.open()
    rings = {metric_set: Ring(metric_set.storages, 1024) for metric_set in METRIC_SETS}
    rates, batcher = Rates(len(gpus)), Batcher(rings, gpus, 64)
    for tick in range(50 * 60):
        source.sweep(Cadence.FAST, clock.time_ns(), rings)
        if tick % 5 == 0:
            batcher.drain()
            for part in batcher.seal():
                rates.update(part.slot, part.batch)
        clock.advance(0.02)
    source.close()
    found = {rate.metric.name: rate for rate in rates.rates()}
    for name in ("energy_millijoules", "power_instant_watts"):
        assert found[name].effective_hz == pytest.approx(10, rel=0.1), name
    changing = [r for r in found.values() if r.effective_hz is not None]
    assert len(changing) >= 5
    for rate in changing:
        assert rate.nominal_hz == pytest.approx(50, rel=0.01)
        assert rate.effective_hz is not None
        assert rate.effective_hz <= 11, rate.metric.name
    telemetry = Telemetry("collector")
    describe(telemetry, lambda: rates)
    text = telemetry.exposition()[0].decode()
    assert 'gputel_metric_nominal_hertz{metric="' in text
    assert 'gputel_metric_effective_hertz{metric="' in text
    telemetry.close()
