"""Which parts `gputel up` runs, who needs whom, where each listens, and what each is told.

    postgres    nats-1 nats-2 nats-3         (--cluster; else the broker keeps its own log)
       |            |
       |        broker-1 broker-2            else: broker, or none when it is elsewhere
       |            |
       +------- sink-1 sink-2   streamer     else: sink
                    |
                   api          then the collector

They start in this order, as far as they need each other, and stop in the opposite one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from gputel.config import Address, Config, from_here, is_loopback, parse_address, parse_addresses
from gputel.errors import ConfigError, GputelError
from gputel.services.child import Child
from gputel.services.nats import NatsServer, make_servers
from gputel.services.postgres import PostgresPart
from gputel.services.supervisor import Announcements, Plan

CLUSTER_SERVERS: Final = 3
CLUSTER_BROKERS: Final = 2
CLUSTER_SINKS: Final = 2
#: The second one of a kind listens so many ports higher than the first.
PORT_STEP: Final = 10

#: Kind of service -> announced address -> the listener's key in the configuration.
LISTENERS: Final = {
    "broker": {"broker": ("broker", "listen"), "metrics": ("broker", "metrics_listen")},
    "sink": {"sink": ("sink", "listen")},
    "streamer": {"stream": ("stream", "listen")},
    "api": {"api": ("api", "listen")},
    "collector": {"collector": ("collector", "listen")},
}
#: Sources first: what is on its way gets through before the next stage ends.
_STOP_ORDER: Final = (("collector",), ("api", "streamer"), ("sink",), ("broker",), ("postgres",))
_STOP_DEADLINES_S: Final = {"collector": 12.0, "sink": 15.0}
_POSTGRES_START_S: Final = 240.0  # initdb on a slow disk, crash recovery


class Service(NamedTuple):
    """One of our own processes; `number` counts those of its kind from 0."""

    name: str
    kind: str
    number: int


class Lineup:
    """The parts of one run. `config` has been through `settle`."""

    def __init__(self, config: Config, data_dir: Path, *, cluster: bool, ephemeral: bool) -> None:
        self.config = _free_ports(config) if ephemeral else config
        self.postgres = PostgresPart(data_dir) if config.database is None else None
        self.nats: list[NatsServer] = (
            make_servers(data_dir / "nats", CLUSTER_SERVERS) if cluster else []
        )
        queue = parse_addresses(config.message_queue.address)
        self.own_broker = is_loopback(queue[0].host)
        brokers = (CLUSTER_BROKERS if cluster else 1) if self.own_broker else 0
        both = len(queue) == CLUSTER_BROKERS and cluster and not ephemeral
        self._broker_ports = [address.port for address in queue] if both else []
        self.services = (
            *_services("broker", brokers),
            *_services("sink", CLUSTER_SINKS if cluster else 1),
            *_services("streamer", 1),
            *_services("api", 1),
            *_services("collector", 1),
        )

    def plans(self) -> list[Plan]:
        """What the supervisor keeps running."""
        plans = [Plan(server, (), lambda _: b"") for server in self.nats]
        if self.postgres:
            plans.append(Plan(self.postgres, (), lambda _: b"", start_deadline_s=_POSTGRES_START_S))
        return [*plans, *map(self._plan, self.services)]

    def stop_order(self) -> list[list[str]]:
        """The names of `plans` in groups, those that stop first before the others."""
        names = {kind: [of.name for of in self.services if of.kind == kind] for kind in LISTENERS}
        names["postgres"] = [server.name for server in self.nats]
        names["postgres"] += [self.postgres.name] if self.postgres else []
        return [[name for kind in group for name in names[kind]] for group in _STOP_ORDER]

    def listeners(self) -> Iterator[tuple[str, Address]]:
        """(service, address) as configured."""
        for service in self.services:
            for section, key in LISTENERS[service.kind].values():
                yield service.name, self._listen(service, section, key)

    def addresses(self, announcements: Announcements, name: str) -> list[str]:
        """Every announced address of this name, in the order of the services."""
        said = (announcements.get(of.name) for of in self.services)
        return [of.addresses[name] for of in said if of is not None and name in of.addresses]

    def _plan(self, service: Service) -> Plan:
        kinds = {
            # The sink has made the schema that the API reads.
            "sink": ("broker",),
            "streamer": ("broker",),
            "api": ("sink", "streamer"),
            "collector": ("broker", "sink", "streamer", "api"),
        }.get(service.kind, ())
        needs = [of.name for of in self.services if of.kind in kinds]
        if service.kind == "broker":
            needs += [server.name for server in self.nats]
        if service.kind == "sink" and self.postgres:
            needs.append(self.postgres.name)
        command = [sys.executable, "-m", "gputel", service.kind, "--log-name", service.name]
        return Plan(
            Child(service.name, command),
            tuple(needs),
            lambda announcements: self._configure(service, announcements),
            stop_deadline_s=_STOP_DEADLINES_S.get(service.kind, 10.0),
        )

    def _configure(self, service: Service, announcements: Announcements) -> bytes:
        """The configuration for a service: every address that is known by now stands in it."""
        config = self.config
        for of in self.services:
            if of == service or (of.kind != service.kind and of.number == 0):
                said = announcements.get(of.name)
                for name, (section, key) in LISTENERS[of.kind].items():
                    address = self._listen(of, section, key)
                    if said is not None:
                        address = Address(address.host, _port(said.addresses[name]))
                    config = _with(config, section, **{key: str(address)})
        brokers = self.addresses(announcements, "broker")
        if brokers:
            here = (str(from_here(parse_address(address))) for address in brokers)
            config = _with(config, "message_queue", address=",".join(here))
        if self.nats:
            servers = [server.url for server in self.nats]
            jetstream = msgspec.structs.replace(config.broker.jetstream, servers=servers)
            config = _with(config, "broker", engine="jetstream", jetstream=jetstream)
        if self.postgres is not None:
            config = msgspec.structs.replace(config, database=self.postgres.settings)
        return msgspec.json.encode(config)

    def _listen(self, service: Service, section: str, key: str) -> Address:
        """Where a service listens as far as the configuration says it."""
        address = parse_address(getattr(getattr(self.config, section), key))
        if (section, key) == ("broker", "listen") and self._broker_ports:
            return Address(address.host, self._broker_ports[service.number])
        if not address.port or not service.number:
            return address
        port = address.port + PORT_STEP * service.number
        if port > 65_535:
            message = f"{address}: {service.name} would listen on port {port}; ports end at 65535"
            raise ConfigError(f"{section}.{key}", message)
        return Address(address.host, port)


def settle(config: Config, *, cluster: bool) -> Config:
    """`config` with one address for the broker of this machine. ConfigError."""
    queue = parse_addresses(config.message_queue.address)
    here = [address for address in queue if is_loopback(address.host)]
    if cluster:
        _check_cluster(config, queue, here)
    elif here and len(queue) > 1:
        raise ConfigError(
            "message_queue.address",
            f"{config.message_queue.address}: `gputel up` starts one broker, and needs one address "
            "of this machine for it (or only those of other machines); --cluster starts two",
        )
    if not here:
        return config
    listen = parse_address(config.broker.listen)
    if queue[0].port == listen.port:
        return config
    default = Config()
    if config.broker.listen != default.broker.listen:
        if config.message_queue.address != default.message_queue.address:
            raise ConfigError(
                "message_queue.address",
                f"{queue[0]} is not where the broker listens (broker.listen is {listen}); "
                "`gputel up` needs one of them, or both alike",
            )
        return config
    return _with(config, "broker", listen=f"{listen.host}:{queue[0].port}")


def _check_cluster(config: Config, queue: tuple[Address, ...], here: list[Address]) -> None:
    if len(here) < len(queue):
        elsewhere = next(address for address in queue if address not in here)
        raise ConfigError(
            "message_queue.address",
            f"{elsewhere} is not on this machine, where --cluster starts its brokers",
        )
    if len(queue) not in (1, CLUSTER_BROKERS):
        raise ConfigError(
            "message_queue.address",
            f"{len(queue)} addresses; --cluster starts {CLUSTER_BROKERS} brokers",
            allowed=[f"one address (the second broker listens {PORT_STEP} ports higher)", "both"],
        )
    jetstream = config.broker.jetstream
    if jetstream.replicas > CLUSTER_SERVERS:
        raise ConfigError(
            "broker.jetstream.replicas",
            f"{jetstream.replicas} copies; --cluster starts {CLUSTER_SERVERS} servers",
            allowed=["1", "3"],
        )
    if jetstream.servers != Config().broker.jetstream.servers:
        raise ConfigError(
            "broker.jetstream.servers", "--cluster starts nats-servers of its own; leave this out"
        )


def _services(kind: str, count: int) -> list[Service]:
    if count == 1:
        return [Service(kind, kind, 0)]
    return [Service(f"{kind}-{number + 1}", kind, number) for number in range(count)]


def _with(config: Config, section: str, **values: object) -> Config:
    settings = msgspec.structs.replace(getattr(config, section), **values)
    return msgspec.structs.replace(config, **{section: settings})


def _free_ports(config: Config) -> Config:
    """Every listener on a free port of its host."""
    for listeners in LISTENERS.values():
        for section, key in listeners.values():
            host = parse_address(getattr(getattr(config, section), key)).host
            config = _with(config, section, **{key: str(Address(host, 0))})
    return config


def _port(address: str) -> int:
    port = urlsplit(address if "//" in address else f"//{address}").port
    if port is None:
        raise GputelError(f"a service announced an address without a port: {address}")
    return port
