"""The broker's gRPC server over an engine. Payloads are bytes here and nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gputel import limits
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker.consuming import ConsumeStream, GroupState, LeaseExpired
from gputel.broker.deadletters import DeadLetters
from gputel.broker.engine import NoRoom, PartitionFailed
from gputel.broker.engine.embedded import EmbeddedEngine
from gputel.broker.groups import Member
from gputel.broker.names import check_group, check_topic
from gputel.broker.publishing import Counters, PublishStream
from gputel.broker.settings import BrokerSettings
from gputel.broker.transport import SERVICE
from gputel.clock import SYSTEM_CLOCK, Clock
from gputel.errors import FrameTooLarge, GputelError, InputError, ProducerFenced
from gputel.observe import Health, Telemetry, bind

log = logging.getLogger(__name__)

SAVE_PERIOD_S: Final = 1.0
STOP_GRACE_S: Final = 1.0
_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_send_message_length", limits.GRPC_MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", limits.GRPC_MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 2_000),
    ("grpc.http2.max_ping_strikes", 0),
)
_STATUS: Final[dict[type[GputelError], grpc.StatusCode]] = {
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    FrameTooLarge: grpc.StatusCode.INVALID_ARGUMENT,
    ProducerFenced: grpc.StatusCode.FAILED_PRECONDITION,
    PartitionFailed: grpc.StatusCode.UNAVAILABLE,
    LeaseExpired: grpc.StatusCode.UNAVAILABLE,
    NoRoom: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class BrokerServer:
    """Serves `gputel.mq.v1.Broker` from `data_dir`; `address` is known after `start`."""

    def __init__(
        self,
        settings: BrokerSettings,
        data_dir: Path,
        telemetry: Telemetry,
        health: Health,
        clock: Clock = SYSTEM_CLOCK,
        *,
        engine: EmbeddedEngine | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self.engine = engine or EmbeddedEngine(
            settings,
            data_dir,
            clock=clock,
            observe_commit_s=telemetry.histogram(
                "gputel_broker_commit_seconds", "Time of one group commit, fsync included"
            ),
        )
        self._dead_letters = DeadLetters(self.engine)
        self._counters = Counters()
        self._delivered = 0
        self._delivered_bytes = 0
        self._groups: dict[tuple[str, str], GroupState] = {}
        self._positions: dict[tuple[str, str], dict[int, int]] = {}
        self._streams: set[asyncio.Task[Any]] = set()
        self._members = 0
        self._server: grpc.aio.Server | None = None
        self._housekeeper: asyncio.Task[None] | None = None
        self.address = ""
        self._describe(telemetry, health)

    async def start(self) -> None:
        """Recover the log and listen; PortInUse or InputError when that can't be."""
        await self.engine.start()
        try:
            loaded = await self.engine.load_positions()
            self._positions = {key: dict(positions) for key, positions in loaded.items()}
            self._server = await self._listen()
            self._housekeeper = asyncio.create_task(self._keep_house(), name="broker-housekeeper")
        except BaseException:
            await self.engine.stop()
            raise

    async def stop(self) -> None:
        """End the streams, save positions, make durable what was accepted."""
        if self._housekeeper is not None:
            self._housekeeper.cancel()
            await asyncio.gather(self._housekeeper, return_exceptions=True)
        if self._server is not None:
            for task in tuple(self._streams):
                task.cancel()
            await self._server.stop(STOP_GRACE_S)
            self._server = None
        await self._save_positions()
        await self.engine.stop()

    async def _listen(self) -> grpc.aio.Server:
        host, _, port = self._settings.listen.rpartition(":")
        # A plain bind first: its errors are in words, gRPC's are not.
        bind("broker", host.strip("[]"), int(port)).close()
        server = grpc.aio.server(
            options=_OPTIONS, maximum_concurrent_rpcs=limits.BROKER_STREAMS_MAX
        )
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Publish": grpc.stream_stream_rpc_method_handler(
                self._guarded(self._publish),
                request_deserializer=mq.PublishRequest.FromString,
                response_serializer=mq.PublishResponse.SerializeToString,
            ),
            "Consume": grpc.stream_stream_rpc_method_handler(
                self._guarded(self._consume),
                request_deserializer=mq.ConsumeRequest.FromString,
                response_serializer=mq.ConsumeResponse.SerializeToString,
            ),
            "ListTopics": grpc.unary_unary_rpc_method_handler(
                self._list_topics,
                request_deserializer=mq.ListTopicsRequest.FromString,
                response_serializer=mq.ListTopicsResponse.SerializeToString,
            ),
            "ListGroups": grpc.unary_unary_rpc_method_handler(
                self._list_groups,
                request_deserializer=mq.ListGroupsRequest.FromString,
                response_serializer=mq.ListGroupsResponse.SerializeToString,
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        servicer = grpc_health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        await servicer.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        reflection.enable_server_reflection(
            (
                SERVICE,
                health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
                reflection.SERVICE_NAME,
            ),
            server,
        )
        bound = server.add_insecure_port(self._settings.listen)
        self.address = f"{host}:{bound}"
        await server.start()
        return server

    def _guarded(
        self, serve: Callable[[Any, Any], Awaitable[None]]
    ) -> Callable[[Any, Any], Awaitable[None]]:
        """Turn our errors into statuses, and remember the stream so that `stop` can end it."""

        async def guarded(requests: Any, context: Any) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._streams.add(task)
            try:
                await serve(requests, context)
            except GputelError as error:
                self._counters.refused += 1
                if isinstance(error, ProducerFenced):
                    context.set_trailing_metadata((("newer-epoch", str(error.newer_epoch)),))
                code = _STATUS.get(type(error), grpc.StatusCode.INTERNAL)
                await context.abort(code, str(error))
            finally:
                self._streams.discard(task)

        return guarded

    async def _publish(self, requests: Any, context: Any) -> None:
        await PublishStream(self.engine, self._clock, self._counters, context).serve(
            aiter(requests)
        )

    async def _consume(self, requests: Any, context: Any) -> None:
        incoming = aiter(requests)
        first: mq.ConsumeRequest | None = await anext(incoming, None)
        if first is None:
            return
        if first.WhichOneof("request") != "open":
            raise InputError("the first request of a stream must be `open`")
        opened = first.open
        name = check_group(opened.group) if opened.group else ""
        topic = await self.engine.open_topic(check_topic(opened.topic))
        self._members += 1
        member = Member(f"{name or 'observer'}-{self._members}", self._clock.monotonic_ns())
        key = (topic.name, name)
        if not name:
            state = GroupState(topic, member.name, {})
        elif key in self._groups:
            state = self._groups[key]
        else:
            if sum(1 for t, _ in self._groups if t == topic.name) >= limits.GROUPS_PER_TOPIC_MAX:
                raise NoRoom(f"topic {topic.name!r} has the most groups it may have")
            state = self._groups[key] = GroupState(topic, name, self._positions.get(key, {}))
        stream = ConsumeStream(
            state,
            member,
            opened,
            observer=not name,
            dead_letters=self._dead_letters,
            max_deliver=self._settings.max_deliver,
            clock=self._clock,
            context=context,
        )
        try:
            await stream.serve(incoming)
        finally:
            self._delivered += stream.delivered
            self._delivered_bytes += stream.delivered_bytes

    async def _list_topics(
        self, request: mq.ListTopicsRequest, context: Any
    ) -> mq.ListTopicsResponse:
        return mq.ListTopicsResponse(
            topics=[
                mq.Topic(
                    name=topic.name,
                    id=topic.id,
                    partitions=[
                        mq.Partition(
                            partition=plog.index,
                            first_offset=plog.first_offset,
                            next_offset=plog.next_offset,
                            size_bytes=plog.size_bytes,
                            segments=plog.segments,
                            failure=plog.failure,
                            damage=plog.damage,
                        )
                        for plog in topic.partitions
                    ],
                )
                for topic in self.engine.topics.values()
            ]
        )

    async def _list_groups(
        self, request: mq.ListGroupsRequest, context: Any
    ) -> mq.ListGroupsResponse:
        return mq.ListGroupsResponse(
            groups=[
                mq.Group(
                    topic=state.topic.name,
                    group=state.name,
                    members=len(state.group.members),
                    positions=[
                        mq.GroupPosition(
                            partition=partition,
                            next_offset=floor,
                            lag=max(0, state.topic.partitions[partition].next_offset - floor),
                            in_flight=cursor.in_flight
                            if (cursor := state.group.cursors.get(partition))
                            else 0,
                        )
                        for partition, floor in sorted(state.positions().items())
                    ],
                )
                for state in self._groups.values()
            ]
        )

    async def _keep_house(self) -> None:
        while True:
            await self._clock.sleep(SAVE_PERIOD_S)
            for state in self._groups.values():
                for member in state.group.expired(self._clock.monotonic_ns()):
                    log.warning(
                        "member %s of group %s is silent: its lease ends", member.name, state.name
                    )
                    state.streams[member].evict()
            try:
                await self._save_positions()
            except OSError as error:
                # Positions are a hint: a consumer's own store knows better, or reads again.
                log.error("can't save the positions of groups: %s", error)

    async def _save_positions(self) -> None:
        for (topic, name), state in tuple(self._groups.items()):
            positions = state.positions()
            if positions != state.saved:
                await self.engine.save_positions(topic, name, positions)
                state.saved = positions

    def _describe(self, telemetry: Telemetry, health: Health) -> None:
        counters = self._counters
        counter, gauge = telemetry.observe_counter, telemetry.observe_gauge
        counter("gputel_broker_published_messages", "Messages taken", lambda: counters.published)
        counter("gputel_broker_published_bytes", "Bytes taken", lambda: counters.published_bytes)
        counter(
            "gputel_broker_throttles",
            "Times producers were told to wait",
            lambda: counters.throttles,
        )
        counter(
            "gputel_broker_refused_streams",
            "Streams ended with an error status",
            lambda: counters.refused,
        )
        counter(
            "gputel_broker_delivered_messages",
            "Messages sent to consumers that have gone",
            lambda: self._delivered,
        )
        counter(
            "gputel_broker_dead_letters", "Messages given up", lambda: self._dead_letters.stored
        )
        counter(
            "gputel_broker_duplicate_messages",
            "Repeats recognised and not stored",
            lambda: sum(p.duplicates for t in self.engine.topics.values() for p in t.partitions),
        )
        counter(
            "gputel_broker_redeliveries",
            "Messages delivered again",
            lambda: sum(
                c.redeliveries for s in self._groups.values() for c in s.group.cursors.values()
            ),
        )
        counter(
            "gputel_broker_lost_messages",
            "Messages gone before a group settled them",
            lambda: sum(s.lost for s in self._groups.values()),
        )
        counter(
            "gputel_broker_rewound_positions",
            "Positions beyond the end of a log, moved to its first message",
            lambda: sum(s.rewound for s in self._groups.values()),
        )
        gauge("gputel_broker_log_bytes", "Size of a partition's log", self._log_bytes)
        gauge("gputel_broker_group_lag_messages", "Messages a group has yet to settle", self._lag)
        gauge(
            "gputel_broker_group_members",
            "Members of a group",
            lambda: [
                (len(s.group.members), {"topic": s.topic.name, "group": s.name})
                for s in self._groups.values()
            ],
        )
        health.ready("listening", lambda: None if self._server else "not listening yet")
        health.live("partitions", self._failures)

    def _log_bytes(self) -> list[tuple[int, dict[str, str]]]:
        return [
            (plog.size_bytes, {"topic": topic.name, "partition": str(plog.index)})
            for topic in self.engine.topics.values()
            for plog in topic.partitions
        ]

    def _lag(self) -> list[tuple[int, dict[str, str]]]:
        return [
            (
                max(0, state.topic.partitions[partition].next_offset - floor),
                {"topic": state.topic.name, "group": state.name, "partition": str(partition)},
            )
            for state in self._groups.values()
            for partition, floor in state.positions().items()
        ]

    def _failures(self) -> str | None:
        failed = [
            f"{topic.name}/{plog.index}: {plog.failure}"
            for topic in self.engine.topics.values()
            for plog in topic.partitions
            if plog.failure
        ]
        return "; ".join(failed) or None
