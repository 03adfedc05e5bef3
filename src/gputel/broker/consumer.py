"""The consuming side: a member of a group, or an observer.

What was delivered and not settled (acknowledged, nak'ed or given up) never exceeds the
credit, in messages and bytes. For an observer a delivery is settled when it is taken.
After a reconnect a member starts afresh: what it held is delivered again. An observer goes
on behind the last delivery it got.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from enum import Enum
from types import TracebackType
from typing import Final, NamedTuple, Self

import grpc.aio

from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker import transport
from gputel.broker.background import first_of
from gputel.broker.rotation import Rotation
from gputel.clock import Clock
from gputel.errors import GputelError
from gputel.kernels import DeliveryFields

log = logging.getLogger(__name__)

HEARTBEAT_S: Final = 5.0
CLOSE_GRACE_S: Final = 1.0

OnAssign = Callable[[int], Awaitable[int | None]]
OnRevoke = Callable[[int], Awaitable[None]]


class StartAt(Enum):
    """Where a group without a position, or an observer, begins."""

    EARLIEST = mq.START_AT_EARLIEST
    LATEST = mq.START_AT_LATEST


class Delivery(NamedTuple):
    """One message, as the broker hands it out. `attempt` counts from 1."""

    partition: int
    offset: int
    stored_at_ns: int
    attempt: int
    producer: str
    epoch: int
    sequence: int
    payload: bytes


class Consumer:
    """Made by `BrokerClient.consumer`; use it as `async with consumer: async for delivery ...`."""

    def __init__(
        self,
        rotation: Rotation,
        open_: mq.ConsumeOpen,
        *,
        messages: int,
        bytes_: int,
        on_assign: OnAssign | None,
        on_revoke: OnRevoke | None,
        clock: Clock,
    ) -> None:
        self._rotation = rotation
        self._open = open_
        self._observer = not open_.group
        self._messages_max = messages
        self._bytes_max = bytes_
        self._on_assign = on_assign
        self._on_revoke = on_revoke
        self._clock = clock
        self._queue: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._held: dict[tuple[int, int], int] = {}  # what was delivered: its bytes
        self._held_bytes = 0
        self._resume_at: dict[int, int] = {}  # an observer's next offsets
        self._assignment: dict[int, asyncio.Task[None]] = {}
        self._outbox: deque[mq.ConsumeRequest] = deque()
        self._acks: dict[int, list[int]] = {}
        self._credit_messages = 0
        self._credit_bytes = 0
        self._wake_writer = asyncio.Event()
        self._failure: BaseException | None = None
        self._closed = False
        self._leaving = False
        self._task: asyncio.Task[None] | None = None
        self.connected = False
        self.reconnects = 0

    @property
    def assignment(self) -> frozenset[int]:
        """The partitions this consumer holds now."""
        return frozenset(self._assignment)

    @property
    def waiting_messages(self) -> int:
        """Deliveries that can be taken without waiting."""
        return len(self._queue)

    async def __aenter__(self) -> Self:
        if self._failure is None:
            self._task = asyncio.create_task(self._run(), name=f"consumer-{self._open.group}")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave the group; what is not settled is delivered to another member.

        Acknowledgements that were given are said before, for CLOSE_GRACE_S at most.
        """
        self._closed = True
        if self._task is not None:
            self._wake_writer.set()
            if self.connected:
                await asyncio.wait({self._task}, timeout=CLOSE_GRACE_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._arrived.set()

    async def abort(self, failure: GputelError) -> None:
        """Stop at once; who waits, or takes a delivery later, gets `failure`."""
        self._failure = self._failure or failure
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._arrived.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        """The next delivery; raises what the broker refused or a callback raised."""
        while not self._queue:
            if self._failure is not None:
                raise self._failure
            if self._closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        delivery = self._queue.popleft()
        if self._observer:
            self._settle(delivery.partition, delivery.offset)
        return delivery

    async def ack(self, partition: int, offsets: Sequence[int]) -> None:
        """These messages are done. Never waits for the broker."""
        self._acks.setdefault(partition, []).extend(offsets)
        for offset in offsets:
            self._settle(partition, offset)
        self._wake_writer.set()

    async def nak(self, partition: int, offset: int, delay_s: float) -> None:
        """Deliver this message again after `delay_s`."""
        self._settle(partition, offset)
        delay_ms = round(delay_s * 1000)
        self._send(nak=mq.Nak(partition=partition, offset=offset, delay_ms=delay_ms))

    async def in_progress(self, partition: int, offsets: Sequence[int]) -> None:
        """Still busy with these: their acknowledgement timeout begins anew."""
        self._send(
            in_progress=mq.InProgress(offsets=[mq.Offsets(partition=partition, offsets=offsets)])
        )

    async def term(self, partition: int, offset: int, reason: str) -> None:
        """Give this message up: it goes to the dead letters."""
        self._settle(partition, offset)
        self._send(term=mq.Term(partition=partition, offset=offset, reason=reason))

    # -- credit ------------------------------------------------------------------------

    def _settle(self, partition: int, offset: int) -> None:
        size_bytes = self._held.pop((partition, offset), None)
        if size_bytes is not None:
            self._held_bytes -= size_bytes
            self._give_credit(1, size_bytes)

    def _give_credit(self, messages: int, size_bytes: int) -> None:
        self._credit_messages += messages
        self._credit_bytes += size_bytes
        if self._credit_is_due():
            self._wake_writer.set()

    def _credit_is_due(self) -> bool:
        """A quarter of the window at a time, or as much as the broker has left: it never runs dry.

        PERF(credit): a request for each delivery would cost both sides as much as the delivery.
        """
        left_messages = self._messages_max - len(self._held) - self._credit_messages
        left_bytes = self._bytes_max - self._held_bytes - self._credit_bytes
        return self._credit_messages >= min(self._messages_max / 4, max(left_messages, 1)) or (
            self._credit_bytes >= min(self._bytes_max / 4, max(left_bytes, 1))
        )

    def _send(self, **request: object) -> None:
        self._outbox.append(mq.ConsumeRequest(**request))  # type: ignore[arg-type]
        self._wake_writer.set()

    # -- connection --------------------------------------------------------------------

    @property
    def _broker(self) -> str:
        return f"broker {self._rotation.address}"

    async def _run(self) -> None:
        try:
            while True:
                try:
                    await self._connection()
                except grpc.aio.AioRpcError as error:
                    failure = transport.fatal(error)
                    if failure is not None:
                        raise failure from None
                    if self.connected:
                        log.warning("%s: connection lost: %s", self._broker, transport.said(error))
                except TimeoutError:
                    log.debug("%s: no answer in %s s", self._broker, transport.OPEN_TIMEOUT_S)
                finally:
                    self.connected = False
                    await self._assign(frozenset(), 0)
                if self._closed:
                    return
                self.reconnects += 1
                await self._clock.sleep(self._rotation.move_on())
        except Exception as failure:  # whoever takes deliveries is told of any
            self._fail(failure)

    def _fail(self, failure: Exception) -> None:
        self._failure = self._failure or failure
        self._arrived.set()

    async def _connection(self) -> None:
        self._outbox.clear()
        self._acks.clear()
        self._leaving = False
        if not self._observer:
            self._queue.clear()
            self._held.clear()
            self._held_bytes = 0
        call = transport.consume_call(self._rotation.channel)
        try:
            async with asyncio.timeout(transport.OPEN_TIMEOUT_S):
                await call.write(mq.ConsumeRequest(open=self._open))
                first = await transport.next_response(call)
            if first is None:
                return
            self.connected = True
            self._rotation.serves()
            self._credit_messages = self._messages_max - len(self._held)
            self._credit_bytes = max(1, self._bytes_max - self._held_bytes)
            self._wake_writer.set()
            await first_of(
                transport.converse(self._read(call), self._write(call)), self._leave_for_home()
            )
        finally:
            call.cancel()

    async def _leave_for_home(self) -> None:
        """End the stream as `close` does, once the broker that it began at is there again."""
        await self._rotation.until_home(self._clock)
        self._leaving = True
        self._wake_writer.set()
        await asyncio.Event().wait()  # the broker ends it when it has taken in what was said

    async def _read(self, call: transport.ConsumeCall) -> None:
        while True:
            response = await transport.next_response(call)
            if response is None:
                return
            if isinstance(response, list):
                self._receive(response)
            elif response.WhichOneof("response") == "assignment":
                assigned = frozenset(response.assignment.partitions)
                await self._assign(assigned, response.assignment.generation)

    def _receive(self, batch: Iterable[DeliveryFields]) -> None:
        for d in map(Delivery._make, batch):
            if d.partition not in self._assignment:
                self._give_credit(1, len(d.payload))
                continue
            self._settle(d.partition, d.offset)  # it came again: that spent credit, too
            self._held[d.partition, d.offset] = len(d.payload)
            self._held_bytes += len(d.payload)
            if self._observer:
                self._resume_at[d.partition] = d.offset + 1
            self._queue.append(d)
        self._arrived.set()
        if self._credit_is_due():
            self._wake_writer.set()

    async def _write(self, call: transport.ConsumeCall) -> None:
        while True:
            silent = False
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._wake_writer.wait()
            except TimeoutError:
                silent = True
            self._wake_writer.clear()
            # What is given while something is written comes before the end, too.
            while self._acks or self._outbox:
                if self._acks:
                    acks, self._acks = self._acks, {}
                    offsets = [mq.Offsets(partition=p, offsets=o) for p, o in acks.items()]
                    await call.write(mq.ConsumeRequest(ack=mq.Ack(offsets=offsets)))
                else:
                    await call.write(self._outbox.popleft())
            if self._closed or self._leaving:
                await call.done_writing()  # the broker ends the stream when it has read all
                return
            if silent or self._credit_is_due():
                credit = mq.Credit(messages=self._credit_messages, bytes=self._credit_bytes)
                self._credit_messages = self._credit_bytes = 0
                await call.write(mq.ConsumeRequest(credit=credit))

    # -- assignment --------------------------------------------------------------------

    async def _assign(self, assigned: frozenset[int], generation: int) -> None:
        revoked = [p for p in self._assignment if p not in assigned]
        for partition in revoked:
            task = self._assignment.pop(partition)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if not self._observer:
                self._forget(partition)
            if self._on_revoke is not None:
                await self._on_revoke(partition)
        for partition in sorted(assigned - self._assignment.keys()):
            # In a task of its own: a callback may wait long (for another member's lock).
            self._assignment[partition] = asyncio.create_task(
                self._take_over(partition, generation), name=f"assign-{partition}"
            )

    async def _take_over(self, partition: int, generation: int) -> None:
        try:
            next_offset = self._resume_at.get(partition)
            if self._on_assign is not None:
                next_offset = await self._on_assign(partition)
        except Exception as failure:  # whoever takes deliveries is told of any
            self._fail(failure)
            return
        self._send(
            position=mq.Position(
                partition=partition, next_offset=next_offset, generation=generation
            )
        )

    def _forget(self, partition: int) -> None:
        self._queue = deque(d for d in self._queue if d.partition != partition)
        for key in [key for key in self._held if key[0] == partition]:
            self._settle(*key)
