"""Metrics of the outbox that is there when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gputel.collector.outbox import LiveOutbox, Outbox
from gputel.collector.spool.backlog import Backlog
from gputel.collector.spool.ledger import REASONS
from gputel.observe import Telemetry

Count = list[tuple[int, Mapping[str, str]]]


def describe(telemetry: Telemetry, outbox: Callable[[], Outbox | None]) -> None:
    """Export what is published, what waits, and what was lost."""

    def live() -> LiveOutbox | None:
        found = outbox()
        return found if isinstance(found, LiveOutbox) else None

    def lost(frames: bool) -> Count:
        found = live()
        if found is None:
            return []
        counts = found.ledger.lost_frames if frames else found.ledger.lost_rows
        return [(counts[reason], {"reason": reason}) for reason in REASONS]

    def of_outbox(read: Callable[[Outbox], float]) -> Callable[[], float]:
        return lambda: read(found) if (found := outbox()) else 0

    counter, gauge = telemetry.observe_counter, telemetry.observe_gauge
    counter(
        "gputel_collector_published_frames",
        "Frames on their way to the broker",
        of_outbox(lambda box: box.frames),
    )
    counter("gputel_collector_dropped_frames", "Frames lost, by reason", lambda: lost(True))
    counter("gputel_collector_dropped_rows", "Rows of those frames", lambda: lost(False))
    counter(
        "gputel_collector_dropped_events",
        "Events of lost frames that found no room in later ones",
        lambda: found.ledger.lost_events if (found := live()) else 0,
    )
    gauge(
        "gputel_collector_pending_bytes",
        "Frames in memory, not acknowledged yet",
        of_outbox(lambda box: box.pending_size_bytes),
    )
    gauge(
        "gputel_collector_broker_connected",
        "1 while the broker is connected",
        of_outbox(lambda box: int(box.connected)),
    )
    _describe_spool(telemetry, live)


def _describe_spool(telemetry: Telemetry, live: Callable[[], LiveOutbox | None]) -> None:
    def of_backlog(read: Callable[[Backlog], float]) -> Callable[[], float]:
        return lambda: read(found.backlog) if (found := live()) else 0

    counter, gauge = telemetry.observe_counter, telemetry.observe_gauge
    gauge(
        "gputel_spool_active",
        "1 while frames are kept on disk",
        lambda: [(int(found.spooling), {})] if (found := live()) else [],
    )
    gauge(
        "gputel_spool_bytes", "Size of the spool's files", of_backlog(lambda b: b.disk_size_bytes)
    )
    gauge(
        "gputel_spool_frames",
        "Frames that the broker has not acknowledged, on disk or in memory",
        of_backlog(lambda b: b.pending_frames),
    )
    gauge(
        "gputel_spool_oldest_age_seconds",
        "Age of the oldest of them",
        of_backlog(lambda b: b.oldest_age_s()),
    )
    counter(
        "gputel_spool_replayed_frames",
        "Frames read back from the disk and offered to the broker",
        of_backlog(lambda b: b.replayed_frames),
    )
    counter(
        "gputel_spool_disk_errors",
        "Reads, writes and syncs that the disk refused",
        of_backlog(lambda b: b.disk_errors),
    )
    counter(
        "gputel_spool_damaged_bytes",
        "Bytes in the spool's files that were no frames",
        of_backlog(lambda b: b.damaged_bytes),
    )
