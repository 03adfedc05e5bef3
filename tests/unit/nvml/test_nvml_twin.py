"""The NVML source and the readable kernel against a driver that is a Python object: answers that
the simulated driver does not give."""

from __future__ import annotations

import ctypes
import queue
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from gputel.catalog import METRICS, SET_BY_CADENCE, Cadence
from gputel.errors import SourceUnavailable
from gputel.inventory import Event, EventKind
from gputel.plan import GPU_IS_LOST, NOT_SUPPORTED, UNKNOWN
from gputel.sources import SourceSettings, nvml_calls, open_source
from gputel.sources.nvml import Nvml
from support.sweeping import Rig, make_twin

ANSWERS: dict[str, Any] = {
    "nvmlDeviceGetUtilizationRates": pynvml.c_nvmlUtilization_t(gpu=71, memory=33),
    "nvmlDeviceGetPowerUsage": 412_345,
    "nvmlDeviceGetMemoryInfo": pynvml.c_nvmlMemory_v2_t(
        total=1000, reserved=10, free=390, used=600
    ),
    "nvmlDeviceGetCurrentClocksEventReasons": 4,
    "nvmlDeviceGetClockInfo": 1980,
    "nvmlDeviceGetTemperature": 55,
    "nvmlDeviceGetPerformanceState": 0,
    "nvmlDeviceGetEncoderUtilization": [1, 100],
    "nvmlDeviceGetDecoderUtilization": [2, 100],
    "nvmlDeviceGetJpgUtilization": [3, 100],
    "nvmlDeviceGetOfaUtilization": [4, 100],
    "nvmlDeviceGetEnforcedPowerLimit": 700_000,
    "nvmlDeviceGetBAR1MemoryInfo": pynvml.c_nvmlBAR1Memory_t(bar1Used=8),
    "nvmlDeviceGetFanSpeed": 40,
    "nvmlDeviceGetTotalEccErrors": 5,
    "nvmlDeviceGetRemappedRows": (1, 2, 0, 1),
    "nvmlDeviceGetRetiredPages": [0x10, 0x20],
    "nvmlDeviceGetRetiredPagesPendingStatus": 0,
    "nvmlDeviceGetPcieReplayCounter": 9,
    "nvmlDeviceGetCurrPcieLinkGeneration": 5,
    "nvmlDeviceGetCurrPcieLinkWidth": 16,
    "nvmlDeviceGetMigMode": [0, 0],
    "nvmlDeviceGetGridLicensableFeatures_v4": SimpleNamespace(isGridLicenseSupported=0),
    "nvmlDeviceGetMinorNumber": 3,
    "nvmlDeviceGetPciInfo": SimpleNamespace(busId=b"00000000:0A:00.0"),
    "nvmlDeviceGetBrand": 14,
    "nvmlDeviceGetName": b"NVIDIA H100 80GB HBM3",
    "nvmlDeviceGetSerial": "165",
    "nvmlDeviceGetVbiosVersion": "96",
    "nvmlDeviceGetSupportedEventTypes": pynvml.nvmlEventTypeXidCriticalError,
    "nvmlDeviceRegisterEvents": None,
}
GPM_PERCENT = 25.0


class EveryFunction:
    """A library in which every function has an address."""

    def __getattr__(self, name: str) -> Any:
        return ctypes.c_void_p(1)


class FakeNvml:
    """pynvml's constants and error class; handles are indexes."""

    NVMLError = pynvml.NVMLError
    nvmlLib = EveryFunction()

    def __init__(self, gpus: int = 1) -> None:
        self.gpus = gpus
        self.calls: Counter[tuple[Any, ...]] = Counter()
        self.errors: dict[tuple[str, int], int] = {}  # (function, handle) -> return
        self.gone: dict[int, int] = {}  # handle -> return of everything
        self.fields = {186: 500_123, 83: 1000, 197: 11, 198: 12, 138: 3, 139: 4, 82: 60, 75: 77}
        self.field_errors: dict[int, int] = {}
        self.field_type = 3
        self.xids: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        self.open = 0

    def fail(self, code: int) -> None:
        raise pynvml.NVMLError(code)

    def __getattr__(self, name: str) -> Any:
        if name not in ANSWERS:
            return getattr(pynvml, name)

        def call(handle: int, *arguments: Any) -> Any:
            self.check(name, handle)
            if (name, handle) in self.errors:
                self.fail(self.errors[name, handle])
            return ANSWERS[name]

        return call

    def check(self, name: str, handle: int) -> None:
        self.calls[(name, handle)] += 1
        if handle in self.gone:
            self.fail(self.gone[handle])

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return self.gpus

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"570.1"

    def nvmlSystemGetNVMLVersion(self) -> str:
        return "12.570.1"

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self.check("nvmlDeviceGetHandleByIndex", index)
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        handle = int(uuid.removeprefix("GPU-"))
        self.check("nvmlDeviceGetHandleByUUID", handle)
        return handle

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        return f"GPU-{handle}".encode()

    def nvmlDeviceGetFieldValues(self, handle: int, ids: list[tuple[int, int]]) -> list[Any]:
        self.check("nvmlDeviceGetFieldValues", handle)
        found = []
        for number, _scope in ids:
            self.calls["field", number] += 1
            code = self.field_errors.get(number, 0)
            raw = self.fields.get(number, 0)
            value = pynvml.c_nvmlValue_t(ullVal=raw)
            found.append(SimpleNamespace(nvmlReturn=code, valueType=self.field_type, value=value))
        return found

    def nvmlEventSetCreate(self) -> str:
        return "set"

    def nvmlEventSetFree(self, event_set: str) -> None:
        assert event_set == "set"

    def nvmlEventSetWait_v2(self, event_set: str, timeout_ms: int) -> Any:
        try:
            handle, xid = self.xids.get(timeout=timeout_ms / 1000)
        except queue.Empty:
            self.fail(pynvml.NVML_ERROR_TIMEOUT)
        return SimpleNamespace(device=handle, eventType=8, eventData=xid)

    def nvmlDeviceGetSamples(self, handle: int, kind: int, last: int) -> Any:
        self.fail(NOT_SUPPORTED)

    def nvmlGpmQueryDeviceSupport(self, handle: int) -> Any:
        self.check("nvmlGpmQueryDeviceSupport", handle)
        return SimpleNamespace(isSupportedDevice=1)

    def nvmlGpmSampleAlloc(self) -> list[int]:
        return []

    def nvmlGpmSampleFree(self, sample: list[int]) -> None:
        self.calls["free",] += 1

    def nvmlGpmSampleGet(self, handle: int, sample: list[int]) -> None:
        self.check("nvmlGpmSampleGet", handle)
        sample[:] = [self.calls["nvmlGpmSampleGet", handle]]

    def c_nvmlGpmMetricsGet_t(self) -> Any:
        items = [SimpleNamespace(metricId=0, nvmlReturn=0, value=0.0) for _ in range(32)]
        return SimpleNamespace(metrics=items)

    def nvmlGpmMetricsGet(self, request: Any) -> None:
        assert request.sample1[0] == request.sample2[0] - 1, "older first"
        for item in request.metrics[: request.numMetrics]:
            item.value = GPM_PERCENT


class Fake(Rig):
    def __init__(self, gpus: int = 1) -> None:
        self.nvml = FakeNvml(gpus)
        super().__init__(twin=True, module=self.nvml)


def test_every_metric_has_a_reading_and_every_constant_exists() -> None:
    tables = [*nvml_calls.READINGS, nvml_calls.NVLINK_RATE, nvml_calls.XID_LAST]
    assert sorted(tables) == sorted(metric.name for metric in METRICS)
    for readings in nvml_calls.READINGS.values():
        for reading in readings:
            if isinstance(reading, nvml_calls.Word):
                assert all(hasattr(pynvml, name) for name in reading.call.arguments)
            else:
                assert isinstance(getattr(pynvml, reading.constant), int)


def test_values_and_units() -> None:
    rig = Fake()
    fast = rig.sweep(Cadence.FAST)[0]
    assert fast["power_watts"] == 412.345
    assert fast["power_instant_watts"] == 500.123
    assert fast["nvlink_tx_bytes"] == 3 * 1024
    assert (fast["memory_used_bytes"], fast["memory_free_bytes"]) == (600, 390)
    assert fast["thermal_violation_ns"] == 77
    assert len(fast) == len(SET_BY_CADENCE[Cadence.FAST].metrics)
    slow = rig.sweep(Cadence.SLOW)[0]
    assert (slow["remapped_rows_correctable"], slow["remapped_rows_uncorrectable"]) == (1, 2)
    assert (slow["row_remap_failure"], slow["retired_pages_sbe"]) == (1, 2)
    assert len(slow) == len(SET_BY_CADENCE[Cadence.SLOW].metrics)


def test_gpm_and_the_nvlink_rate_need_two_samples() -> None:
    rig = Fake()
    first = rig.sweep(Cadence.MEDIUM)[0]
    assert "sm_active_ratio" not in first
    assert "nvlink_megabytes_per_second" not in first
    rig.nvml.fields[138] += 3_000_000
    rig.nvml.fields[139] += 1_000_000
    second = rig.sweep(Cadence.MEDIUM, seconds=2.0)[0]
    assert second["sm_active_ratio"] == 0.25
    assert second["pcie_tx_bytes_per_second"] == 25 * 2**20
    assert second["nvlink_megabytes_per_second"] == 2000
    assert len(second) == len(SET_BY_CADENCE[Cadence.MEDIUM].metrics)
    rig.source.close()
    assert rig.nvml.calls["free",] == 2


def test_the_inventory_decodes_bytes_and_open_may_be_called_twice() -> None:
    rig = Fake(2)
    gpu = rig.gpus[0]
    assert (gpu.uuid, gpu.device, gpu.pci_bus_id) == ("GPU-0", "nvidia3", "00000000:0A:00.0")
    assert (gpu.brand, gpu.driver_version, gpu.memory_total_bytes) == ("NVIDIA", "570.1", 1000)
    assert rig.source.open() == rig.gpus
    assert rig.nvml.open == 1
    rig.source.close()
    rig.source.close()
    assert rig.nvml.open == 0


@pytest.mark.parametrize("code", [2, 3, 4, 13])
def test_what_is_unsupported_is_asked_once_per_gpu(code: int) -> None:
    rig = Fake(2)
    rig.nvml.errors["nvmlDeviceGetPowerUsage", 0] = code
    rig.nvml.field_errors[197] = code
    for _ in range(3):
        rows = rig.sweep(Cadence.FAST)
        assert "power_watts" not in rows[0]
        assert rows[1]["power_watts"] == 412.345
        assert "pcie_tx_bytes" not in rows[0]
        assert rows[0]["pcie_rx_bytes"] == 12
    assert rig.nvml.calls["nvmlDeviceGetPowerUsage", 0] == 1
    assert rig.nvml.calls["nvmlDeviceGetPowerUsage", 1] == 3
    assert rig.nvml.calls["field", 197] == 2
    assert rig.nvml.calls["nvmlDeviceGetFieldValues", 0] == 3
    assert rig.nvml.calls["nvmlDeviceGetUtilizationRates", 0] == 3  # two metrics, one call


def test_a_passing_error_is_asked_again() -> None:
    rig = Fake()
    rig.nvml.errors["nvmlDeviceGetPowerUsage", 0] = UNKNOWN
    assert "power_watts" not in rig.sweep(Cadence.FAST)[0]
    rig.nvml.errors.clear()
    assert "power_watts" in rig.sweep(Cadence.FAST)[0]


@pytest.mark.parametrize("code", [GPU_IS_LOST, 16, UNKNOWN])
def test_a_lost_gpu_is_told_once_and_found_again(code: int) -> None:
    rig = Fake(2)
    rig.sweep(Cadence.FAST)
    rig.nvml.gone[0] = code
    assert list(rig.sweep(Cadence.FAST)) == [1]
    assert rig.kinds() == [EventKind.LOST]
    for _ in range(200):
        assert list(rig.sweep(Cadence.FAST)) == [1]
    assert rig.nvml.calls["nvmlDeviceGetHandleByUUID", 0] == 8  # 1 2 4 8 16 32 60 60 s
    rig.nvml.gone.clear()
    assert list(rig.sweep(Cadence.FAST, seconds=60)) == [0, 1]
    assert rig.kinds() == [EventKind.RESTORED]


def test_a_gpu_that_tells_only_its_uuid_at_the_start_is_described_later() -> None:
    nvml = FakeNvml(1)
    for name in ("nvmlDeviceGetName", "nvmlDeviceGetUtilizationRates"):
        nvml.errors[name, 0] = GPU_IS_LOST
    rig = Rig(twin=True, module=nvml)
    assert rig.gpus[0].model == ""
    assert rig.sweep(Cadence.FAST) == {}
    nvml.errors.clear()
    assert list(rig.sweep(Cadence.FAST)) == [0]
    assert rig.source.open()[0].model == "NVIDIA H100 80GB HBM3"


def test_memory_temperature_ignores_the_announced_type_and_is_validated() -> None:
    rig = Fake()
    rig.nvml.field_type = pynvml.NVML_VALUE_TYPE_DOUBLE
    assert rig.sweep(Cadence.MEDIUM)[0]["memory_temperature_celsius"] == 60
    rig.nvml.fields[82] = 0xFFFF
    assert "memory_temperature_celsius" not in rig.sweep(Cadence.MEDIUM)[0]


def test_energy_that_goes_back_is_kept_and_told() -> None:
    rig = Fake()
    rig.sweep(Cadence.FAST)
    rig.nvml.fields[83] = 5
    assert rig.sweep(Cadence.FAST)[0]["energy_millijoules"] == 5
    assert rig.kinds() == [EventKind.COUNTER_RESET]
    rig.sweep(Cadence.FAST)
    assert rig.kinds() == []


def test_xids_are_events_and_the_last_is_a_metric() -> None:
    rig = Fake(2)
    assert rig.sweep(Cadence.SLOW)[1]["xid_last"] == 0
    for xid in (31, 13):
        rig.nvml.xids.put((1, xid))
    events: list[Event] = []
    deadline = time.monotonic() + 10
    while len(events) < 2 and time.monotonic() < deadline:
        events += rig.source.events()
    assert [(e.kind, e.gpu_uuid, e.code) for e in events] == [
        (EventKind.XID, "GPU-1", 31),
        (EventKind.XID, "GPU-1", 13),
    ]
    rows = rig.sweep(Cadence.SLOW)
    assert (rows[0]["xid_last"], rows[1]["xid_last"]) == (0, 13)


def test_no_gpu_and_no_driver_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml(0)
    with pytest.raises(SourceUnavailable, match="counts 0 GPUs"):
        Nvml(node="n", periods_ns={}, module=fake, make_sweeper=make_twin).open()
    assert fake.open == 0

    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    with pytest.raises(SourceUnavailable, match="driver can't be reached: NVML Shared Library"):
        open_source(SourceSettings(kind="nvml"), {})
    assert open_source(SourceSettings(kind="auto"), {}).name == "sim"


def test_unsupported_gpm_is_asked_once() -> None:
    rig = Fake()

    def none(handle: int) -> Any:
        rig.nvml.calls["support",] += 1
        raise pynvml.NVMLError(NOT_SUPPORTED)

    rig.nvml.nvmlGpmQueryDeviceSupport = none  # type: ignore[method-assign]
    for _ in range(3):
        assert "sm_active_ratio" not in rig.sweep(Cadence.MEDIUM)[0]
    assert rig.nvml.calls["support",] == 1
