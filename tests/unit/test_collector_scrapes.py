"""What a scrape sees of a collector on the simulated driver, and what it costs there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any

from gputel.catalog import Cadence
from gputel.collector.collector import Collector
from gputel.collector.exporter import Format
from gputel.collector.settings import CollectorSettings
from gputel.observe import Health, Telemetry
from gputel.sources.nvml import Nvml
from support.simulation import LIBRARY, Sim, simulated

DEADLINE_S = 20
SCRAPES = 50
PERIODS_NS = {Cadence.FAST: 20_000_000, Cadence.MEDIUM: 100_000_000, Cadence.SLOW: 200_000_000}


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - a deadline around any condition
            await asyncio.sleep(0.005)


def with_collector(use: Callable[[Collector], Coroutine[Any, Any, None]]) -> None:
    """Run `use` beside a standalone collector that has started."""

    async def run() -> None:
        telemetry = Telemetry("collector")
        source = Nvml(node="n", periods_ns=PERIODS_NS, library=str(LIBRARY))
        settings = CollectorSettings(standalone=True, cpu_budget_percent=100)
        collector = Collector(settings, source, None, "telemetry", telemetry, Health("collector"))
        await collector.start()
        try:
            await use(collector)
        finally:
            await collector.stop()
            telemetry.close()

    asyncio.run(run())


def page(collector: Collector) -> str:
    return collector.exporter.page("gputel", Format.TEXT).decode()


@simulated("gpus=2,refresh_ms=20", start=False)
def test_scrapes_cost_no_driver_call(sim: Sim):
    async def use(collector: Collector) -> None:
        await until(lambda: "gputel_gpu_power_watts" in page(collector))
        collector.poll(False)
        calls = -1
        # Until the last sweep and the last wait for events, which takes half a second, have ended.
        while calls != (calls := sim.calls()):  # noqa: ASYNC110
            await asyncio.sleep(1)
        for _ in range(SCRAPES):
            collector.exporter.page("dcgm", Format.TEXT)
            native = collector.exporter.page("gputel", Format.OPENMETRICS)
            collector.exporter.zipped("gputel", Format.OPENMETRICS, native)
        assert sim.calls() == calls

    with_collector(use)


@simulated("gpus=2,refresh_ms=20", start=False)
def test_a_scrape_sees_the_newest_sweep():
    async def use(collector: Collector) -> None:
        rings = collector.rings.values()
        for _ in range(5):
            await until(lambda: any(ring.pending_rows for ring in rings))
            pushed = sum(ring.pushed_rows for ring in rings)
            page(collector)
            taken = sum(ring.pushed_rows - ring.pending_rows for ring in rings)
            assert taken >= pushed, "what was swept before waits no longer"

    with_collector(use)


@simulated("gpus=2", start=False)
def test_an_xid_between_two_scrapes_is_never_missed(sim: Sim):
    async def use(collector: Collector) -> None:
        await until(lambda: "gputel_gpu_up" in page(collector))
        for code in (31, 43, 31, 13):
            assert sim.inject(f"xid={code}:gpu=1")

        def counted() -> dict[str, str]:
            row = r'gputel_gpu_xid_errors_total\{gpu="1",.*xid="(\d+)".*\} (\d+)'
            return dict(re.findall(row, page(collector)))

        await until(lambda: sum(map(int, counted().values())) >= 4)
        assert counted() == {"31": "2", "43": "1", "13": "1"}
        last = r'gputel_gpu_xid_last\{gpu="1",.*\} (\d+)'
        assert re.findall(last, page(collector)) == ["13"]

    with_collector(use)
