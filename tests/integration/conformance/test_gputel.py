"""gputel itself on the simulated driver: what its exporter shows is what the driver says."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.account import get, until
from support.collecting import Collecting, Rows, collecting, on_path
from support.frozen import frozen, frozen_variables
from support.pipeline import first_line

MIB = 2**20
GPUS = 8
ENERGY = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
UTILIZATION = "DCGM_FI_DEV_GPU_UTIL"
#: Family to (function, place of the output, from NVML's unit to the text that is shown).
FAMILIES: dict[str, tuple[str, int, Any]] = {
    UTILIZATION: ("nvmlDeviceGetUtilizationRates()", 0, str),
    "DCGM_FI_DEV_MEM_COPY_UTIL": ("nvmlDeviceGetUtilizationRates()", 1, str),
    "DCGM_FI_DEV_SM_CLOCK": ("nvmlDeviceGetClockInfo(1)", 0, str),
    "DCGM_FI_DEV_MEM_CLOCK": ("nvmlDeviceGetClockInfo(2)", 0, str),
    "DCGM_FI_DEV_GPU_TEMP": ("nvmlDeviceGetTemperature(0)", 0, str),
    "DCGM_FI_DEV_POWER_USAGE": ("nvmlDeviceGetPowerUsage()", 0, lambda mw: f"{mw / 1000:f}"),
    "DCGM_FI_DEV_FB_USED": ("nvmlDeviceGetMemoryInfo_v2()", 3, lambda size: str(size // MIB)),
    "DCGM_FI_DEV_FB_FREE": ("nvmlDeviceGetMemoryInfo_v2()", 2, lambda size: str(size // MIB)),
    "DCGM_FI_DEV_FB_RESERVED": ("nvmlDeviceGetMemoryInfo_v2()", 1, lambda size: str(size // MIB)),
    "DCGM_FI_DEV_ENC_UTIL": ("nvmlDeviceGetEncoderUtilization()", 0, str),
    "DCGM_FI_DEV_DEC_UTIL": ("nvmlDeviceGetDecoderUtilization()", 0, str),
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": ("nvmlDeviceGetPcieReplayCounter()", 0, str),
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": ("nvmlDeviceGetRemappedRows()", 0, str),
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": ("nvmlDeviceGetRemappedRows()", 1, str),
}
#: Family to the field id that it is read from.
FIELD_FAMILIES = {ENERGY: 83, "DCGM_FI_DEV_MEMORY_TEMP": 82}
pytestmark = pytest.mark.integration


def expected(truth: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """The exporter's rows; a GPU has none where the driver refuses."""
    rows: dict[str, dict[str, str]] = {}
    for index, gpu in enumerate(truth):
        for family, (function, place, shown) in FAMILIES.items():
            answer = gpu[function]
            if isinstance(answer, list):
                rows.setdefault(family, {})[str(index)] = shown(answer[place])
        fields = gpu["nvmlDeviceGetFieldValues()"]
        for family, field in FIELD_FAMILIES.items():
            code, value = fields[fields[::3].index(field) * 3 + 1 :][:2]
            if code == 0:
                rows.setdefault(family, {})[str(index)] = str(value)
    return rows


def shows(rows: Rows, wanted: Rows) -> bool:
    return all(rows.get(family) == values for family, values in wanted.items())


@pytest.mark.parametrize("model", ["h100", "rtx4090"])
def test_the_exporter_shows_what_the_driver_says(broker: str, tmp_path: Path, model: str) -> None:
    truth_file = tmp_path / "truth.json"
    prefix = frozen(truth_file, GPUS, model)
    with collecting(
        tmp_path, broker, command=[*prefix, "gputel"], variables=frozen_variables()
    ) as collector:
        truth = json.loads(truth_file.read_text())
        wanted = expected(truth)
        rows = collector.until(lambda rows: shows(rows, wanted))
        missing = {*FAMILIES, *FIELD_FAMILIES} - set(wanted)
        assert not missing & set(rows), "a value of a call that the driver refuses"
        assert sum(map(len, wanted.values())) >= GPUS * 10
        for index, labels in collector.labels(UTILIZATION).items():
            gpu = truth[int(index)]
            assert [labels["UUID"]] == gpu["nvmlDeviceGetUUID()"]
            assert [labels["modelName"]] == gpu["nvmlDeviceGetName()"]
            assert labels["pci_bus_id"].lower() == gpu["nvmlDeviceGetPciInfo_v3()"][6].lower()


@contextmanager
def simulated(folder: Path, broker: str, *flags: str) -> Iterator[Collecting]:
    """A collector on a simulation whose time is real."""
    command = ["gputel", "sim", "run", "--profile", "training", *flags, "--", "gputel"]
    with collecting(folder, broker, command=command) as collector:
        yield collector


def energy(rows: Rows, gpu: int) -> int:
    return int(rows.get(ENERGY, {}).get(str(gpu), "0"))


def test_energy_grows_on_every_gpu(broker: str, tmp_path: Path) -> None:
    with simulated(tmp_path, broker, "--gpus", "64") as collector:
        first = collector.until(lambda rows: len(rows.get(ENERGY, {})) == 64)
        collector.until(lambda rows: all(energy(rows, n) > energy(first, n) for n in range(64)))


def news(rows: Rows, last: dict[int, int], gpu: int) -> bool:
    """Does `gpu` tell something else than before? Its counter may have begun anew."""
    return energy(rows, gpu) not in (0, last[gpu])


def stand_still(
    collector: Collecting, gone: Sequence[int], others: Sequence[int]
) -> dict[int, int]:
    """Wait until those `gone` have told nothing new while each of the others has, five times;
    the last energy that each was seen with. A GPU that is gone may have no row."""
    last = dict.fromkeys((*gone, *others), 0)
    counts = dict.fromkeys(others, 0)

    def seen(rows: Rows) -> bool:
        nonlocal counts
        if any(news(rows, last, n) for n in gone):
            counts = dict.fromkeys(others, 0)
        else:
            counts = {n: counts[n] + news(rows, last, n) for n in others}
        last.update({n: energy(rows, n) or last[n] for n in last})
        return min(counts.values()) >= 5

    collector.until(seen)
    return last


def test_gpus_that_are_lost_in_many_ways_and_found(broker: str, tmp_path: Path) -> None:
    gone, others = range(1, 6), (0, 6)
    ways = ("lost", "reset_required", "fallen", "lost", "lost")
    more = ("", "", "", ":lookup=lost", ":lookup=not_found")
    flags = [
        f"--fault={way}@2+1.5:gpu={n}{option}"
        for n, way, option in zip(gone, ways, more, strict=True)
    ]
    with simulated(tmp_path, broker, "--gpus", "7", *flags) as collector:
        collector.until(lambda rows: all(energy(rows, n) for n in range(7)))
        last = stand_still(collector, gone, others)
        collector.until(lambda rows: all(news(rows, last, n) for n in last))


def test_a_gpu_that_is_removed_and_restored(broker: str, tmp_path: Path) -> None:
    flags = ["--gpus", "3", "--fault", "remove@2+1.5:gpu=1"]
    with simulated(tmp_path, broker, *flags) as collector:
        collector.until(lambda rows: all(energy(rows, n) for n in range(3)))
        uuids = {index: labels["UUID"] for index, labels in collector.labels(ENERGY).items()}
        last = stand_still(collector, gone=[1], others=[0, 2])
        collector.until(lambda rows: all(news(rows, last, n) for n in last))
        found = {index: labels["UUID"] for index, labels in collector.labels(ENERGY).items()}
        assert found == uuids


def test_what_is_not_supported_is_not_shown(broker: str, tmp_path: Path) -> None:
    refused = ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetUtilizationRates", "83")
    flags = [f"--fault=not_supported={what}@0:gpu=1" for what in refused]
    flags += ["--fault=no_function=nvmlDeviceGetTemperature@0"]
    with simulated(tmp_path, broker, "--gpus", "2", *flags) as collector:
        rows = collector.until(lambda rows: len(rows.get("DCGM_FI_DEV_MEM_CLOCK", ())) == 2)
        assert set(rows["DCGM_FI_DEV_SM_CLOCK"]) == {"0", "1"}
        for family in ("DCGM_FI_DEV_POWER_USAGE", UTILIZATION, ENERGY):
            assert set(rows[family]) == {"0"}, family
        assert "DCGM_FI_DEV_GPU_TEMP" not in rows


def test_the_whole_pipeline_takes_it_for_a_driver(tmp_path: Path) -> None:
    log = tmp_path / "up.log"
    command = ["gputel", "sim", "run", "--gpus", "3", "--model", "b200", "--"]
    command += ["gputel", "up", "--ephemeral", "--json"]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command, env=on_path(), text=True, stdout=subprocess.PIPE, stderr=stderr
        )
    assert process.stdout is not None
    try:
        ready = json.loads(first_line(process, log))
        assert ready["source"] == "nvml"
        assert ready["source_reason"] == "the simulated NVIDIA driver is here"
        until(lambda: len(get(f"{ready['api']}/api/v1/gpus")["gpus"]) == 3, 20)
        gpus = get(f"{ready['api']}/api/v1/gpus")["gpus"]
        assert {gpu["model"] for gpu in gpus} == {"NVIDIA B200"}
        process.send_signal(signal.SIGINT)
        assert process.wait(45) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
