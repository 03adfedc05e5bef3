"""The broker's gRPC port: streams and admin calls over an engine."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gputel import limits
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker import names, statuses, transport
from gputel.broker.admin import Admin
from gputel.broker.background import Background, first_of
from gputel.broker.consume_stream import ConsumeStream
from gputel.broker.counters import Counters
from gputel.broker.dead_letters import Undertaker
from gputel.broker.engine import Engine, NoRoom
from gputel.broker.groups import Group
from gputel.broker.publish_stream import PublishStream
from gputel.broker.read_ahead import Room
from gputel.broker.registry import Registry
from gputel.broker.settings import BrokerSettings
from gputel.broker.statuses import Context
from gputel.clock import SYSTEM_CLOCK, Clock
from gputel.errors import BrokerUnavailable, GputelError, InputError, PortInUse
from gputel.observe import Health, Telemetry, bind

log = logging.getLogger(__name__)

SERVICE: Final = "gputel.mq.v1.Broker"
TICK_S: Final = 0.1
SAVE_S: Final = 0.5
STOP_GRACE_S: Final = 2.0
ACK_TIMEOUT_MS_DEFAULT: Final = 30_000
ACK_TIMEOUT_MS_MAX: Final = 24 * 3600 * 1000

OPTIONS: Final = (
    # Two brokers must never share a port.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", limits.GRPC_MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", limits.GRPC_MESSAGE_BYTES_MAX),
    # A frame of usual size, or a batch, comes in one go instead of waiting for window updates.
    ("grpc.http2.lookahead_bytes", limits.FRAME_BYTES_MAX),
    ("grpc.max_concurrent_streams", limits.BROKER_STREAMS_MAX),
    # Clients may ask every two seconds whether we live; we ask them after ten.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 2_000),
    ("grpc.http2.max_ping_strikes", 0),  # pings are cheap, a lost stream is not
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 15_000),  # see transport.CHANNEL_OPTIONS
)


class BrokerServer:
    """A broker over `engine` (`engines.make_engine`), which it starts and stops."""

    def __init__(
        self,
        settings: BrokerSettings,
        engine: Engine,
        telemetry: Telemetry,
        health: Health,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._engine = engine
        self._undertaker = Undertaker(engine)
        self._background = Background()
        self._registry = Registry(engine, clock, self._background)
        self._observers: set[Group] = set()
        self._streams: set[PublishStream | ConsumeStream] = set()
        self._admin = Admin(engine, self._registry, self._undertaker)
        self._room = Room()
        self._numbers = itertools.count(1)
        self._server: grpc.aio.Server | None = None
        self._grpc_health = grpc_health.aio.HealthServicer()
        self._stopping = False
        self._address = ""
        counters = Counters(telemetry, health, engine, self._undertaker)
        counters.watch_groups(self._registry.groups)
        engine.observe(telemetry, health)
        telemetry.observe_gauge("gputel_broker_streams", "Open streams", lambda: len(self._streams))
        health.ready("listener", lambda: None if self._address else "not listening yet")
        health.live("background", lambda: self._background.problem or None)

    @property
    def address(self) -> str:
        """`host:port` that is really bound; empty before `start`."""
        return self._address

    async def start(self) -> None:
        """Open the log and listen. PortInUse, InputError."""
        host, port = _parse(self._settings.listen)
        if port:  # gRPC itself does not say why it can't bind
            bind("broker", host, port).close()
        await self._engine.start()
        try:
            await self._registry.start()
            await self._listen(host, port)
        except BaseException:
            await self.stop()
            raise
        self._background.start(self._tick(), "broker-tick")
        self._background.start(self._keep(), "broker-keep")

    async def _listen(self, host: str, port: int) -> None:
        server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=limits.BROKER_CALLS_MAX)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, self._handlers()),)
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._grpc_health, server)
        services = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        reflection.enable_server_reflection((*services, reflection.SERVICE_NAME), server)
        shown = f"[{host}]" if ":" in host else host
        try:
            bound = server.add_insecure_port(f"{shown}:{port}")
        except RuntimeError:
            raise PortInUse("broker", f"{shown}:{port}") from None
        self._server = server
        await server.start()
        for service in ("", *services):
            await self._grpc_health.set(service, health_pb2.HealthCheckResponse.SERVING)
        self._address = f"{shown}:{bound}"

    async def stop(self) -> None:
        """Acknowledge what was taken, end all streams, save the positions. Idempotent."""
        self._stopping = True
        self._address = ""
        if self._server is not None:
            await self._grpc_health.enter_graceful_shutdown()
            for stream in tuple(self._streams):
                stream.drain()
            await self._server.stop(STOP_GRACE_S)
            self._server = None
        await self._background.stop()
        try:
            with contextlib.suppress(OSError):
                await self._registry.stop()
        finally:
            await self._engine.stop()

    async def until_failed(self) -> None:
        """Raises BrokerUnavailable once a new process would do what this one can't any more."""
        reason = await first_of(self._engine.until_failed(), self._background.until_ended())
        raise BrokerUnavailable(f"{reason}: ending", hint="a supervisor starts the broker anew")

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        return {
            "Publish": grpc.stream_stream_rpc_method_handler(
                self._publish,
                request_deserializer=transport.read_published,
                response_serializer=mq.PublishResponse.SerializeToString,
            ),
            "Consume": grpc.stream_stream_rpc_method_handler(
                self._consume,
                request_deserializer=mq.ConsumeRequest.FromString,
                response_serializer=transport.write_consumed,
            ),
            **self._admin.handlers(),
        }

    # Handlers take the context's reader and writer; the iterator is gRPC's older interface.

    async def _publish(self, _: object, context: Context) -> None:
        stream = PublishStream(self._engine, context)
        await self._serve(context, stream, stream.run)

    async def _consume(self, _: object, context: Context) -> None:
        first = await context.read()
        if first is grpc.aio.EOF:
            return
        try:
            stream, group = await self._open_consumer(context, first)
        except (GputelError, OSError) as error:
            await statuses.refuse(context, error)
            return
        if not group.name:
            self._observers.add(group)
        try:
            await self._serve(context, stream, stream.run)
        finally:
            self._observers.discard(group)

    async def _serve(
        self,
        context: Context,
        stream: PublishStream | ConsumeStream,
        run: Callable[[], Awaitable[None]],
    ) -> None:
        try:
            if self._stopping:
                raise BrokerUnavailable("the broker is stopping")
            if len(self._streams) >= limits.BROKER_STREAMS_MAX:
                raise NoRoom(f"this broker serves {len(self._streams)} streams, the most it may")
            self._streams.add(stream)
            try:
                await run()
            finally:
                self._streams.discard(stream)
        except (GputelError, OSError) as error:
            await statuses.refuse(context, error)

    async def _open_consumer(
        self, context: Context, request: mq.ConsumeRequest
    ) -> tuple[ConsumeStream, Group]:
        if request.WhichOneof("request") != "open":
            raise InputError("the first request of a Consume stream must be `open`")
        opened = request.open
        names.check_topic(opened.topic)
        if opened.ack_timeout_ms > ACK_TIMEOUT_MS_MAX:
            raise InputError(
                f"ack_timeout_ms: {opened.ack_timeout_ms}, at most {ACK_TIMEOUT_MS_MAX} are allowed"
            )
        opened.ack_timeout_ms = opened.ack_timeout_ms or ACK_TIMEOUT_MS_DEFAULT
        if opened.start_at == mq.START_AT_UNSPECIFIED:
            opened.start_at = mq.START_AT_EARLIEST if opened.group else mq.START_AT_LATEST
        if opened.group:
            names.check_group(opened.group)
        topic = await self._engine.open_topic(opened.topic)
        logs = topic.partitions
        if opened.group:
            group = self._registry.open(opened.topic, opened.group, len(logs))
        else:
            group = Group(opened.topic, "", len(logs), {}, tracked=False)
        # Dead letters have nowhere to go when nobody acknowledges them: they stay.
        is_last = names.dead_letters(opened.topic) is None
        max_deliver = 0 if is_last else opened.max_deliver or self._settings.max_deliver
        name = f"{context.peer()}#{next(self._numbers)}"
        stream = ConsumeStream(
            context, group, logs, opened, name, max_deliver, self._clock, self._room
        )
        return stream, group

    async def _tick(self) -> None:
        while True:
            now_ns = self._clock.monotonic_ns()
            self._registry.tick(now_ns)
            for group in tuple(self._observers):
                group.tick(now_ns)
            await self._clock.sleep(TICK_S)

    async def _keep(self) -> None:
        """Dead letters and positions: what has to wait for the disk."""
        while True:
            await self._clock.sleep(SAVE_S)
            for group in tuple(self._registry.groups.values()):
                await self._undertaker.bury(group)
            try:
                await self._registry.save()
            except OSError as error:
                log.error("can't save the positions of consumer groups yet: %s", error)


def _parse(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise InputError(f"broker.listen: {listen!r} is no `host:port`")
    return host.strip("[]"), int(port)
