"""The embedded engine's own metrics and checks."""

from __future__ import annotations

from typing import Protocol

from gputel.broker.engine.commit import Committer
from gputel.observe import Health, Telemetry


class _Committing(Protocol):
    @property
    def committer(self) -> Committer | None: ...
    def throttle_ms(self) -> int: ...


def watch(telemetry: Telemetry, health: Health, engine: _Committing) -> None:
    """Register them."""
    count, level = telemetry.observe_counter, telemetry.observe_gauge
    count(
        "gputel_broker_commits",
        "Group commits",
        lambda: engine.committer.commits if engine.committer else 0,
    )
    count(
        "gputel_broker_retired_segments",
        "Segments deleted by retention",
        lambda: engine.committer.segments_retired if engine.committer else 0,
    )
    level(
        "gputel_broker_free_bytes",
        "Free space where the logs lie",
        lambda: engine.committer.free_bytes if engine.committer else 0,
    )

    def check_committer() -> str | None:
        return engine.committer.problem or None if engine.committer else None

    def check_disk() -> str | None:
        if not engine.throttle_ms():
            return None
        return "the disk is full or its reserve is touched: producers are told to wait"

    health.live("committer", check_committer)
    health.ready("disk", check_disk)
