"""Opening a source that may take for ever: the driver's first calls are under no watch.

The driver is initialised, counted and asked for its GPUs before there is a sampler that could
take its work over. So a daemon thread does that, and the process stays in charge: it serves its
status port, says that it is not ready and why, stops when it is told to, and goes on when the
call returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from gputel.clock import NS_PER_S, SYSTEM_CLOCK, Clock
from gputel.services.process import Process
from gputel.sources import Source

#: A driver that has to load its firmware first takes a second or two.
PATIENCE_S: Final = 3.0

log = logging.getLogger(__name__)


class Opening:
    """One call of `open_source`, on a thread of its own, that is seen from outside."""

    def __init__(
        self, process: Process, open_source: Callable[[], Source], clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._open_source = open_source
        self._clock = clock
        self._began_ns: int | None = None
        process.telemetry.observe_gauge(
            "gputel_collector_opening_seconds",
            "How long the source has been opening; 0 once it is open",
            self.seconds,
        )
        process.health.ready("source", self._problem)

    def seconds(self) -> float:
        """Since it began; 0 before and after."""
        began_ns = self._began_ns
        return 0.0 if began_ns is None else (self._clock.monotonic_ns() - began_ns) / NS_PER_S

    def _problem(self) -> str | None:
        seconds = self.seconds()
        return f"opening for {seconds:.0f} s: a driver call has not returned" if seconds else None

    def start(self) -> asyncio.Future[Source]:
        """Begin; the future is its outcome."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Source] = loop.create_future()
        self._began_ns = self._clock.monotonic_ns()

        def settle(act: Callable[[Any], None], value: Any) -> None:
            self._began_ns = None
            if not outcome.done():
                act(value)

        def work() -> None:
            act: Callable[[Any], None] = outcome.set_result
            value: Any
            try:
                value = self._open_source()
            except BaseException as error:
                act, value = outcome.set_exception, error
            with contextlib.suppress(RuntimeError):  # too late: the loop is closed
                loop.call_soon_threadsafe(settle, act, value)

        # A daemon, not a worker of the loop's: nobody waits for it when the process ends.
        threading.Thread(target=work, name="source-open", daemon=True).start()
        return outcome


async def opened(
    process: Process, open_source: Callable[[], Source], *, listen: str, metrics_path: str
) -> Source | None:
    """The open source, however long it takes; None when the process is told to stop before.

    SourceUnavailable, InputError: as `open_source` says. After PATIENCE_S the status port is
    served on `listen` meanwhile.
    """
    opening = Opening(process, open_source)
    outcome = opening.start()
    stopping = asyncio.create_task(process.stopping.wait(), name="stopping")
    either: set[asyncio.Future[Any]] = {outcome, stopping}
    try:
        done, _ = await asyncio.wait(
            either, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            async with process.status_port(listen, metrics_path=metrics_path) as status:
                log.warning(
                    "the source has been opening for %.0f s: a driver call has not returned; "
                    "not ready, status on %s",
                    opening.seconds(),
                    status.url,
                )
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not outcome.done():
            log.warning("told to stop while a driver call has not returned; leaving it behind")
            return None
        return outcome.result()
    finally:
        stopping.cancel()
        outcome.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
