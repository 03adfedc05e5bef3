"""The latest values against a dictionary that keeps everything."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gputel.catalog import METRIC_SETS, MetricSet, Storage
from gputel.clock import NS_PER_S
from gputel.collector.exporter.latest import COLUMN, VIEWS, Latest, all_now
from support.exporting import batch, gpu

GPUS = 3
LIFE_S = 5


@st.composite
def rows(draw: st.DrawFn) -> tuple[MetricSet, list[dict[str, int | float]]]:
    metric_set = draw(st.sampled_from(METRIC_SETS))
    found: list[dict[str, int | float]] = []
    for _ in range(draw(st.integers(1, 11))):
        row: dict[str, int | float] = {}
        for metric in draw(st.sets(st.sampled_from(metric_set.metrics), max_size=6)):
            if metric.storage in (Storage.I64, Storage.U64):
                row[metric.name] = draw(st.integers(0, 2**63 - 1))
            else:
                row[metric.name] = draw(st.floats(width=64))
        found.append(row)
    return metric_set, found


def bits(value: int | float) -> bytes:
    return struct.pack("<d" if isinstance(value, float) else "<q", value)


@given(st.lists(st.tuples(st.integers(0, GPUS - 1), rows(), st.integers(0, 3)), max_size=25))
def test_it_holds_what_a_dictionary_of_everything_would(
    arrived: list[tuple[int, tuple[MetricSet, list[dict[str, int | float]]], int]],
) -> None:
    latest, now_s = Latest(), 100
    latest.expect(dict.fromkeys(METRIC_SETS, LIFE_S * NS_PER_S))
    latest.inventory([gpu(0)])
    latest.inventory([gpu(i) for i in range(GPUS)])
    everything: dict[tuple[int, str], tuple[int | float, int]] = {}
    for slot, (metric_set, samples), later_s in arrived:
        now_s += later_s
        latest.update(slot, batch(metric_set, *samples), all_now(now_s * NS_PER_S))
        for sample in samples:
            everything |= {(slot, name): (value, now_s) for name, value in sample.items()}
    shown = latest.shown(np.ones(GPUS, np.bool_), now_s * NS_PER_S)
    for slot in range(GPUS):
        for metric, column in COLUMN.items():
            value, arrived_s = everything.get((slot, metric.name), (0, -LIFE_S))
            assert shown[slot, column] == (now_s - arrived_s <= LIFE_S)
            if shown[slot, column]:
                cell = latest.cells.view(VIEWS[metric.storage.value])[slot, column].item()
                assert bits(cell) == bits(value)
