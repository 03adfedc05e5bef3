"""Configuration of the broker (section `broker`)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from gputel import limits

Positive = Annotated[int, msgspec.Meta(ge=1)]


class JetStreamSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The NATS cluster behind `engine: jetstream`."""

    #: URLs of NATS servers (2.11 or later) with JetStream; `tls://` asks for TLS.
    servers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("nats://127.0.0.1:4222",)
    #: Copies of every message, each on a server of its own: 3 outlive the loss of one, 5 of two.
    replicas: Literal[1, 3, 5] = 3
    #: What streams, subjects and the bucket begin with; brokers with the same one are one broker.
    namespace: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,32}$")] = "gputel"
    #: A NATS credentials file (JWT and seed); empty: none.
    credentials_file: str = ""
    #: The certificate authorities that the servers' certificates are checked with; empty: the
    #: system's.
    ca_file: str = ""
    #: The certificate and key that the broker shows to the servers; empty: none.
    certificate_file: str = ""
    key_file: str = ""

    def __repr__(self) -> str:  # a URL may hold a password, which is never logged
        return ", ".join(self.addresses)

    @property
    def addresses(self) -> list[str]:
        """The servers without users and passwords."""
        return [url.rpartition("@")[2].rpartition("//")[2] for url in self.servers]

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        asked = any(url.startswith("tls://") for url in self.servers)
        return asked or bool(self.ca_file or self.certificate_file)


class BrokerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The broker's listeners, and the engine that keeps its messages."""

    #: `embedded` keeps messages in the data directory, `jetstream` in a NATS cluster.
    engine: Literal["embedded", "jetstream"] = "embedded"
    jetstream: JetStreamSettings = msgspec.field(default_factory=JetStreamSettings)
    #: gRPC address, `host:port`.
    listen: str = "127.0.0.1:50051"
    #: /metrics, /healthz, /readyz.
    metrics_listen: str = "127.0.0.1:9401"
    #: Partitions of a new topic; an existing topic keeps what it has.
    partitions: Annotated[int, msgspec.Meta(ge=1, le=limits.PARTITIONS_MAX)] = 4
    #: Embedded engine: when an ack is given: after fsync, after the write and a periodic fsync,
    #: or after the write. The cluster's servers say it themselves (`sync_interval`).
    fsync: Literal["always", "interval", "os"] = "always"
    fsync_interval_ms: Positive = 200
    segment_bytes: Annotated[int, msgspec.Meta(ge=limits.SEGMENT_BYTES_MIN)] = (
        limits.SEGMENT_BYTES_DEFAULT
    )
    #: Oldest segments go when a partition is larger or older than this.
    retention_bytes: Annotated[int, msgspec.Meta(ge=limits.SEGMENT_BYTES_MIN)] = 4096 * limits.MIB
    retention_seconds: Positive = 7 * 86_400
    #: Free disk space below which producers are throttled.
    disk_reserve_bytes: Annotated[int, msgspec.Meta(ge=0)] = 256 * limits.MIB
    #: Deliveries of one message before it goes to `<topic>.dlq`.
    max_deliver: Positive = 16
