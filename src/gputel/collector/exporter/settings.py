"""Configuration of the node exporter (section `exporter`)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

WindowMs = Annotated[int, msgspec.Meta(ge=1000, le=86_400_000)]


class ExporterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `collector.listen` shows under /metrics.

    All keys but `profile` and `own_metrics` shape the dcgm profile.
    """

    #: Names and labels of /metrics: dcgm-exporter's, or gputel's own. /metrics?profile=...
    #: chooses for one scrape.
    profile: Literal["dcgm", "gputel"] = "dcgm"
    #: A counter file of dcgm-exporter (`FIELD, type, help`) instead of its defaults.
    collectors: str | None = None
    #: Label that holds the node: Hostname until dcgm-exporter 4.8.2, hostname later; null: none.
    hostname_label: Literal["Hostname", "hostname"] | None = "Hostname"
    #: Put a dash for every blank in modelName.
    replace_blanks_in_model_name: bool = False
    #: Window of DCGM_EXP_XID_ERRORS_COUNT.
    xid_window_ms: WindowMs = 300_000
    #: Window of DCGM_EXP_CLOCK_EVENTS_COUNT.
    clock_events_window_ms: WindowMs = 300_000
    #: Add the collector's own metrics to /metrics; they are always on /metrics/collector.
    own_metrics: bool = False
