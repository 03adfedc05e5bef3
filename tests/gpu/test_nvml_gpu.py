"""The NVML source against the real driver and its own answers."""

from __future__ import annotations

from collections.abc import Iterator

import pynvml
import pytest

from gputel.catalog import METRIC_SETS, SET_BY_CADENCE, Cadence
from gputel.clock import SYSTEM_CLOCK
from gputel.errors import SourceUnavailable
from gputel.kernels import Columns, Ring
from gputel.sources.nvml import Nvml

pytestmark = pytest.mark.gpu


@pytest.fixture
def source() -> Iterator[Nvml]:
    nvml = Nvml(node="n", periods_ns={})
    try:
        nvml.open()
    except SourceUnavailable as error:
        pytest.skip(f"needs an NVIDIA driver and GPU: {error}")
    yield nvml
    nvml.close()


def test_a_sweep_agrees_with_direct_reads(source: Nvml) -> None:
    gpus = source.open()
    rings = {s: Ring(s.storages, 256) for s in METRIC_SETS}
    time_ns = SYSTEM_CLOCK.time_ns() // 1000 * 1000
    rows: dict[int, dict[str, float]] = {slot: {} for slot in range(len(gpus))}
    for cadence in Cadence:
        source.sweep(cadence, time_ns, rings)
        metric_set = SET_BY_CADENCE[cadence]
        columns = Columns(metric_set.storages, len(gpus), 16)
        columns.drain(rings[metric_set])
        for part in columns.seal():
            for c, metric in enumerate(metric_set.metrics):
                if part.valid[c][0] & 1:
                    rows[part.gpu][metric.name] = part.columns[c][0].item()
    for slot, gpu in enumerate(gpus):
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2)
        row = rows[slot]
        assert row["memory_total_bytes"] == memory.total
        assert row["memory_used_bytes"] == pytest.approx(memory.used, rel=0.2, abs=2**28)
        celsius = pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
        assert row["gpu_temperature_celsius"] == pytest.approx(celsius, abs=10)
        power_w = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
        assert row["power_watts"] == pytest.approx(power_w, rel=0.5, abs=50)
