"""What a sweep costs, and what the collector costs around it.

    python -m benchmarks.sweep [--json] [--seconds S] [--soak S]

All on the simulated driver. The first figures compare CPU time of the same calls for 8 GPUs
x 24 metrics: the sampler's kernel, nvidia-ml-py, and two C loops over the same function
pointers (sweep_loop.c), a plain one and one that checks what it is told. The others run
`gputel collector --standalone` as a process.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks.report import add_arguments, emit
from gputel.catalog import BY_NAME, SET_BY_CADENCE, Cadence, MetricSet
from gputel.kernels import Columns, Ring, nvml_sweeper
from gputel.limits import KIB
from gputel.plan import FUNCTIONS
from gputel.sources import nvml_library
from gputel.sources.nvml_plan import make_plan

NATIVE: Final = Path(__file__).parents[1] / "src" / "gputel" / "_native"
LIBRARY: Final = NATIVE / "simnvml" / "libnvidia-ml.so.1"
GPUS: Final = 8
ROUNDS: Final = 15
TRIES_MAX: Final = 50
LINKS: Final = 0xFFFF_FFFF

#: The metrics of the fast cadence and four of the medium one.
METRICS: Final = (
    *SET_BY_CADENCE[Cadence.FAST].metrics,
    *(
        BY_NAME[name]
        for name in (
            "gpu_temperature_celsius",
            "memory_temperature_celsius",
            "memory_clock_mhz",
            "performance_state",
        )
    ),
)
SET: Final = MetricSet(0, "benchmark", Cadence.FAST, METRICS)

#: The order of sweep_loop.c: name, factor from the driver's unit to ours.
LOOP: Final = (
    ("power_instant_watts", 1e-3), ("energy_millijoules", 1), ("pcie_tx_bytes", 1),
    ("pcie_rx_bytes", 1), ("nvlink_tx_bytes", KIB), ("nvlink_rx_bytes", KIB),
    ("power_violation_ns", 1), ("thermal_violation_ns", 1), ("sync_boost_violation_ns", 1),
    ("board_limit_violation_ns", 1), ("low_utilization_violation_ns", 1),
    ("reliability_violation_ns", 1), ("memory_temperature_celsius", 1),
    ("gpu_utilization_percent", 1), ("memory_utilization_percent", 1), ("power_watts", 1e-3),
    ("sm_clock_mhz", 1), ("clock_event_reasons", 1), ("memory_used_bytes", 1),
    ("memory_free_bytes", 1), ("memory_reserved_bytes", 1), ("gpu_temperature_celsius", 1),
    ("memory_clock_mhz", 1), ("performance_state", 1),
)  # fmt: skip
FIELDS: Final = (186, 83, 197, 198, 138, 139, 74, 75, 76, 77, 78, 79, 82)

Values = npt.NDArray[np.float64]  # [GPUS, len(LOOP)], in our units
#: Run some sweeps; the values of the last one; how many sweeps are timed at once.
Contestant = tuple[Callable[[int], None], Callable[[], Values], int]


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--seconds", type=float, default=60, help="of each process")
    parser.add_argument("--soak", type=float, help="this long at 10 Hz, and nothing else")
    arguments = parser.parse_args()
    if arguments.soak:
        collector_cost(arguments.soak)
        return
    kernel_cost()
    collector_cost(arguments.seconds)
    with broker() as address:
        collector_cost(arguments.seconds, address)
    fast_ticks(arguments.seconds)


# ---- The kernel ---------------------------------------------------------------------------


def kernel_cost() -> None:
    """CPU time of one sweep: kernel, nvidia-ml-py, plain loop, loop with checks."""
    os.environ["GPUTEL_SIM"] = f"gpus={GPUS},model=h100,profile=training"
    nvml = nvml_library.load(str(LIBRARY))
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(GPUS)]
    loops = built_loops(nvml)
    contestants = [
        native(nvml, handles),
        through_python(nvml, handles),
        plain_loop(loops, handles),
        checked_loop(loops, handles),
    ]
    costs_s: list[list[float]] = [[] for _ in contestants]
    correct = True
    for _ in range(ROUNDS):
        for cost_s, (run, read, sweeps) in zip(costs_s, contestants, strict=True):
            run(max(1, sweeps // 10))
            read()
            started_s = time.process_time()
            run(sweeps)
            cost_s.append((time.process_time() - started_s) / sweeps)
            read()
        correct &= agree(contestants)
    kernel_s, python_s, loop_s, checked_s = (min(cost_s) for cost_s in costs_s)
    extra = {"kernel_us": kernel_s * 1e6}
    emit("sweep.vs_nvml_py", python_s / kernel_s, "x", correct, nvml_py_us=python_s * 1e6, **extra)
    emit("sweep.vs_c_loop", kernel_s / loop_s, "x", correct, c_loop_us=loop_s * 1e6, **extra)
    emit(
        "sweep.vs_checked_c_loop", kernel_s / checked_s, "x", correct,
        checked_us=checked_s * 1e6, **extra,
    )  # fmt: skip
    nvml.nvmlShutdown()


def agree(contestants: list[Contestant]) -> bool:
    """Do all read the same at one instant: between two equal sweeps of the first?"""
    for _ in range(TRIES_MAX):
        answers = []
        for run, read, _sweeps in (*contestants, contestants[0]):
            run(1)
            answers.append(read())
        if np.array_equal(answers[0], answers[-1]):
            alive = int((answers[0] > 0).any(axis=0).sum())  # violations may all be 0
            return alive >= 10 and all(np.array_equal(answers[0], a) for a in answers)
    raise RuntimeError("the driver refreshes too often to compare")


def native(nvml: Any, handles: list[Any]) -> Contestant:
    """The sampler's kernel, rows into a ring, which is emptied outside of the sweeps."""

    def address(symbol: str) -> int:
        return nvml_library.address(nvml, symbol)

    plan = make_plan(SET, nvml, address)
    sweeper = nvml_sweeper([plan], nvml, {name: address(name) for name in FUNCTIONS}, GPUS)
    for slot, handle in enumerate(handles):
        sweeper.attach(slot, handle)
    sweeps = 500
    ring = Ring(SET.storages, GPUS * sweeps)
    columns = Columns(SET.storages, GPUS, sweeps)
    ticks = itertools.count(1)
    turn, sweep = sweeper.turn, sweeper.sweep

    def run(times: int) -> None:
        for tick in itertools.islice(ticks, times):
            sweep(turn, 0, tick, tick, 0, ring)

    def read() -> Values:
        columns.drain(ring)
        found = np.zeros((GPUS, len(LOOP)))
        for part in columns.seal():
            for j, (name, _) in enumerate(LOOP):
                found[part.gpu, j] = part.columns[METRICS.index(BY_NAME[name])][-1]
        return found

    return run, read, sweeps


def through_python(nvml: Any, handles: list[Any]) -> Contestant:
    """The same calls through nvidia-ml-py; the values of the last sweep are kept."""
    ids = [(field, LINKS if field in (138, 139) else 0) for field in FIELDS]
    kept: list[list[float]] = []

    def one(handle: Any) -> list[float]:
        row: list[float] = [
            value.value.uiVal if value.valueType == 1 else value.value.ullVal
            for value in nvml.nvmlDeviceGetFieldValues(handle, ids)
        ]
        use = nvml.nvmlDeviceGetUtilizationRates(handle)
        row += [use.gpu, use.memory, nvml.nvmlDeviceGetPowerUsage(handle)]
        row.append(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
        row.append(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
        memory = nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)
        row += [memory.used, memory.free, memory.reserved]
        row.append(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        row.append(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM))
        row.append(nvml.nvmlDeviceGetPerformanceState(handle))
        return row

    def run(times: int) -> None:
        for _ in range(times):
            kept[:] = [one(handle) for handle in handles]

    return run, lambda: scaled(np.array(kept, float)), 50


def built_loops(nvml: Any) -> ctypes.CDLL:
    """sweep_loop.c, compiled here as the kernel is, with the driver's functions found."""
    folder = tempfile.mkdtemp(prefix="gputel-bench-")
    built = Path(folder) / "sweep_loop.so"
    source = Path(__file__).with_name("sweep_loop.c")
    command = ["gcc", "-O3", "-fno-strict-aliasing", "-std=c11", "-shared", "-fPIC"]
    subprocess.run([*command, f"-I{NATIVE}", "-o", str(built), str(source), "-ldl"], check=True)
    loops = ctypes.CDLL(str(built))
    built.unlink()
    Path(folder).rmdir()
    assert loops.find_functions(ctypes.c_void_p(nvml.nvmlLib._handle)) == 0
    return loops


def plain_loop(loops: ctypes.CDLL, handles: list[Any]) -> Contestant:
    """`sweep` of sweep_loop.c."""
    devices = addresses(handles)
    out = np.zeros((GPUS, len(LOOP)))

    def run(times: int) -> None:
        loops.sweep(devices, GPUS, times, out.ctypes.data_as(ctypes.c_void_p))

    return run, lambda: scaled(out), 500


class Checked(ctypes.Structure):
    """checked_t of sweep_loop.c."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        *(
            (name, ctypes.c_uint64)
            for name in ("capacity", "head", "tail", "sequence", "rejected", "resets", "failures")
        ),
        ("before", ctypes.c_uint64 * len(LOOP) * 64),
    )


def checked_loop(loops: ctypes.CDLL, handles: list[Any]) -> Contestant:
    """`sweep_checked` of sweep_loop.c; its ring is emptied outside of the sweeps."""
    devices = addresses(handles)
    row = np.dtype([("header", "<u8", (4,)), ("cells", "<u8", (len(LOOP),))])
    rows = np.zeros(4096, row)  # of 8 GPUs, some 500 sweeps
    state = Checked(rows=rows.ctypes.data, capacity=len(rows))
    floats = np.array([factor == 1e-3 for _, factor in LOOP])

    def run(times: int) -> None:
        loops.sweep_checked(devices, GPUS, times, ctypes.byref(state))

    def read() -> Values:
        newest = rows.take(range(state.head - GPUS, state.head), mode="wrap")
        cells = newest["cells"]
        assert (newest["header"][:, 2] == 2 ** len(LOOP) - 1).all(), "every answer was good"
        state.tail = state.head
        return np.where(floats, cells.view("<f8"), cells.astype(float))

    return run, read, 500


def addresses(handles: list[Any]) -> Any:
    """The devices as an array of C."""
    values = (ctypes.cast(handle, ctypes.c_void_p).value for handle in handles)
    return (ctypes.c_void_p * GPUS)(*values)


def scaled(raw: Values) -> Values:
    """Driver's units to ours, with the kernel's arithmetic: milliwatts are divided."""
    factors = np.array([factor for _, factor in LOOP])
    milli = factors == 1e-3
    return np.where(milli, raw / 1000, raw * np.where(milli, 1, factors))


# ---- The collector as a process -------------------------------------------------------------


def collector_cost(seconds: float, publishes_to: str = "") -> None:
    """8 GPUs at 10 Hz: CPU beyond the time in the driver, and memory, over `seconds`; alone, or
    publishing to the broker at an address."""
    name = "sweep.published" if publishes_to else "sweep"
    with collector(f"gpus={GPUS},model=h100", hz=10, publishes_to=publishes_to) as (pid, page):
        time.sleep(5)  # beyond the start, with its imports
        cpu_s, driver_s = cpu_seconds(pid), in_driver_s(page())
        started_s, sizes_mb = time.monotonic(), [rss_mb(pid)]
        while time.monotonic() - started_s < seconds:
            time.sleep(min(5, seconds / 4))
            sizes_mb.append(rss_mb(pid))
        wall_s = time.monotonic() - started_s
        spent_s, inside_s = cpu_seconds(pid) - cpu_s, in_driver_s(page()) - driver_s
        swept = value(page(), 'gputel_collector_sweeps_total{cadence="fast"}')
        missed = value(page(), 'gputel_collector_missed_ticks_total{cadence="fast"}')
        pending_bytes = value(page(), "gputel_collector_pending_bytes") if publishes_to else 0
    correct = swept >= 9.5 * wall_s and pending_bytes < KIB * KIB  # all but the last are acked
    percent = 100 * (spent_s - inside_s) / wall_s
    emit(
        f"{name}.overhead_core_percent", percent, "%", correct,
        in_driver_percent=100 * inside_s / wall_s, missed_ticks=missed, seconds=wall_s,
    )  # fmt: skip
    growth_mb = sizes_mb[-1] - sizes_mb[len(sizes_mb) // 4]
    emit(f"{name}.rss_mb", max(sizes_mb), "MB", correct, growth_mb=growth_mb, seconds=wall_s)


def fast_ticks(seconds: float) -> None:
    """16 GPUs at 100 Hz, 50 us a call: ticks that were missed."""
    config = "gpus=16,model=h100,latency_us=50,wait=spin"
    with collector(config, hz=100, budget_percent=100) as (_, page):
        time.sleep(5)
        before = page()
        started_s = time.monotonic()
        time.sleep(seconds)
        after = page()
        wall_s = time.monotonic() - started_s
    name = 'gputel_collector_{}_total{{cadence="fast"}}'
    swept, missed = (
        value(after, name.format(what)) - value(before, name.format(what))
        for what in ("sweeps", "missed_ticks")
    )
    busy = (in_driver_s(after) - in_driver_s(before)) / wall_s
    correct = abs(swept + missed - 100 * wall_s) < 0.02 * 100 * wall_s
    extra = {"swept": swept, "in_driver_share": busy, "seconds": wall_s}
    emit("sweep.missed_ticks_100hz", missed, "", correct, **extra)


@contextmanager
def collector(
    config: str, *, hz: float, budget_percent: float = 1, publishes_to: str = ""
) -> Iterator[tuple[int, Callable[[], str]]]:
    """A collector on the simulated driver, standalone unless it publishes: its pid, and its own
    metrics."""
    environment = {
        **os.environ,
        "GPUTEL_SIM": config,
        "GPUTEL_SOURCE__LIBRARY": str(LIBRARY),
        "GPUTEL_SOURCE__KIND": "nvml",
        "GPUTEL_COLLECTOR__FAST_HZ": str(hz),
        "GPUTEL_COLLECTOR__CPU_BUDGET_PERCENT": str(budget_percent),
    }
    command = [sys.executable, "-m", "gputel", "collector", "--address", "127.0.0.1:0"]
    if publishes_to:
        environment["GPUTEL_MESSAGE_QUEUE__ADDRESS"] = publishes_to
    else:
        command.append("--standalone")
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryDirectory() as data:
        process = subprocess.Popen(
            [*command, "--data-dir", data], env=environment, stderr=said, stdout=said
        )
        try:
            url = ready_url(process, said, r"ready: collector (http://\S+)")

            def page() -> str:
                with urllib.request.urlopen(f"{url}/metrics/collector", timeout=30) as answer:
                    return str(answer.read().decode())

            yield process.pid, page
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


@contextmanager
def broker() -> Iterator[str]:
    """A broker on a disk: its address."""
    environment = {
        **os.environ,
        "GPUTEL_BROKER__LISTEN": "127.0.0.1:0",
        "GPUTEL_BROKER__METRICS_LISTEN": "127.0.0.1:0",
    }
    command = [sys.executable, "-m", "gputel", "broker"]
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryDirectory() as data:
        process = subprocess.Popen(
            [*command, "--data-dir", data], env=environment, stderr=said, stdout=said
        )
        try:
            yield ready_url(process, said, r"ready: broker ([\d.:]+)")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def ready_url(process: subprocess.Popen[bytes], said: Any, pattern: str) -> str:
    """Where it serves; RuntimeError with what it said when it does not."""
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s and process.poll() is None:
        said.seek(0)
        if found := re.search(pattern, said.read()):
            return found[1]
        time.sleep(0.05)
    said.seek(0)
    raise RuntimeError(f"it is not ready:\n{said.read()}")


def cpu_seconds(pid: int) -> float:
    """User and system time so far."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """Resident memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * KIB / 1e6


def in_driver_s(page: str) -> float:
    """Seconds inside the driver so far."""
    pattern = r"^gputel_nvml_call_seconds_total\{.*\} (\S+)$"
    return sum(map(float, re.findall(pattern, page, re.MULTILINE)))


def value(page: str, name: str) -> float:
    """One sample of a page."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


if __name__ == "__main__":
    main()
