"""Which GPUs reach each other: from the driver to the exporter's page."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from pathlib import Path

import pytest

from gputel.catalog import Cadence
from gputel.clock import NS_PER_S
from gputel.collector import Collector
from gputel.collector.exporter import ExporterSettings, Format
from gputel.collector.settings import CollectorSettings
from gputel.inventory import EventKind
from gputel.observe import Health, Telemetry
from gputel.sources import Source
from gputel.sources.nvml import Nvml
from gputel.sources.sim import Simulator
from support.simulation import LIBRARY, Sim, simulated
from support.sweeping import PERIODS_NS, Rig

CALL = "nvmlDeviceGetP2PStatus"
LINE = "DCGM_EXP_P2P_STATUS, gauge, P2P status over NVLink\n"


def wanting(sim: Sim) -> Rig:
    rig = Rig(sim)
    rig.source.want_peers()
    return rig


def pairs(rig: Rig) -> dict[tuple[int, int], int]:
    """By slot."""
    slots = {gpu.uuid: slot for slot, gpu in enumerate(rig.gpus)}
    return {(slots[a], slots[b]): status for (a, b), status in rig.source.peers().items()}


@simulated("gpus=3,model=h100,clock=manual", start=False)
def test_every_ordered_pair_is_asked_at_the_slow_cadence() -> None:
    sim = Sim()
    rig = wanting(sim)
    rig.sweep(Cadence.FAST)
    assert pairs(rig) == {}
    rig.sweep(Cadence.SLOW)
    assert pairs(rig) == {(a, b): 0 for a in range(3) for b in range(3) if a != b}
    assert sim.calls(CALL) == 6
    before = rig.source.peers()
    rig.sweep(Cadence.SLOW)
    assert sim.calls(CALL) == 12
    assert rig.source.peers() is not before, "a reader keeps the table that it has"
    rig.source.close()


@simulated("gpus=2,model=h100,clock=manual", start=False)
def test_nothing_is_asked_that_nobody_wants() -> None:
    sim = Sim()
    rig = Rig(sim)
    rig.sweep(Cadence.SLOW)
    assert sim.calls(CALL) == 0
    assert pairs(rig) == {}
    rig.source.close()


@simulated("gpus=2,model=rtx4090,clock=manual", start=False)
def test_a_status_is_the_drivers_number() -> None:
    rig = wanting(Sim())
    rig.sweep(Cadence.SLOW)
    assert pairs(rig) == {(0, 1): 5, (1, 0): 5}
    rig.source.close()


@simulated("gpus=3,model=h100,clock=manual", start=False)
def test_a_lost_gpu_is_in_no_pair_and_a_refused_call_makes_none() -> None:
    sim = Sim()
    rig = wanting(sim)
    rig.sweep(Cadence.SLOW)
    assert sim.inject("lost@0+1000:gpu=1")
    rig.sweep(Cadence.SLOW)
    assert EventKind.LOST in rig.kinds()
    assert set(pairs(rig)) == {(0, 2), (2, 0)}
    assert sim.inject(f"not_supported={CALL}@0")
    rig.sweep(Cadence.SLOW)
    assert pairs(rig) == {}
    assert EventKind.LOST not in rig.kinds(), "that says nothing of the GPUs"
    rig.source.close()


@simulated("gpus=2,model=h100,clock=manual", start=False)
def test_a_driver_that_was_replaced_is_told() -> None:
    import pynvml

    rig = wanting(Sim())
    asked: list[object] = []

    def refuse(*arguments: object) -> int:
        asked.append(arguments)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)

    pynvml.nvmlDeviceGetP2PStatus = refuse
    rig.sweep(Cadence.SLOW)
    assert len(asked) == 1
    assert "restart the collector" in (rig.source.problem() or "")
    rig.source.close()


def collecting(source: Source, counters: Path, telemetry: Telemetry) -> Collector:
    return Collector(
        CollectorSettings(),
        source,
        None,
        "telemetry",
        telemetry,
        Health("collector"),
        exporter=ExporterSettings(collectors=str(counters)),
    )


@simulated("gpus=2,model=h100", start=False)
def test_a_line_of_the_counter_file_brings_rows() -> None:
    async def look() -> list[str]:
        telemetry = Telemetry("collector")
        source = Nvml(node="n", periods_ns=PERIODS_NS, library=str(LIBRARY))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "counters.csv"
            path.write_text(LINE)
            collector = collecting(source, path, telemetry)
        await collector.start()
        deadline = time.monotonic() + 20
        rows: list[str] = []
        while len(rows) < 2 and time.monotonic() < deadline:
            page = collector.exporter.page("dcgm", Format.TEXT).decode().splitlines()
            rows = [line for line in page if line.startswith("DCGM_EXP_P2P_STATUS{")]
            await asyncio.sleep(0.02)
        await collector.stop()
        telemetry.close()
        return rows

    rows = asyncio.run(look())
    assert ['peer_gpu="1"' in row for row in rows] == [True, False]
    assert all('link_status="OK",peer_gpu=' in row and row.endswith("} 0") for row in rows)


def test_a_source_that_does_not_know_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "counters.csv"
    path.write_text(LINE)
    telemetry = Telemetry("collector")
    source = Simulator(
        node="n", gpus=2, model="h100", seed=1, periods_ns=dict.fromkeys(Cadence, NS_PER_S)
    )
    with caplog.at_level(logging.WARNING):
        collecting(source, path, telemetry)
    assert "source sim knows no DCGM_EXP_P2P_STATUS" in caplog.text
    telemetry.close()
