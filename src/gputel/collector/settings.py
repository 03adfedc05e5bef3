"""Configuration of the collector (section `collector`)."""

from __future__ import annotations

from typing import Annotated

import msgspec

from gputel import limits

Positive = Annotated[int, msgspec.Meta(ge=1)]
Hz = Annotated[float, msgspec.Meta(gt=0, le=1000)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class CollectorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sampling, batching and publishing.

    The first four keys are those of the first generation, whose collector read the queue
    and wrote the database; they govern delivery into the store and are read by the sink.
    """

    #: Most frames that one database transaction takes.
    batch_size: Positive = 400
    #: Most frames delivered to a sink worker and not yet acknowledged.
    max_in_flight: Positive = 2000
    #: An unacknowledged frame is delivered again after this time.
    ack_timeout_seconds: Seconds = 30
    #: Sink workers, each with its own share of the partitions.
    worker_count: Annotated[int, msgspec.Meta(ge=1, le=limits.PARTITIONS_MAX)] = 3

    #: The node exporter: /metrics, /metrics/collector, /health, /healthz, /readyz.
    listen: str = "127.0.0.1:9400"
    #: Export only: no broker is needed, and nothing is published.
    standalone: bool = False
    #: Sampling rate of each cadence class.
    fast_hz: Hz = 10
    medium_hz: Hz = 1
    slow_hz: Hz = 1 / 30
    #: How often the driver's own buffer of samples is emptied.
    drain_hz: Hz = 1
    #: A cadence that takes more than this of a core is asked less often, and says so.
    cpu_budget_percent: Annotated[float, msgspec.Meta(gt=0, le=100)] = 1
    #: false: make no driver calls. Read again on SIGHUP; SIGUSR1 toggles it.
    polling: bool = True
    #: At each slow sweep, look which processes use the GPUs: memory, utilisation, container.
    processes: bool = False
    #: A sample waits at most this long for others before it is published.
    flush_ms: Annotated[int, msgspec.Meta(ge=1, le=60_000)] = 100
    #: Rows of each ring between the sampler and the batcher.
    ring_rows: Annotated[int, msgspec.Meta(ge=64, le=1_048_576)] = 8192
    #: Directory of the spool, in which frames wait for a broker that is away; null: spool
    #: in data_dir. Each collector needs one of its own, and finds it again after a restart.
    spool_dir: str | None = None
    #: Most bytes of the spool (8 MiB at least); the oldest frames go first, and are counted.
    #: 0: no spool, frames wait in memory.
    spool_bytes: Annotated[int, msgspec.Meta(ge=0)] = 1024 * limits.MIB
    #: Frames kept in memory while neither broker nor spool takes them; the oldest go first,
    #: and are counted.
    pending_bytes: Annotated[int, msgspec.Meta(ge=limits.FRAME_BYTES_MAX)] = 64 * limits.MIB
