"""The publishing side of a producer: keeps every message until the broker has it on disk.

    unsent --write--> in flight --ack--> gone
       ^                  |
       +---- reconnect ---+     same order, same sequences: the broker knows repeats

Nothing is given up: what finds no room stays the caller's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

import grpc.aio
import msgspec

from gputel import kernels, limits
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker import transport
from gputel.broker.background import first_of
from gputel.broker.pace import REQUESTS_S, Pace
from gputel.broker.rotation import Rotation
from gputel.clock import NS_PER_S, Clock
from gputel.errors import BrokerUnavailable, FrameTooLarge, GputelError, ProducerFenced

log = logging.getLogger(__name__)

IN_FLIGHT_BYTES_MAX: Final = 8 * limits.MIB


class _Message(msgspec.Struct, frozen=True, gc=False):
    sequence: int
    key: str
    payload: bytes


class Publisher:
    """One producer's stream of messages; made by `BrokerClient.publisher`."""

    def __init__(
        self,
        rotation: Rotation,
        topic: str,
        producer: str,
        epoch: int,
        *,
        pending_bytes: int,
        clock: Clock,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._rotation = rotation
        self._open = mq.PublishOpen(topic=topic, producer=producer, epoch=epoch)
        self._pending_bytes_max = pending_bytes
        self._clock = clock
        self._on_change = on_change
        self._unsent: deque[_Message] = deque()
        self._in_flight: deque[_Message] = deque()
        self._in_flight_bytes = 0
        self._throttled_until_ns = 0
        self._pace = Pace(REQUESTS_S)
        self._changed = asyncio.Event()  # something for the writer to do
        self._room = asyncio.Event()  # something was acknowledged, or failed
        self._failure: Exception | None = None
        self._closed = False
        self.last_acked_sequence = 0
        self.pending_size_bytes = 0
        self.connected = False
        self.reconnects = 0
        self._task = asyncio.create_task(self._run(), name=f"publisher-{producer}")

    @property
    def pending_messages(self) -> int:
        """Messages that are not acknowledged yet."""
        return len(self._unsent) + len(self._in_flight)

    @property
    def _unsent_bytes(self) -> int:
        return self.pending_size_bytes - self._in_flight_bytes

    @property
    def fenced(self) -> ProducerFenced | None:
        """Set once a newer epoch of this producer has published."""
        return self._failure if isinstance(self._failure, ProducerFenced) else None

    def offer(self, sequence: int, key: str, payload: bytes) -> bool:
        """Take a message if there is room for it. Sequences must grow.

        Raises FrameTooLarge, ProducerFenced, or what the broker refused before.
        """
        self._check()
        if len(payload) > limits.FRAME_BYTES_MAX:
            raise FrameTooLarge(len(payload), limits.FRAME_BYTES_MAX)
        if (
            self.pending_size_bytes + len(payload) > self._pending_bytes_max
            and self.pending_size_bytes
        ):
            return False
        self._unsent.append(_Message(sequence, key, payload))
        self.pending_size_bytes += len(payload)
        self._changed.set()
        if self._unsent_bytes >= limits.BATCH_BYTES_MAX:
            self._pace.hurry()
        return True

    async def publish(self, sequence: int, key: str, payload: bytes) -> None:
        """Take a message, waiting until there is room; raises as `offer` does."""
        while not self.offer(sequence, key, payload):
            self._room.clear()
            await self._room.wait()

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything is acknowledged; False when the time is over before."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.pending_messages:
                    self._check()
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Stop at once; `flush` first to lose nothing."""
        self._closed = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._room.set()

    async def abort(self, failure: GputelError) -> None:
        """Stop at once; who waits, or calls later, gets `failure`."""
        self._failure = self._failure or failure
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._room.set()

    @property
    def _broker(self) -> str:
        return f"broker {self._rotation.address}"

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise BrokerUnavailable("the publisher is closed")

    async def _run(self) -> None:
        try:
            await self._stay_connected()
        except Exception as failure:  # whoever publishes is told of any
            self._failure = failure
            log.error("%s", failure, exc_info=not isinstance(failure, GputelError))
            self._notify()

    async def _stay_connected(self) -> None:
        while True:
            try:
                await self._connection()
            except grpc.aio.AioRpcError as error:
                failure = transport.fatal(error, self._open.producer, self._open.epoch)
                if failure is not None:
                    raise failure from None
                if self.connected:
                    log.warning("%s: connection lost: %s", self._broker, transport.said(error))
            except TimeoutError:
                log.debug("%s: no answer in %s s", self._broker, transport.OPEN_TIMEOUT_S)
            finally:
                self.connected = False
            self.reconnects += 1
            await self._clock.sleep(self._rotation.move_on())

    async def _connection(self) -> None:
        """One stream, from open to its end; raises AioRpcError or TimeoutError."""
        self._unsent.extendleft(reversed(self._in_flight))
        self._in_flight.clear()
        self._in_flight_bytes = 0
        call = transport.publish_call(self._rotation.channel)
        try:
            async with asyncio.timeout(transport.OPEN_TIMEOUT_S):
                await call.write(mq.PublishRequest(open=self._open))
                first = await transport.next_response(call)
            if first is None:
                return
            self._acknowledge(first.opened.last_sequence)
            self.connected = True
            self._rotation.serves()
            await first_of(
                transport.converse(self._read(call), self._write(call)),
                self._rotation.until_home(self._clock),
            )
        finally:
            call.cancel()

    async def _read(self, call: transport.PublishCall) -> None:
        while True:
            response = await transport.next_response(call)
            if response is None:
                return
            kind = response.WhichOneof("response")
            if kind == "ack":
                self._acknowledge(response.ack.sequence)
            elif kind == "throttle":
                delay_ns = response.throttle.delay_ms * NS_PER_S // 1000
                self._throttled_until_ns = self._clock.monotonic_ns() + delay_ns

    async def _write(self, call: transport.PublishCall) -> None:
        while True:
            while not self._unsent or self._in_flight_bytes >= IN_FLIGHT_BYTES_MAX:
                self._changed.clear()
                await self._changed.wait()
            wait_ns = self._throttled_until_ns - self._clock.monotonic_ns()
            if wait_ns > 0:
                await self._clock.sleep(wait_ns / NS_PER_S)
                continue
            if self._in_flight and self._unsent_bytes < limits.BATCH_BYTES_MAX:
                await self._pace.wait()  # for more to go with it
            await call.write(self._take_batch())
            self._pace.wrote()

    def _take_batch(self) -> bytes:
        batch: list[_Message] = []
        size_bytes = 0
        while self._unsent:
            message = self._unsent[0]
            if size_bytes and size_bytes + len(message.payload) > limits.BATCH_BYTES_MAX:
                break
            self._unsent.popleft()
            self._in_flight.append(message)
            size_bytes += len(message.payload) + len(message.key) + 16
            batch.append(message)
            self._in_flight_bytes += len(message.payload)
        return kernels.encode_messages(batch)

    def _acknowledge(self, sequence: int) -> None:
        self.last_acked_sequence = max(self.last_acked_sequence, sequence)
        while self._in_flight and self._in_flight[0].sequence <= sequence:
            size_bytes = len(self._in_flight.popleft().payload)
            self._in_flight_bytes -= size_bytes
            self.pending_size_bytes -= size_bytes
        # Right after a reconnect everything is unsent, also what the broker has already.
        while not self._in_flight and self._unsent and self._unsent[0].sequence <= sequence:
            self.pending_size_bytes -= len(self._unsent.popleft().payload)
        self._changed.set()
        self._notify()

    def _notify(self) -> None:
        self._room.set()
        self._on_change()
