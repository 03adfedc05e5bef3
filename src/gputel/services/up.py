"""`gputel up`: the whole pipeline on this machine, as supervised children."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from gputel import __version__
from gputel.config import Address, Config, default_data_dir, is_loopback, parse_address
from gputel.errors import BrokerUnavailable, ConfigError, GputelError, InputError, PortInUse
from gputel.services.child import Child
from gputel.services.ephemeral import make, remove, remove_abandoned
from gputel.services.postgres import PostgresPart
from gputel.services.state import DataDir, ServiceState, UpState, pid_ticks
from gputel.services.supervisor import Announcements, Plan, Supervisor

log = logging.getLogger(__name__)

#: Which announced address belongs to which listener of the configuration.
_LISTENERS: Final = {
    ("broker", "broker"): ("broker", "listen"),
    ("broker", "metrics"): ("broker", "metrics_listen"),
    ("sink", "sink"): ("sink", "listen"),
    ("streamer", "stream"): ("stream", "listen"),
    ("api", "api"): ("api", "listen"),
    ("collector", "collector"): ("collector", "listen"),
}
#: Sources first: what is on its way gets through before the next stage ends.
_STOP_ORDER: Final = (("collector",), ("api", "streamer"), ("sink",), ("broker",), ("postgres",))
_STOP_DEADLINES_S: Final = {"collector": 12.0, "sink": 15.0}
_POSTGRES_START_S: Final = 240.0  # initdb on a slow disk, crash recovery
_BROKER_CONNECT_S: Final = 5.0


class Forced(Exception):
    """The user asked twice: everything was killed."""


Emit = Callable[[dict[str, Any]], None]


async def up(config: Config, *, ephemeral: bool, emit: Emit) -> None:
    """Run the pipeline until SIGINT or SIGTERM, then drain it.

    emit    called once, when all is ready, with what `--json` prints
    """
    config = _checked(config)
    temporary: Path | None = None
    if config.data_dir is None and ephemeral:
        await asyncio.to_thread(remove_abandoned)
        temporary = make()
    data_dir = DataDir(temporary or _data_dir(config))
    config = msgspec.structs.replace(config, data_dir=str(data_dir.path))
    try:
        data_dir.open()
        try:
            await _Pipeline(config, data_dir, ephemeral).run(emit)
        finally:
            data_dir.close()
    finally:
        if temporary is not None:
            remove(temporary)


def _data_dir(config: Config) -> Path:
    return Path(config.data_dir).absolute() if config.data_dir else default_data_dir()


class _Pipeline:
    """The plan of one run, and what is known of it."""

    def __init__(self, config: Config, data_dir: DataDir, ephemeral: bool) -> None:
        self._config = _free_ports(config) if ephemeral else config
        self._data_dir = data_dir
        self._postgres = PostgresPart(data_dir.path) if config.database is None else None
        self._own_broker = is_loopback(parse_address(config.message_queue.address).host)
        self._state = "starting"
        plans = self._plans()
        names = {plan.part.name for plan in plans}
        order = [[name for name in group if name in names] for group in _STOP_ORDER]
        self._supervisor = Supervisor(plans, order, self._write_state)

    async def run(self, emit: Emit) -> None:
        """Start, serve, stop in order. GputelError when a part can't start."""
        signals = _Signals(self._supervisor)
        self._write_state(strict=True)
        try:
            if not self._own_broker:
                await _reach_broker(self._config.message_queue.address)
            else:
                _check_ports(self._config)
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

    def _plans(self) -> list[Plan]:
        database = ("postgres",) if self._postgres else ()
        queue = ("broker",) if self._own_broker else ()
        plans = []
        if self._postgres:
            plans.append(
                Plan(self._postgres, (), lambda _: b"", start_deadline_s=_POSTGRES_START_S)
            )
        if self._own_broker:
            plans.append(self._child("broker", ()))
        plans.append(self._child("sink", (*database, *queue)))
        plans.append(self._child("streamer", queue))
        # The sink has made the schema that the API reads.
        plans.append(self._child("api", ("sink", "streamer")))
        plans.append(self._child("collector", (*queue, "sink", "streamer", "api")))
        return plans

    def _child(self, name: str, needs: tuple[str, ...]) -> Plan:
        command = [sys.executable, "-m", "gputel", name]
        deadline_s = _STOP_DEADLINES_S.get(name, 10.0)
        return Plan(Child(name, command), needs, self._configure, stop_deadline_s=deadline_s)

    def _configure(self, announcements: Announcements) -> bytes:
        """The configuration for a child: every address that is known by now stands in it."""
        config = self._config
        for (service, key), (section, field) in _LISTENERS.items():
            if service in announcements:
                settings = getattr(config, section)
                host = parse_address(getattr(settings, field)).host
                address = Address(host, _port(announcements[service].addresses[key]))
                settings = msgspec.structs.replace(settings, **{field: str(address)})
                config = msgspec.structs.replace(config, **{section: settings})
        if "broker" in announcements:
            port = parse_address(config.broker.listen).port
            queue = msgspec.structs.replace(config.message_queue, address=f"127.0.0.1:{port}")
            config = msgspec.structs.replace(config, message_queue=queue)
        if self._postgres is not None:
            config = msgspec.structs.replace(config, database=self._postgres.settings)
        return msgspec.json.encode(config)

    def _summary(self) -> dict[str, Any]:
        """What `--json` prints."""
        said = self._supervisor.announcements
        broker = said.get("broker")
        facts = said["collector"].facts
        return {
            "event": "ready",
            "api": said["api"].addresses["api"],
            "stream": said["streamer"].addresses["stream"],
            "broker": broker.addresses["broker"] if broker else self._config.message_queue.address,
            "collector": said["collector"].addresses["collector"],
            "sink": said["sink"].addresses["sink"],
            "source": facts.get("source", ""),
            "source_description": facts.get("description", ""),
            "source_reason": facts.get("reason", ""),
            "database": self._database(),
            "data_dir": str(self._data_dir.path),
        }

    def _database(self) -> str:
        settings = self._postgres.settings if self._postgres else self._config.database
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
    """What is wrong before anything starts; and one address for the broker of this machine."""
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
    queue = parse_address(config.message_queue.address)
    listen = parse_address(config.broker.listen)
    default = Config()
    if not is_loopback(queue.host) or queue.port == listen.port:
        return config
    if config.broker.listen != default.broker.listen:
        if config.message_queue.address != default.message_queue.address:
            raise ConfigError(
                "message_queue.address",
                f"{queue} is not where the broker listens (broker.listen is {listen}); "
                "`gputel up` needs one of them, or both alike",
            )
        return config
    broker = msgspec.structs.replace(config.broker, listen=f"{listen.host}:{queue.port}")
    return msgspec.structs.replace(config, broker=broker)


def _free_ports(config: Config) -> Config:
    """Every listener on a free port of its host."""
    for section, field in _LISTENERS.values():
        settings = getattr(config, section)
        host = parse_address(getattr(settings, field)).host
        settings = msgspec.structs.replace(settings, **{field: str(Address(host, 0))})
        config = msgspec.structs.replace(config, **{section: settings})
    return config


def _check_ports(config: Config) -> None:
    """PortInUse for the first taken port, before anything is started."""
    from gputel.observe import bind

    for (service, _), (section, field) in _LISTENERS.items():
        address = parse_address(getattr(getattr(config, section), field))
        if address.port:
            sock = bind(service, address.host, address.port)
            try:
                sock.listen(1)  # binding alone succeeds beside some listeners
            except OSError:
                raise PortInUse(service, str(address)) from None
            finally:
                sock.close()


async def _reach_broker(address: str) -> None:
    """BrokerUnavailable when nothing answers at the configured queue of another machine."""
    host, port = parse_address(address)
    try:
        async with asyncio.timeout(_BROKER_CONNECT_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError) as error:
        reason = getattr(error, "strerror", None) or "no answer"
        raise BrokerUnavailable(
            f"message_queue.address {address}: {reason}",
            hint="start the broker there, or name this machine to have one started here",
        ) from None
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _port(address: str) -> int:
    port = urlsplit(address if "//" in address else f"//{address}").port
    if port is None:
        raise GputelError(f"a service announced an address without a port: {address}")
    return port
