"""One connected client: its reader obeys messages, its writer sends what is due.

Nothing queues up without bound: answers to the client's own messages are limited, values
live in one slot a subscription. A client that takes nothing for `STALL_S` seconds, or asks
faster than it reads, is cut off.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import falcon
from falcon.asgi import WebSocket

from gputel.clock import Clock
from gputel.stream import protocol
from gputel.stream.feed import Slot
from gputel.stream.protocol import MessageInvalid, Ping, Subscribe, Unsubscribe

if TYPE_CHECKING:
    from gputel.stream.hub import Hub

log = logging.getLogger(__name__)

STALL_S: Final = 10.0
ANSWERS_MAX: Final = 64
SUBSCRIPTIONS_MAX: Final = 16
CLOSE_POLICY: Final = 1008
CLOSE_GOING_AWAY: Final = 1001


class Client:
    """Serves one WebSocket until it ends."""

    def __init__(
        self,
        hub: Hub,
        socket: WebSocket,
        abort: Callable[[], None] | None,
        clock: Clock,
        heartbeat_s: float,
    ) -> None:
        self._hub = hub
        self._socket = socket
        self._abort = abort
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._stall_s = STALL_S
        self._answers: deque[str] = deque()
        self._slots: dict[str, Slot] = {}
        self._wake = asyncio.Event()
        self._over: tuple[int, str] | None = None
        self.cut_off: str | None = None  # the reason, once it was

    def tell(self, text: str) -> None:
        """Send `text` as soon as possible; too many unsent texts end the connection."""
        if len(self._answers) >= ANSWERS_MAX:
            self.end(CLOSE_POLICY, "reads too slowly")
            self.cut_off = "flood"
            return
        self._answers.append(text)
        self._wake.set()

    def end(self, code: int, reason: str) -> None:
        """Close the connection once the writer gets to it."""
        self._over = self._over or (code, reason)
        self._wake.set()

    async def serve(self) -> None:
        """Return when the client has gone or was cut off."""
        self.tell(protocol.hello(self._hub.source, self._heartbeat_s, self._clock.time_ns()))
        reader = asyncio.create_task(self._read(), name="stream-reader")
        try:
            await self._write()
        except (falcon.WebSocketDisconnected, falcon.OperationNotAllowed):
            pass
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            for slot in self._slots.values():
                self._hub.leave(slot)

    async def _read(self) -> None:
        try:
            while True:
                try:
                    text = await self._socket.receive_text()
                except falcon.PayloadTypeError:
                    raise MessageInvalid(
                        "invalid_message", "messages are text, not binary"
                    ) from None
                try:
                    self._obey(protocol.parse_message(text))
                except MessageInvalid as problem:
                    self.tell(protocol.error(problem))
        except MessageInvalid as problem:
            self.tell(protocol.error(problem))
            self.end(1003, str(problem))
        except (falcon.WebSocketDisconnected, falcon.OperationNotAllowed):
            self.end(CLOSE_GOING_AWAY, "disconnected")

    def _obey(self, message: protocol.Message) -> None:
        match message:
            case Subscribe():
                self._subscribe(message)
            case Unsubscribe(id=id):
                slot = self._slots.pop(id, None)
                if slot is None:
                    raise MessageInvalid("unknown_id", "there is no such subscription", id)
                self._hub.leave(slot)
                self.tell(protocol.unsubscribed(id))
            case Ping(id=id):
                self.tell(protocol.pong(id, self._clock.time_ns()))

    def _subscribe(self, message: Subscribe) -> None:
        if message.id not in self._slots and len(self._slots) >= SUBSCRIPTIONS_MAX:
            raise MessageInvalid(
                "too_many", f"{SUBSCRIPTIONS_MAX} subscriptions at most", message.id
            )
        selection = protocol.select(message)
        old = self._slots.pop(message.id, None)
        if old is not None:
            self._hub.leave(old)
        slot = self._hub.join(message.id, selection, self._wake)
        self._slots[message.id] = slot
        self.tell(protocol.subscribed(message.id, selection))
        self.tell(protocol.values("snapshot", message.id, 0, slot.feed.state()))

    async def _write(self) -> None:
        while True:
            if not self._wake.is_set():
                await self._idle()
            self._wake.clear()
            while self._answers:
                await self._send(self._answers.popleft())
            for slot in tuple(self._slots.values()):
                due = slot.take()
                if due is not None:
                    conflated, body = due
                    await self._send(protocol.values("update", slot.id, conflated, body))
            if self._over is not None:
                await self._close(*self._over)
                return

    async def _idle(self) -> None:
        try:
            async with asyncio.timeout(self._heartbeat_s):
                await self._wake.wait()
        except TimeoutError:
            await self._send(protocol.heartbeat(self._clock.time_ns()))

    async def _send(self, text: str) -> None:
        try:
            async with asyncio.timeout(self._stall_s):
                await self._socket.send_text(text)
        except TimeoutError:
            self.cut_off = "stalled"
            self._kill()
            raise falcon.WebSocketDisconnected from None
        self._hub.sent(len(text))

    async def _close(self, code: int, reason: str) -> None:
        try:
            async with asyncio.timeout(self._stall_s):
                await self._socket.close(code, reason)
        except TimeoutError:
            self.cut_off = self.cut_off or "stalled"
            self._kill()

    def _kill(self) -> None:
        # A peer that does not read would keep the socket and its buffer for ever.
        if self._abort is not None:
            self._abort()
