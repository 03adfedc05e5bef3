"""nvidia-ml-py, nvitop and gpustat, as the registry has them, on the simulated driver.

Each runs at one instant of the simulation, at which the driver was asked directly; what they
report is what the driver said.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.frozen import Run

MIB = 2**20
NOT_SUPPORTED, FUNCTION_NOT_FOUND, GPU_IS_LOST = 3, 13, 15
NODES = [("h100", 1), ("h100", 8), ("h100", 64), ("a100", 2), ("b200", 2), ("rtx4090", 2)]
MODELS = {"h100": "H100", "a100": "A100", "b200": "B200", "rtx4090": "RTX 4090"}
#: What a model hasn't got: since Ampere rows are remapped and no page is retired.
DATA_CENTRE_LACKS = {"FanSpeed()", "RetiredPagesPendingStatus()"}
GEFORCE_LACKS = {
    *("RetiredPagesPendingStatus()", "RemappedRows()", "MigMode()", "Serial()"),
    *("NvLinkState(0)", "NvLinkState(11)"),
    *(f"TotalEccErrors({kind}, {counter})" for kind in (0, 1) for counter in (0, 1)),
}
pytestmark = pytest.mark.integration
nodes = pytest.mark.parametrize(("model", "gpus"), NODES, ids=lambda value: str(value))


def value(truth: dict[str, Any], function: str, place: int = 0) -> Any:
    """One output of a function, or None where the driver refuses it."""
    symbol, bracket, arguments = function.partition("(")
    answer = truth[f"nvmlDeviceGet{symbol}{bracket or '('}{arguments or ')'}"]
    return None if isinstance(answer, dict) else answer[place]


def processes(truth: dict[str, Any]) -> dict[int, int]:
    """pid to bytes."""
    answer = truth["nvmlDeviceGetComputeRunningProcesses_v3()"]
    return dict(zip(answer[::2], answer[1::2], strict=True))


@nodes
def test_nvidia_ml_py_reads_what_the_driver_says(run_frozen: Run, model: str, gpus: int) -> None:
    truth, printed = run_frozen("support.pynvml_reading", gpus=gpus, model=model)
    found = json.loads(printed)
    assert len(found) == len(truth) == gpus
    for gpu, read in zip(truth, found, strict=True):
        assert not {name: (read[name], said) for name, said in gpu.items() if read[name] != said}
        refused = {name: answer["error"] for name, answer in gpu.items() if "error" in answer}
        lacks = GEFORCE_LACKS if model == "rtx4090" else DATA_CENTRE_LACKS
        assert refused == {f"nvmlDeviceGet{name}": NOT_SUPPORTED for name in lacks}
        assert gpu["nvmlGpmQueryDeviceSupport()"] == [model in ("h100", "b200")]
        power = gpu["nvmlDeviceGetSamples(0)"]
        assert len(power) >= 20
        assert power[::2] == sorted(set(power[::2])), "the driver's buffer is in order"
        assert MODELS[model] in value(gpu, "Name")
    assert len({value(gpu, "UUID") for gpu in truth}) == gpus
    assert any(value(gpu, "UtilizationRates") for gpu in truth), "nobody works at this instant"


@nodes
def test_nvitop_snapshots(run_frozen: Run, model: str, gpus: int) -> None:
    truth, printed = run_frozen("support.nvitop_reading", gpus=gpus, model=model)
    found = json.loads(printed)
    assert len(found) == gpus
    for gpu, snapshot in zip(truth, found, strict=True):
        wanted = {
            "name": value(gpu, "Name"),
            "uuid": value(gpu, "UUID"),
            "bus_id": value(gpu, "PciInfo_v3", 6),
            "memory_total": value(gpu, "MemoryInfo_v2"),
            "gpu_utilization": value(gpu, "UtilizationRates"),
            "memory_utilization": value(gpu, "UtilizationRates", 1),
            "encoder_utilization": value(gpu, "EncoderUtilization"),
            "decoder_utilization": value(gpu, "DecoderUtilization"),
            "sm_clock": value(gpu, "ClockInfo(1)"),
            "memory_clock": value(gpu, "ClockInfo(2)"),
            "fan_speed": value(gpu, "FanSpeed"),
            "temperature": value(gpu, "Temperature(0)"),
            "power_usage": value(gpu, "PowerUsage"),
            "power_limit": value(gpu, "PowerManagementLimit"),
            "pcie_tx_throughput": value(gpu, "PcieThroughput(0)"),
            "pcie_rx_throughput": value(gpu, "PcieThroughput(1)"),
            "performance_state": f"P{value(gpu, 'PerformanceState')}",
            "total_volatile_uncorrected_ecc_errors": value(gpu, "TotalEccErrors(1, 0)"),
            "cuda_compute_capability": gpu["nvmlDeviceGetCudaComputeCapability()"],
            "mig_mode": {0: "Disabled", 1: "Enabled", None: None}[value(gpu, "MigMode")],
        }
        shown = {key: None if snapshot[key] == "N/A" else snapshot[key] for key in wanted}
        assert shown == wanted
        # Which version of the call nvitop takes decides whether the reserved bytes are in it.
        used = {value(gpu, "MemoryInfo_v2", 3), value(gpu, "MemoryInfo", 2)}
        assert snapshot["memory_used"] in used
        assert {int(pid): used for pid, used in snapshot["processes"].items()} == processes(gpu)


@nodes
def test_nvitop_once(run_frozen: Run, model: str, gpus: int) -> None:
    truth, page = run_frozen("nvitop", "--once", "--no-unicode", gpus=gpus, model=model)
    for index, gpu in enumerate(truth):
        rows = [line for line in page.splitlines() if value(gpu, "PciInfo_v3", 6) in line]
        assert len(rows) == 1, page
        assert rows[0].split()[1] == str(index)
        values = page.splitlines()[page.splitlines().index(rows[0]) + 1]
        watts = f"{value(gpu, 'PowerUsage') / 1000:.0f}W"
        for text in (f"{value(gpu, 'Temperature(0)')}C", f"P{value(gpu, 'PerformanceState')}"):
            assert text in values
        assert f" {watts} / " in values


@nodes
def test_gpustat(run_frozen: Run, model: str, gpus: int) -> None:
    truth, printed = run_frozen("gpustat", "--json", gpus=gpus, model=model)
    found = json.loads(printed)
    assert len(found["gpus"]) == gpus
    for index, (gpu, shown) in enumerate(zip(truth, found["gpus"], strict=True)):
        shown_processes = {one["pid"]: one["gpu_memory_usage"] for one in shown.pop("processes")}
        assert shown_processes == {pid: used // MIB for pid, used in processes(gpu).items()}
        assert shown == {
            "index": index,
            "uuid": value(gpu, "UUID"),
            "name": value(gpu, "Name"),
            "temperature.gpu": value(gpu, "Temperature(0)"),
            "fan.speed": value(gpu, "FanSpeed"),
            "utilization.gpu": value(gpu, "UtilizationRates"),
            "utilization.enc": value(gpu, "EncoderUtilization"),
            "utilization.dec": value(gpu, "DecoderUtilization"),
            "power.draw": value(gpu, "PowerUsage") // 1000,
            "enforced.power.limit": value(gpu, "EnforcedPowerLimit") // 1000,
            "memory.used": value(gpu, "MemoryInfo_v2", 3) // MIB,
            "memory.total": value(gpu, "MemoryInfo_v2") // MIB,
        }
