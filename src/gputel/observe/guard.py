"""A guard in front of uvicorn: no peer holds a connection by being slow or silent.

uvicorn ends idle connections, and nothing else: one that never sends its request, or never
reads its answer, stays for ever, and headers may grow without end. For ports that strangers
reach, and answers that are ready at once, the guard adds a deadline, a bound on the header
and a bound on the connections.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from typing import Any, Final

from gputel.observe.at_once import AtOnce, AtOnceProtocol

#: From the first byte of a request (or from the connection) to the last byte of its answer;
#: dcgm-exporter's read and write timeouts are the same.
REQUEST_DEADLINE_S: Final = 10.0
HEADER_BYTES_MAX: Final = 64 * 1024
CONNECTIONS_MAX: Final = 256


class Guard:
    """The bounds of one server, and how often they were needed.

    aborted    connections cut off, by reason: `deadline`, `header`, `evicted` (the one whose
               last request is the oldest makes room for a new one)
    """

    def __init__(
        self,
        *,
        deadline_s: float = REQUEST_DEADLINE_S,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        self.deadline_s = deadline_s
        self.connections_max = connections_max
        self.aborted: Counter[str] = Counter(deadline=0, header=0, evicted=0)

    def protocol(self, at_once: AtOnce | None = None) -> type[asyncio.Protocol]:
        """The protocol class for uvicorn's `http` option. `at_once` is asked before the
        application."""
        asked = None if at_once is None else staticmethod(at_once)
        return type("Guarded", (_Guarded,), {"guard": self, "at_once": asked})


class _Guarded(AtOnceProtocol):
    guard: Guard

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._began = 0.0
        self._in_header = True
        self._header_bytes = 0
        self._owed = 0  # answers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()
        if len(self.connections) > self.guard.connections_max:
            held = [c for c in self.connections if isinstance(c, _Guarded)]
            min(held, key=lambda connection: connection._began)._abort("evicted")

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # Not in `on_message_begin`: blank lines before a request stop uvicorn's idle timer, too.
        if not (self._in_header or self._owed):
            self._in_header = True
            self._arm()
        self._header_bytes += len(data)
        super().data_received(data)
        if self._in_header and self._header_bytes > HEADER_BYTES_MAX:
            self._abort("header")

    def on_message_begin(self) -> None:
        self._in_header = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_header = False
        self._header_bytes = 0
        self._owed += 1
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        self._owed -= 1
        if self._owed:
            self._arm()
        super().on_response_complete()

    def _arm(self) -> None:
        self._disarm()
        self._began = self.loop.time()
        self._deadline = self.loop.call_later(self.guard.deadline_s, self._expired)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expired(self) -> None:
        self._deadline = None
        # An answer that is written may still wait for its reader in the transport's buffer.
        if self._in_header or self._owed or self.transport.get_write_buffer_size():
            self._abort("deadline")

    def _abort(self, reason: str) -> None:
        self.guard.aborted[reason] += 1
        self._disarm()
        self.connections.discard(self)
        # With a reset the kernel lets go of what the peer does not read, too.
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
