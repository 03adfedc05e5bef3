"""The whole configuration; each section is a stage's own settings."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from gputel import limits
from gputel.api.settings import ApiSettings
from gputel.broker.settings import BrokerSettings, JetStreamSettings
from gputel.collector.attribution.settings import AttributionSettings
from gputel.collector.exporter.settings import ExporterSettings
from gputel.collector.settings import CollectorSettings
from gputel.sources.settings import SourceSettings
from gputel.store.settings import DatabaseSettings, StoreSettings
from gputel.stream.settings import StreamSettings

TOPIC_PATTERN = rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{limits.TOPIC_BYTES_MAX - 1}}}$"


class MessageQueueSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where collectors, sinks and streamers find the broker."""

    #: gRPC address of the broker, or of all brokers of a cluster, as a list or separated by
    #: commas: who loses one goes on with the next. `gputel up` starts its own broker here
    #: when the host is this machine, and uses those that are there otherwise.
    address: str = "localhost:50051"
    #: Topic that carries the frames.
    topic: Annotated[str, msgspec.Meta(pattern=TOPIC_PATTERN)] = "telemetry"


class SinkSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The sink's own port; how it takes frames is set in `collector`, as it always was."""

    #: /metrics, /healthz, /readyz.
    listen: str = "127.0.0.1:9402"


class ObserveSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What gputel says of itself."""

    #: error = somebody must act, warning = something was lost or retried, info = state changes.
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    #: Lines for people, or one JSON object a line.
    log_format: Literal["text", "json"] = "text"
    #: Base URL of an OTLP/HTTP receiver for gputel's own metrics; null: none.
    otlp_endpoint: Annotated[str, msgspec.Meta(pattern=r"^https?://.+$")] | None = None


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that can be configured. Defaults run the whole pipeline on this machine."""

    #: Directory of the message log, the embedded database and the state of `gputel up`.
    #: null: /var/lib/gputel for root, gputel in the user's data directory otherwise.
    data_dir: str | None = None
    #: Allow listeners that other machines reach. They are not encrypted and ask for no password.
    insecure: bool = False
    source: SourceSettings = SourceSettings()
    collector: CollectorSettings = CollectorSettings()
    exporter: ExporterSettings = ExporterSettings()
    attribution: AttributionSettings = AttributionSettings()
    message_queue: MessageQueueSettings = MessageQueueSettings()
    broker: BrokerSettings = BrokerSettings()
    database: DatabaseSettings | None = None
    sink: SinkSettings = SinkSettings()
    store: StoreSettings = StoreSettings()
    api: ApiSettings = ApiSettings()
    stream: StreamSettings = StreamSettings()
    observe: ObserveSettings = ObserveSettings()


#: Section name to its struct, in the order of the file.
SECTIONS: dict[str, type[msgspec.Struct]] = {
    "source": SourceSettings,
    "collector": CollectorSettings,
    "exporter": ExporterSettings,
    "attribution": AttributionSettings,
    "message_queue": MessageQueueSettings,
    "broker": BrokerSettings,
    "database": DatabaseSettings,
    "sink": SinkSettings,
    "store": StoreSettings,
    "api": ApiSettings,
    "stream": StreamSettings,
    "observe": ObserveSettings,
}
#: Sections within sections, each to its struct.
SUBSECTIONS: dict[tuple[str, str], type[msgspec.Struct]] = {
    ("broker", "jetstream"): JetStreamSettings,
}
SCALARS = ("data_dir", "insecure")
#: What no message repeats. URLs may hold a password.
SECRETS: frozenset[tuple[str, ...]] = frozenset(
    {("database", "password"), ("broker", "jetstream", "servers")}
)

assert {*SECTIONS, *SCALARS} == set(Config.__struct_fields__)
