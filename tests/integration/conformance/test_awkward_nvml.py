"""gputel on an NVML that is not ours and lacks nearly everything: what there is, is right."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from support.collecting import Collecting, Rows, collecting
from support.pipeline import environment

SOURCE = Path(__file__).parents[2] / "support" / "awkward_nvml.c"
ENERGY_MJ = 2**53 + 1  # awkward_nvml.c
MEMORY_MIB = 8000
UTILIZATION, COPY = "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_MEM_COPY_UTIL"
POWER, ENERGY = "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
TEMPERATURE, MEMORY_TEMPERATURE = "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_MEMORY_TEMP"
USED, FREE, RESERVED = "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_FB_RESERVED"
#: What this library has no way to tell.
UNKNOWN = (
    "DCGM_FI_DEV_SM_CLOCK",
    "DCGM_FI_DEV_MEM_CLOCK",
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER",
    "DCGM_FI_DEV_ENC_UTIL",
    "DCGM_FI_DEV_DEC_UTIL",
    "DCGM_FI_DEV_FB_RESERVED",
    "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL",
    "DCGM_FI_DEV_VGPU_LICENSE_STATUS",
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",
    "DCGM_FI_DEV_ROW_REMAP_FAILURE",
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
    "DCGM_FI_PROF_DRAM_ACTIVE",
    "DCGM_FI_PROF_PCIE_TX_BYTES",
    "DCGM_FI_PROF_PCIE_RX_BYTES",
)
pytestmark = pytest.mark.integration


class Start(Protocol):
    """Starts a collector on the library with these variants."""

    def __call__(
        self, variants: str = "", *, old_names: bool = False, lost: Path | None = None
    ) -> AbstractContextManager[Collecting]: ...


def build(folder: Path, *flags: str) -> Path:
    """`folder` with the library in it."""
    library = folder / "libnvidia-ml.so.1"
    command = ["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared"]
    subprocess.run([*command, *flags, "-o", str(library), str(SOURCE)], check=True, timeout=60)
    return folder


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The folder of each build, by whether it has the old names."""
    return {
        False: build(tmp_path_factory.mktemp("awkward")),
        True: build(tmp_path_factory.mktemp("awkward-old"), "-DOLD_NAMES"),
    }


def variables(folder: Path, variants: str) -> dict[str, str]:
    """The environment in which `folder`'s library is the driver's."""
    search = os.environ.get("LD_LIBRARY_PATH", "")
    path = f"{folder}:{search}" if search else str(folder)
    return {"LD_LIBRARY_PATH": path, "AWKWARD_NVML": variants}


@pytest.fixture
def start(libraries: dict[bool, Path], broker: str, tmp_path: Path) -> Start:
    @contextmanager
    def on(
        variants: str = "", *, old_names: bool = False, lost: Path | None = None
    ) -> Iterator[Collecting]:
        settings = variables(libraries[old_names], variants)
        if lost is not None:
            settings["AWKWARD_LOST"] = str(lost)
        with collecting(tmp_path, broker, variables=settings) as collector:
            yield collector

    return on


def complete(*gpus: int) -> dict[str, dict[str, str]]:
    """What each GPU reads, besides energy and memory."""
    return {
        UTILIZATION: {str(n): f"{30 + n}" for n in gpus},
        COPY: {str(n): f"{10 + n}" for n in gpus},
        POWER: {str(n): f"{100 + n / 1000:f}" for n in gpus},
        TEMPERATURE: {str(n): f"{40 + n}" for n in gpus},
    }


def is_shown(rows: Rows, wanted: Rows) -> bool:
    return all(rows.get(family) == values for family, values in wanted.items())


def energy_is_right(rows: Rows, *gpus: int) -> bool:
    """Every GPU's counter, exactly: it began at `ENERGY_MJ` + n and grows by whole joules."""
    values = rows.get(ENERGY, {})
    return set(values) == set(map(str, gpus)) and all(
        (int(values[str(n)]) - ENERGY_MJ - n) % 1000 == 0 and int(values[str(n)]) >= ENERGY_MJ
        for n in gpus
    )


@pytest.mark.parametrize("gpus", [1, 3])
def test_what_exists_is_right_and_the_rest_is_absent(start: Start, gpus: int) -> None:
    with start(f"gpus={gpus}") as collector:
        rows = collector.until(lambda rows: is_shown(rows, complete(*range(gpus))))
        assert not set(rows) & {*UNKNOWN, MEMORY_TEMPERATURE}
        labels = collector.labels(UTILIZATION)
        assert labels["0"]["modelName"] == 'Awkward "GPU" \\ 0'
        assert labels["0"]["UUID"].startswith("GPU-awkward0-")


def test_the_first_names_of_the_functions_are_enough(start: Start) -> None:
    with start(old_names=True) as collector:
        collector.until(lambda rows: is_shown(rows, complete(0, 1)))


def test_memory_by_the_first_version_of_its_call(start: Start) -> None:
    with start() as collector:
        used = {"0": "1000", "1": "1001"}
        free = {"0": f"{MEMORY_MIB - 1000}", "1": f"{MEMORY_MIB - 1001}"}
        rows = collector.until(lambda rows: is_shown(rows, {USED: used, FREE: free}))
        assert RESERVED not in rows


def test_energy_without_field_values(start: Start) -> None:
    with start() as collector:
        collector.until(lambda rows: energy_is_right(rows, 0, 1))


def test_fields_that_are_unknown_one_by_one(start: Start) -> None:
    with start("fields") as collector:
        wanted = {**complete(0, 1), MEMORY_TEMPERATURE: {"0": "50", "1": "51"}}
        rows = collector.until(lambda rows: is_shown(rows, wanted) and energy_is_right(rows, 0, 1))
        assert not set(rows) & set(UNKNOWN)


def test_one_unknown_field_that_fails_the_whole_call(start: Start) -> None:
    with start("fields_whole") as collector:
        rows = collector.until(lambda rows: is_shown(rows, complete(0, 1)))
        assert not set(rows) & set(UNKNOWN)
        assert ENERGY not in rows or energy_is_right(rows, 0, 1)


def test_values_that_no_gpu_has_are_left_out(start: Start) -> None:
    with start("nonsense") as collector:
        rows = collector.until(lambda rows: rows.get(COPY) == {"0": "10", "1": "11"})
        assert not set(rows) & {UTILIZATION, POWER, TEMPERATURE}


def test_a_gpu_that_cannot_be_opened_does_not_shift_the_others(start: Start) -> None:
    with start("gpus=3,closed") as collector:
        collector.until(lambda rows: is_shown(rows, complete(1, 2)))


def test_a_name_that_is_not_supported_and_a_uuid_that_fills_its_buffer(start: Start) -> None:
    with start("unnamed") as collector:
        collector.until(lambda rows: is_shown(rows, complete(0, 1)))
        uuids = {labels["UUID"] for labels in collector.labels(UTILIZATION).values()}
        assert len(uuids) == 2
        assert {len(uuid) for uuid in uuids} == {79}


@pytest.mark.parametrize("how", ["lost", "lost_total"])
def test_a_lost_gpu_comes_back_and_never_stops_the_other(
    start: Start, tmp_path: Path, how: str
) -> None:
    lost = tmp_path / "lost"
    with start(f"fields,{how}", lost=lost) as collector:
        collector.until(lambda rows: energy_is_right(rows, 0, 1))
        lost.touch()
        # The counter of a GPU tells whether it is asked: it grows with every call.
        begun = int(collector.rows()[ENERGY]["0"])
        rows = collector.until(lambda rows: int(rows[ENERGY]["0"]) >= begun + 20_000)
        assert rows[UTILIZATION]["0"] == "30"
        assert rows[POWER].get("1") in (None, f"{100.001:f}"), "a value that was never read"
        lost.unlink()
        begun = int(rows[ENERGY].get("1", "0"))
        collector.until(
            lambda rows: is_shown(rows, complete(0, 1)) and int(rows[ENERGY]["1"]) > begun + 3000
        )


@pytest.mark.parametrize("variant", ["no_driver", "gpus=0", "gpus=1,closed"])
def test_without_a_gpu_one_line_says_so(libraries: dict[bool, Path], variant: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gputel", "collector", "--source", "nvml"],
        env={
            **environment(),
            **variables(libraries[False], variant),
            "GPUTEL_COLLECTOR__LISTEN": "127.0.0.1:0",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 8, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("gputel: error: source nvml: ")


def test_doctor_finds_the_library(libraries: dict[bool, Path], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gputel", "doctor", "--json", "--data-dir", str(tmp_path)],
        env={**environment(), **variables(libraries[True], "")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert '"name": "driver", "well": true' in done.stdout
    assert "Traceback" not in done.stderr
