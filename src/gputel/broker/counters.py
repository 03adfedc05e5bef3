"""The broker's own metrics and health, read from what engine and groups count anyway."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from gputel.broker.dead_letters import Undertaker
from gputel.broker.engine import Engine, PartitionLog
from gputel.broker.groups import Group
from gputel.observe import Health, Telemetry

Labelled = Iterable[tuple[int, Mapping[str, str]]]


class Counters:
    """Registers the broker's instruments and checks."""

    def __init__(
        self,
        telemetry: Telemetry,
        health: Health,
        engine: Engine,
        undertaker: Undertaker,
    ) -> None:
        self._engine = engine
        self._telemetry = telemetry
        count, level = telemetry.observe_counter, telemetry.observe_gauge
        count("gputel_broker_messages_in", "Messages stored", self._each(lambda p: p.messages_in))
        count("gputel_broker_bytes_in", "Bytes written to logs", self._each(lambda p: p.bytes_in))
        count("gputel_broker_duplicates", "Repeats not stored", self._each(lambda p: p.duplicates))
        level("gputel_broker_log_bytes", "Size of the logs", self._each(lambda p: p.size_bytes))
        level("gputel_broker_segments", "Segment files", self._each(lambda p: p.segments))
        level(
            "gputel_broker_pending_bytes",
            "Accepted and not yet durable",
            self._each(lambda p: p.pending_bytes),
        )
        level(
            "gputel_broker_damaged_bytes",
            "Bytes of logs that can't be read any more",
            self._each(lambda p: p.damaged_bytes),
        )
        level(
            "gputel_broker_failed_partitions",
            "Partitions that take no more messages",
            lambda: sum(bool(p.failure) for p in self._partitions()),
        )
        count(
            "gputel_broker_dead_letters",
            "Messages given up, by where they went",
            lambda: [
                (undertaker.buried, {"to": "dlq"}),
                (undertaker.discarded, {"to": "nowhere"}),
                (undertaker.lost, {"to": "lost"}),
            ],
        )
        health.live("partitions", self._check_partitions)

    def _partitions(self) -> Iterator[PartitionLog]:
        for topic in tuple(self._engine.topics.values()):
            yield from topic.partitions

    def _each(self, value: Callable[[PartitionLog], int]) -> Callable[[], Labelled]:
        def read() -> Labelled:
            return [
                (
                    sum(map(value, topic.partitions)),
                    {"topic": topic.name},
                )
                for topic in tuple(self._engine.topics.values())
            ]

        return read

    def watch_groups(self, groups: Mapping[tuple[str, str], Group]) -> None:
        """Register what is told by group; `groups` is read whenever somebody looks."""

        def each(value: Callable[[Group], int]) -> Callable[[], Labelled]:
            return lambda: [
                (value(group), {"topic": topic, "group": name})
                for (topic, name), group in tuple(groups.items())
            ]

        count, level = self._telemetry.observe_counter, self._telemetry.observe_gauge
        level("gputel_broker_group_members", "Members", each(lambda g: len(g.members)))
        level("gputel_broker_group_lag_messages", "Messages not done", each(self._lag))
        level(
            "gputel_broker_group_in_flight_messages",
            "Messages delivered and not done",
            each(lambda g: sum(cursor.in_flight for cursor in g.cursors)),
        )
        count(
            "gputel_broker_redeliveries",
            "Messages delivered again",
            each(lambda g: sum(cursor.redelivered for cursor in g.cursors)),
        )
        count("gputel_broker_ack_timeouts", "Messages not done in time", each(lambda g: g.timeouts))
        count("gputel_broker_late_acks", "Answers for what was not held", each(lambda g: g.late))
        count("gputel_broker_leases_lost", "Members lost", each(lambda g: g.leases_lost))

    def _lag(self, group: Group) -> int:
        logs = self._engine.topics[group.topic].partitions
        return sum(
            max(logs[index].next_offset - floor, 0) for index, floor in group.positions.items()
        )

    def _check_partitions(self) -> str | None:
        failed = [f"{p.name}: {p.failure}" for p in self._partitions() if p.failure]
        return "; ".join(failed) or None
