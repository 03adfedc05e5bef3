"""Other people's clients on a driver with trouble: they say so, and show the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.frozen import Run

NOT_SUPPORTED, FUNCTION_NOT_FOUND, GPU_IS_LOST = 3, 13, 15
#: A GPU that is lost: drivers differ in whether they still give out a handle for it.
LOST, LOST_HANDLE = "lost@60:gpu=1", "lost@60:gpu=1:lookup=lost"
pytestmark = pytest.mark.integration


def refusals(gpu: dict[str, Any]) -> set[int]:
    """The errors among a GPU's answers."""
    return {answer["error"] for answer in gpu.values() if isinstance(answer, dict)}


@pytest.mark.parametrize("fault", [LOST, LOST_HANDLE])
def test_nvidia_ml_py_and_a_lost_gpu(run_frozen: Run, fault: str) -> None:
    truth, printed = run_frozen("support.pynvml_reading", gpus=3, faults=[fault])
    assert json.loads(printed) == truth
    assert GPU_IS_LOST in refusals(truth[1])
    assert GPU_IS_LOST not in refusals(truth[0]) | refusals(truth[2])


@pytest.mark.parametrize("fault", [LOST, LOST_HANDLE])
def test_nvitop_and_a_lost_gpu(run_frozen: Run, fault: str) -> None:
    truth, printed = run_frozen("support.nvitop_reading", gpus=3, faults=[fault])
    shown = [gpu["power_usage"] for gpu in json.loads(printed)]
    power = [truth[index]["nvmlDeviceGetPowerUsage()"][0] for index in (0, 2)]
    assert shown == [power[0], "N/A", power[1]]
    _, page = run_frozen("nvitop", "--once", "--no-unicode", gpus=3, faults=[fault])
    for index in (0, 2):
        assert truth[index]["nvmlDeviceGetPciInfo_v3()"][6] in page


def test_gpustat_and_a_lost_gpu(run_frozen: Run) -> None:
    truth, printed = run_frozen("gpustat", "--no-header", gpus=3, faults=[LOST_HANDLE])
    lines = printed.splitlines()
    assert "((GPU is lost))" in lines[1]
    for index in (0, 2):
        assert truth[index]["nvmlDeviceGetName()"][0] in lines[index]
    _, printed = run_frozen("gpustat", "--json", gpus=3, faults=[LOST])
    power = [gpu["power.draw"] for gpu in json.loads(printed)["gpus"]]
    assert [watts is None for watts in power] == [False, True, False]


def test_fields_that_one_gpu_does_not_support(run_frozen: Run) -> None:
    faults = ["not_supported=nvmlDeviceGetPowerUsage@0:gpu=1", "not_supported=83@0:gpu=1"]
    truth, printed = run_frozen("support.pynvml_reading", gpus=2, faults=faults)
    assert json.loads(printed) == truth
    assert truth[1]["nvmlDeviceGetPowerUsage()"] == {"error": NOT_SUPPORTED}
    energy = [gpu["nvmlDeviceGetFieldValues()"][3:5] for gpu in truth]
    assert energy == [[83, 0], [83, NOT_SUPPORTED]]
    _, printed = run_frozen("gpustat", "--json", gpus=2, faults=faults)
    shown = [gpu["power.draw"] for gpu in json.loads(printed)["gpus"]]
    assert shown == [truth[0]["nvmlDeviceGetPowerUsage()"][0] // 1000, None]
    _, printed = run_frozen("support.nvitop_reading", gpus=2, faults=faults)
    assert json.loads(printed)[1]["power_usage"] == "N/A"


def test_a_function_that_an_older_driver_lacks(run_frozen: Run) -> None:
    faults = ["no_function=nvmlDeviceGetMemoryInfo_v2@0"]
    truth, printed = run_frozen("gpustat", "--json", gpus=1, faults=faults)
    assert truth[0]["nvmlDeviceGetMemoryInfo_v2()"] == {"error": FUNCTION_NOT_FOUND}
    assert json.loads(printed)["gpus"][0]["name"]


@pytest.mark.parametrize("module", ["gpustat", "support.nvitop_reading"])
def test_a_gpu_that_was_removed(run_frozen: Run, module: str) -> None:
    before, _ = run_frozen("support.pynvml_reading", gpus=3)
    arguments = ["--json"] if module == "gpustat" else []
    truth, printed = run_frozen(module, *arguments, gpus=3, faults=["remove@60:gpu=1"])
    uuids = [gpu["nvmlDeviceGetUUID()"][0] for gpu in before]
    assert [gpu["nvmlDeviceGetUUID()"][0] for gpu in truth] == [uuids[0], uuids[2]]
    found = json.loads(printed)
    shown = found["gpus"] if module == "gpustat" else found
    assert [gpu["uuid"] for gpu in shown] == [uuids[0], uuids[2]]
