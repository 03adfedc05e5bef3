"""Configuration of the broker (section `broker`)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from gputel import limits

Positive = Annotated[int, msgspec.Meta(ge=1)]


class BrokerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The embedded engine and its listeners."""

    #: gRPC address, `host:port`.
    listen: str = "127.0.0.1:50051"
    #: /metrics, /healthz, /readyz.
    metrics_listen: str = "127.0.0.1:9401"
    #: Partitions of a new topic; an existing topic keeps what it has.
    partitions: Annotated[int, msgspec.Meta(ge=1, le=limits.PARTITIONS_MAX)] = 4
    #: When an ack is given: after fsync, after the write and a periodic fsync, or after the write.
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
