"""The collector's main: who answers a scrape of its port."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from gputel.collector.exporter import Exporter, pages_at_once
from gputel.collector.exporter.settings import ExporterSettings
from gputel.collector.settings import CollectorSettings
from gputel.config import Config
from gputel.observe.at_once import Answer, AtOnce
from gputel.services import collector
from gputel.services.process import Process
from gputel.sources.settings import SourceSettings

pytestmark = pytest.mark.integration
DEADLINE_S = 30.0


class Main(Process):
    """The collector's process as far as its main sees it, in this one."""

    def __init__(self, own_metrics: bool) -> None:
        config = Config(
            source=SourceSettings(kind="sim", gpus=2),
            collector=CollectorSettings(listen="127.0.0.1:0", standalone=True, spool_bytes=0),
            exporter=ExporterSettings(own_metrics=own_metrics),
        )
        super().__init__("collector", config, None)
        self.address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def ready(self, *, facts: dict[str, str] | None = None, **addresses: str) -> None:
        self.address.set_result(addresses["collector"].removeprefix("http://"))

    def on_signal(self, number: signal.Signals, act: Any) -> None:
        """This process has handlers of its own."""


async def get(address: str, path: str) -> bytes:
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
    header = await reader.readuntil(b"\r\n\r\n")
    assert header.startswith(b"HTTP/1.1 200 "), header
    body = await reader.readexactly(int(header.partition(b"content-length: ")[2].split()[0]))
    writer.close()
    await writer.wait_closed()
    return body


@pytest.mark.parametrize("own_metrics", [False, True])
async def test_a_plain_scrape_is_answered_by_the_protocol(
    own_metrics: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for one that has the collector's own metrics, too: the application adds them."""
    answered: list[bytes] = []

    def counted(exporter: Exporter, profile: Any) -> AtOnce:
        ask = pages_at_once(exporter, profile)

        def answer(target: bytes, header: Any) -> Answer | None:
            found = ask(target, header)
            if found is not None:
                answered.append(target)
            return found

        return answer

    monkeypatch.setattr(collector, "pages_at_once", counted)
    main = Main(own_metrics)
    serving = asyncio.create_task(collector.serve(main))
    async with asyncio.timeout(DEADLINE_S):
        either: set[asyncio.Future[Any]] = {serving, main.address}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        page = await get(main.address.result(), "/metrics")
        other = await get(main.address.result(), "/metrics?profile=gputel")
        main.stopping.set()
        await serving
    main.telemetry.close()
    assert b"\ngputel_gpu_up{" in page
    assert b"gputel_gpu_info{" in other
    assert (b"gputel_collector_sweeps_total" in page) == own_metrics
    assert answered == ([] if own_metrics else [b"/metrics"])
