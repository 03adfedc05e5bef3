"""The NVML source on the real driver: against its twin, and what each call takes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from gputel.catalog import METRIC_SETS, Cadence, Kind, Unit
from gputel.clock import SYSTEM_CLOCK
from gputel.errors import SourceUnavailable
from support.sweeping import Rig

pytestmark = pytest.mark.gpu

ROUNDS = 20
#: What two readings a millisecond apart must agree in, and by how much.
CELSIUS_MAX = 10
STEADY = ("memory_total_bytes", "power_limit_watts", "pcie_link_width", "mig_mode")


@pytest.fixture
def rigs() -> Iterator[tuple[Rig, Rig]]:
    try:
        pair = Rig(clock=SYSTEM_CLOCK), Rig(clock=SYSTEM_CLOCK, twin=True)
    except SourceUnavailable as error:
        pytest.skip(f"needs an NVIDIA driver and GPU: {error}")
    yield pair
    for rig in pair:
        rig.source.close()


def test_the_kernel_agrees_with_nvidia_ml_py_and_tells_what_calls_take(
    rigs: tuple[Rig, Rig], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(ROUNDS):
        for metric_set in METRIC_SETS:
            rows = []
            for rig in rigs:
                rig.source.sweep(metric_set.cadence, SYSTEM_CLOCK.time_ns(), rig.rings)
                rows.append(rig.take(metric_set.cadence))
            if metric_set.cadence is Cadence.DRAIN:
                continue
            native, twin = rows
            assert native.keys() == twin.keys() == set(range(len(rigs[0].gpus)))
            for slot, part in native.items():
                other = twin[slot]
                for c, metric in enumerate(metric_set.metrics):
                    if not (part.valid[c][0] & other.valid[c][0] & 1):
                        continue
                    a, b = part.columns[c][0].item(), other.columns[c][0].item()
                    if metric.kind is Kind.COUNTER:
                        assert b >= a or b == 0, metric.name
                    elif metric.unit is Unit.CELSIUS:
                        assert abs(a - b) <= CELSIUS_MAX, metric.name
                    elif metric.name in STEADY:
                        assert a == b, metric.name
        time.sleep(0.2)
    with capsys.disabled():
        print(f"\n{'call':44} {'calls':>7} {'mean us':>9} {'max us':>9}  errors")
        for cost in rigs[0].source.call_costs():
            if cost.calls:
                mean_us, max_us = cost.ns / cost.calls / 1000, cost.longest_ns / 1000
                print(
                    f"{cost.call:44} {cost.calls:7} {mean_us:9.2f} {max_us:9.2f}  "
                    f"{dict(cost.errors) or ''}"
                )


def test_what_both_support_is_the_same(rigs: tuple[Rig, Rig]) -> None:
    for metric_set in METRIC_SETS:
        if metric_set.cadence is Cadence.DRAIN:
            continue
        for _ in range(3):  # GPM and rates need two samples, scopes and older calls two tries
            time.sleep(0.3)
            found = [rig.sweep(metric_set.cadence, seconds=0) for rig in rigs]
        for slot in found[0]:
            assert found[0][slot].keys() == found[1][slot].keys()
