"""What every service process does around its stage.

A service is `async def serve(process)`: it starts its stage, calls `process.ready`, waits
for `process.stopping`, and stops its stage. Alone it is stopped by SIGTERM or SIGINT; under
a supervisor also by the end of its standard input, so that nothing outlives `gputel up`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from gputel.config import Config, parse_address
from gputel.errors import GputelError
from gputel.observe import Health, HttpServer, Telemetry, bind, configure_logging, status_app
from gputel.observe.at_once import AtOnce
from gputel.observe.guard import Guard
from gputel.observe.http import App
from gputel.services.announcement import Announcement, encode_failure, encode_ready
from gputel.services.state import data_dir_of

log = logging.getLogger(__name__)

CONFIG_LINE_BYTES_MAX = 1024 * 1024
ORPHAN_GRACE_S = 1.5


class Process:
    """What a service's main is given."""

    def __init__(
        self,
        service: str,
        config: Config,
        ready_fd: int | None,
        reload: Callable[[], Config] | None = None,
    ) -> None:
        self.service = service
        self.config = config
        #: Set when this process shall stop.
        self.stopping = asyncio.Event()
        #: True under a supervisor that is alive: it stops the stages in order.
        self.supervised = ready_fd is not None
        self.telemetry = Telemetry(service, otlp_endpoint=config.observe.otlp_endpoint)
        self.health = Health(service)
        self._ready_fd = ready_fd
        self._reload = reload
        self._guard: Guard | None = None

    def reload(self) -> Config:
        """The configuration as its file says now. ConfigError."""
        if self._reload is None:
            raise GputelError(
                "this process was configured by its supervisor", hint="restart `gputel up`"
            )
        return self._reload()

    def on_signal(self, number: signal.Signals, act: Callable[[], None]) -> None:
        """Call `act` on the event loop whenever the signal comes."""
        asyncio.get_running_loop().add_signal_handler(number, act)

    @property
    def data_dir(self) -> Path:
        """Where this process may keep files."""
        return data_dir_of(self.config)

    def ready(self, *, facts: dict[str, str] | None = None, **addresses: str) -> None:
        """Say that the service serves, and where."""
        where = ", ".join(f"{name} {address}" for name, address in addresses.items())
        log.info("ready: %s", where)
        if self._ready_fd is not None:
            announcement = Announcement(
                service=self.service, pid=os.getpid(), addresses=addresses, facts=facts or {}
            )
            _tell(self._ready_fd, encode_ready(announcement))

    async def until_stopped(self, *stages: Coroutine[Any, Any, None]) -> None:
        """Run `stages` until all have ended after `stopping`; the first that fails, or ends
        before it was told to, ends the service."""
        tasks = [asyncio.ensure_future(stage) for stage in stages]
        stopping = asyncio.create_task(self.stopping.wait(), name="stopping")
        try:
            done, _ = await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                await task
            if not self.stopping.is_set():
                raise RuntimeError(f"the {self.service}'s stage ended by itself")
            await asyncio.gather(*tasks)
        finally:
            for task in (*tasks, stopping):
                task.cancel()
            await asyncio.gather(*tasks, stopping, return_exceptions=True)

    async def orphan_grace(self, delay_s: float) -> None:
        """Wait for services that need this one to finish, when nobody stops them in order."""
        if self._ready_fd is not None and not self.supervised:
            await asyncio.sleep(delay_s)

    @contextlib.asynccontextmanager
    async def status_port(
        self,
        listen: str,
        app: App | None = None,
        *,
        metrics_path: str = "/metrics",
        at_once: AtOnce | None = None,
    ) -> AsyncGenerator[HttpServer, None]:
        """`metrics_path`, /healthz and /readyz on `listen`, beside the routes of `app`; yields
        the running server. `at_once` is asked before the application."""
        address = parse_address(listen)
        sock = bind(self.service, address.host, address.port)
        app = status_app(self.telemetry, self.health, app, metrics_path=metrics_path)
        server = HttpServer(self.service, app, sock, http=self._guarded().protocol(at_once))
        await server.start()
        try:
            yield server
        finally:
            await server.stop()

    def _guarded(self) -> Guard:
        """The guard of our ports, counted once."""
        if self._guard is None:
            guard = self._guard = Guard()
            self.telemetry.observe_counter(
                "gputel_http_aborted_connections",
                "Connections cut off: too slow, too long a header, or too many",
                lambda: [(count, {"reason": reason}) for reason, count in guard.aborted.items()],
            )
        return self._guard


Serve = Callable[[Process], Awaitable[None]]


def run(
    service: str,
    serve: Serve,
    config: Config | None,
    ready_fd: int | None = None,
    reload: Callable[[], Config] | None = None,
    *,
    log_name: str | None = None,
) -> None:
    """Run a service until it is told to stop. GputelError says why it can't go on. `reload`
    reads the configuration again; `log_name` tells it from others of its kind.

    Under a supervisor (`ready_fd`) the configuration comes from standard input, which is
    read only here, after the imports: children load side by side and start in order.
    """
    if ready_fd is not None:
        os.set_inheritable(ready_fd, False)
        config = _config_from_supervisor()
        if config is None:
            return
    assert config is not None
    observe = config.observe
    configure_logging(log_name or service, level=observe.log_level, style=observe.log_format)
    # What was imported stays: the collector of garbage need not look at it again.
    gc.freeze()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(Process(service, config, ready_fd, reload), serve))
    except GputelError as error:
        if ready_fd is not None:
            _tell(ready_fd, encode_failure(error))
        raise
    except BaseException:
        log.critical("the %s failed; please report this", service, exc_info=True)
        raise


async def _run(process: Process, serve: Serve) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.stopping.set)
    # Its default would end the process: a service that has no use for it lets it pass.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    lifeline = asyncio.create_task(_lifeline(process)) if process.supervised else None
    try:
        await serve(process)
    finally:
        if lifeline is not None:
            lifeline.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await lifeline
        process.telemetry.close()


async def _lifeline(process: Process) -> None:
    """Stop when standard input ends: the supervisor is dead, and can't tell us."""
    reader = asyncio.StreamReader(limit=1024)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer
    )
    try:
        while await reader.read(1024):
            pass
        log.warning("the supervisor is gone: stopping")
        process.supervised = False
        process.stopping.set()
    finally:
        transport.close()


def _config_from_supervisor() -> Config | None:
    """The line on standard input; None when the supervisor ended before it sent one."""
    line = bytearray()
    while not line.endswith(b"\n"):
        block = os.read(0, 65_536)
        if not block:
            return None
        line += block
        assert len(line) <= CONFIG_LINE_BYTES_MAX
    return msgspec.json.decode(line, type=Config)


def _tell(ready_fd: int, line: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):  # the supervisor is gone; the lifeline tells
        os.write(ready_fd, line)
