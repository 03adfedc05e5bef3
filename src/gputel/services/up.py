"""`gputel up`: the whole pipeline on this machine, as supervised children."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from gputel import __version__
from gputel.config import Config, default_data_dir, parse_addresses
from gputel.errors import BrokerUnavailable, InputError, PortInUse
from gputel.services.ephemeral import make, remove, remove_abandoned
from gputel.services.lineup import Lineup, settle
from gputel.services.state import DataDir, ServiceState, UpState, pid_ticks
from gputel.services.supervisor import Supervisor

log = logging.getLogger(__name__)

_BROKER_CONNECT_S: Final = 5.0


class Forced(Exception):
    """The user asked twice: everything was killed."""


Emit = Callable[[dict[str, Any]], None]


async def up(config: Config, *, cluster: bool, ephemeral: bool, emit: Emit) -> None:
    """Run the pipeline until SIGINT or SIGTERM, then drain it.

    cluster    several brokers and sinks over NATS servers of our own
    emit       called once, when all is ready, with what `--json` prints
    """
    config = settle(_checked(config), cluster=cluster)
    temporary: Path | None = None
    if config.data_dir is None and ephemeral:
        await asyncio.to_thread(remove_abandoned)
        temporary = make()
    data_dir = DataDir(temporary or _data_dir(config))
    config = msgspec.structs.replace(config, data_dir=str(data_dir.path))
    try:
        data_dir.open()
        try:
            lineup = Lineup(config, data_dir.path, cluster=cluster, ephemeral=ephemeral)
            await _Pipeline(lineup, data_dir).run(emit)
        finally:
            data_dir.close()
    finally:
        if temporary is not None:
            remove(temporary)


def _data_dir(config: Config) -> Path:
    return Path(config.data_dir).absolute() if config.data_dir else default_data_dir()


class _Pipeline:
    """One run, and what is known of it."""

    def __init__(self, lineup: Lineup, data_dir: DataDir) -> None:
        self._lineup = lineup
        self._data_dir = data_dir
        self._state = "starting"
        self._supervisor = Supervisor(lineup.plans(), lineup.stop_order(), self._write_state)

    async def run(self, emit: Emit) -> None:
        """Start, serve, stop in order. GputelError when a part can't start."""
        signals = _Signals(self._supervisor)
        self._write_state(strict=True)
        try:
            if not self._lineup.own_broker:
                await _reach_broker(self._lineup.config.message_queue.address)
            _check_ports(self._lineup)
            starting = asyncio.create_task(self._supervisor.start(), name="start")
            stopping = asyncio.create_task(signals.stop.wait(), name="signals")
            try:
                await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if starting.done():
                    await starting
                    self._state = "ready"
                    self._write_state()
                    emit(self._summary())
                    await stopping
                    log.info("stopping: the sources first; Ctrl-C again ends at once")
            finally:
                for task in (starting, stopping):
                    task.cancel()
                await asyncio.gather(starting, stopping, return_exceptions=True)
        finally:
            self._state = "stopping"
            well = await self._supervisor.stop()
            signals.close()
        if signals.forced:
            raise Forced
        log.info("stopped%s", "" if well else "; some parts had to be killed")

    def _summary(self) -> dict[str, Any]:
        """What `--json` prints."""
        said = self._supervisor.announcements
        facts = said["collector"].facts
        brokers = self._lineup.addresses(said, "broker")
        sinks = self._lineup.addresses(said, "sink")
        return {
            "event": "ready",
            "api": said["api"].addresses["api"],
            "stream": said["streamer"].addresses["stream"],
            "broker": ",".join(brokers) or self._lineup.config.message_queue.address,
            "collector": said["collector"].addresses["collector"],
            "sink": sinks[0],
            "sinks": sinks,
            "nats": [server.url for server in self._lineup.nats],
            "source": facts.get("source", ""),
            "source_description": facts.get("description", ""),
            "source_reason": facts.get("reason", ""),
            "database": self._database(),
            "data_dir": str(self._data_dir.path),
        }

    def _database(self) -> str:
        postgres = self._lineup.postgres
        settings = postgres.settings if postgres else self._lineup.config.database
        return repr(settings) if settings else ""  # its repr has no password

    def _write_state(self, *, strict: bool = False) -> None:
        supervisor = self._supervisor
        services = {}
        for name, keeper in supervisor.keepers.items():
            pid = keeper.plan.part.pid
            announced = supervisor.announcements.get(name)
            services[name] = ServiceState(
                pid=pid,
                pid_ticks=pid_ticks(pid) if pid else None,
                state=keeper.state.value,
                restarts=keeper.restarts,
                last_end=keeper.last_end,
                addresses=dict(announced.addresses) if announced else {},
            )
        collector = supervisor.announcements.get("collector")
        state = UpState(
            version=__version__,
            pid=os.getpid(),
            state=self._state,
            source=collector.facts.get("source", "") if collector else "",
            database=self._database(),
            services=services,
        )
        try:
            self._data_dir.write(state)
        except OSError as error:
            message = f"data directory {self._data_dir.path}: {error.strerror}"
            if strict:
                raise InputError(message, hint="free space, or choose another --data-dir") from None
            log.warning("the state file is not written: %s", message)


class _Signals:
    """The first SIGINT or SIGTERM stops, the second kills."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.stop = asyncio.Event()
        self.forced = False
        self._supervisor = supervisor
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def close(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self.stop.is_set():
            self.forced = True
            self._supervisor.kill()
        self.stop.set()


def _checked(config: Config) -> Config:
    """What is wrong with the source before anything starts."""
    kind, _, path = config.source.kind.partition(":")
    if kind == "replay":
        file = Path(path).expanduser().absolute()
        try:
            with file.open("rb"):
                pass
        except OSError as error:
            raise InputError(
                f"replay file {path}: {error.strerror}",
                hint="--source replay:PATH names a DCGM CSV dump or an nvidia-smi log",
            ) from None
        source = msgspec.structs.replace(config.source, kind=f"replay:{file}")
        config = msgspec.structs.replace(config, source=source)
    return config


def _check_ports(lineup: Lineup) -> None:
    """PortInUse for the first taken port, before anything is started."""
    from gputel.observe import bind

    for service, address in lineup.listeners():
        if address.port:
            sock = bind(service, address.host, address.port)
            try:
                sock.listen(1)  # binding alone succeeds beside some listeners
            except OSError:
                raise PortInUse(service, str(address)) from None
            finally:
                sock.close()


async def _reach_broker(addresses: str) -> None:
    """BrokerUnavailable when nothing answers at the configured queue of other machines."""
    problems = []
    for address in parse_addresses(addresses):
        try:
            async with asyncio.timeout(_BROKER_CONNECT_S):
                _, writer = await asyncio.open_connection(*address)
        except (OSError, TimeoutError) as error:
            problems.append(f"{address}: {getattr(error, 'strerror', None) or 'no answer'}")
        else:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return
    raise BrokerUnavailable(
        f"message_queue.address {'; '.join(problems)}",
        hint="start the broker there, or name this machine to have one started here",
    )
