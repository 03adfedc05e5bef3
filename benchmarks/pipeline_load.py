"""What benchmarks.pipeline sends, known values of many simulated nodes, and how it is read back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np

from gputel import wire
from gputel.batch import DTYPES, Batch
from gputel.catalog import SET_BY_CADENCE, Cadence
from gputel.clock import NS_PER_S, NS_PER_US
from gputel.inventory import Gpu, synthetic_uuid

METRIC_SET = SET_BY_CADENCE[Cadence.FAST]
VARIANTS = 16  # distinct series; GPUs of one variant carry the same values
VERIFY_METRICS = ("gpu_utilization_percent", "power_watts", "energy_millijoules")


@dataclass(frozen=True)
class Load:
    """What is sent: `nodes` x `gpus` x `hz` x `seconds`, `frame_s` seconds in each frame."""

    nodes: int
    gpus: int
    hz: float
    seconds: float
    frame_s: float
    start_ns: int

    @property
    def ticks(self) -> int:
        return round(self.hz * self.seconds)

    @property
    def ticks_per_frame(self) -> int:
        return max(1, round(self.hz * self.frame_s))

    @property
    def samples(self) -> int:
        return self.nodes * self.gpus * self.ticks * len(METRIC_SET.metrics)

    @property
    def rows(self) -> int:
        """Samples of a GPU's whole metric set."""
        return self.nodes * self.gpus * self.ticks

    def time_ns(self, ticks: np.ndarray) -> np.ndarray:
        """int64[n]: the time of each tick, in whole microseconds."""
        step_us = round(1_000_000 / self.hz)
        return (self.start_ns // NS_PER_US + ticks * step_us) * NS_PER_US

    def values(self, variant: int, column: int, ticks: np.ndarray) -> np.ndarray:
        """What `column` of a GPU of `variant` reads at `ticks`: known, and never constant."""
        base = (ticks * (column + 3) + variant * 131) % 997 + ticks
        storage = METRIC_SET.metrics[column].storage.value
        read: np.ndarray = (base / 8 if storage in "fd" else base).astype(DTYPES[storage])
        return read

    def frames(self) -> Iterator[tuple[float, int, np.ndarray]]:
        """(seconds after the start, frame number, its ticks), in order."""
        for number, first in enumerate(range(0, self.ticks, self.ticks_per_frame)):
            ticks = np.arange(first, min(first + self.ticks_per_frame, self.ticks), dtype=np.int64)
            yield (first + len(ticks)) / self.hz, number, ticks


def encode_variants(load: Load, ticks: np.ndarray) -> list[bytes]:
    """One chunk of `ticks` for each variant."""
    n = len(ticks)
    valid = np.tile(
        np.packbits(np.ones(n, np.uint8), bitorder="little"), (len(METRIC_SET.metrics), 1)
    )
    return [
        wire.encode_batch(
            Batch(
                METRIC_SET,
                load.time_ns(ticks),
                ticks,
                tuple(load.values(variant, c, ticks) for c in range(len(METRIC_SET.metrics))),
                valid,
            )
        )
        for variant in range(VARIANTS)
    ]


class Node:
    """One simulated node and its frames."""

    def __init__(self, run: str, number: int, load: Load) -> None:
        self.name = f"load-{run}-{number:05d}"
        self.number = number
        self.gpus = tuple(
            Gpu(synthetic_uuid(self.name, str(i)), self.name, i, f"nvidia{i}", model="simulated")
            for i in range(load.gpus)
        )

    def variant(self, gpu: int) -> int:
        return (self.number * 7 + gpu) % VARIANTS

    def frame(
        self, producer: str, epoch: int, sequence: int, number: int, chunks: list[bytes]
    ) -> bytes:
        return wire.encode_frame(
            wire.Frame(
                producer=producer,
                epoch=epoch,
                sequence=sequence,
                node=self.name,
                sealed_at_ns=time.time_ns(),
                gpus=tuple(
                    wire.GpuChunks(gpu.uuid, (chunks[self.variant(gpu.index)],))
                    for gpu in self.gpus
                ),
                inventory=self.gpus if number == 0 else (),
            )
        )


def get(url: str, **query: str | int) -> dict[str, Any]:
    with urlopen(f"{url}?{urlencode(query)}" if query else url, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def read_back(api: str, load: Load, uuid: str, metric: str) -> list[float]:
    """All values of one GPU and metric, page by page."""
    query: dict[str, str | int] = {
        "metrics": metric,
        "start_time": str(load.start_ns / NS_PER_S - 1),
        "end_time": str(load.start_ns / NS_PER_S + load.seconds + 1),
        "limit": 100_000,
    }
    values: list[float] = []
    while True:
        page = get(f"{api}/api/v1/gpus/{uuid}/telemetry", **query)
        for series in page["series"]:
            values += series["value"]
        if not page.get("next_cursor"):
            return values
        query["cursor"] = page["next_cursor"]


def wrong_values(api: str, load: Load, nodes: list[Node], step: int = 1) -> tuple[int, int]:
    """Compare the samples of VERIFY_METRICS of every `step`-th GPU; (values checked, wrong)."""
    ticks = np.arange(load.ticks, dtype=np.int64)
    names = [metric.name for metric in METRIC_SET.metrics]
    checked = wrong = 0
    chosen = [(owner, gpu) for owner in nodes for gpu in owner.gpus][::step]
    for node, gpu in chosen:
        for name in VERIFY_METRICS:
            expected = load.values(node.variant(gpu.index), names.index(name), ticks)
            found = np.array(read_back(api, load, gpu.uuid, name), dtype=expected.dtype)
            checked += len(expected)
            if not np.array_equal(found, expected):
                wrong += max(abs(len(found) - len(expected)), 1)
    return checked, wrong
