"""Answers that lie ready: the protocol writes them itself, where it would ask the application.

For a plain GET uvicorn makes a cycle, a task and another turn of the loop, and Falcon a request
and a response; that is half of what a scrape costs. Whatever is not plain (another method,
a body, a connection that ends, requests queued behind each other) is the application's still, and
so is every error: it has the same resource, and knows how to say what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from httptools import HttpParserError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Answer(NamedTuple):
    """A response of status 200; `header` is lines of `name: value`, each with its CRLF, without
    Date and Content-Length."""

    header: bytes
    body: bytes


#: Path with query, and header by lower-case name, to the answer; None: ask the application.
AtOnce = Callable[[bytes, Mapping[bytes, bytes]], Answer | None]

# Falcon knows no other on a connection like ours, and would fail with a traceback in the log.
_VERSIONS: Final = frozenset({"1.0", "1.1"})
_OF_A_BODY: Final = frozenset({b"content-length", b"transfer-encoding", b"expect"})


class AtOnceProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with `at_once` in front of the application."""

    at_once: AtOnce | None = None
    _answered = False  # the request that is read now
    _first = True  # of those in what has been received last

    def data_received(self, data: bytes) -> None:
        self._first = True
        super().data_received(data)

    def on_headers_complete(self) -> None:
        if self.parser.get_http_version() not in _VERSIONS:
            raise HttpParserError("another version")  # answered with 400, as what is no HTTP
        self._answered = self.at_once is not None and self._is_plain() and self._answer()
        if not self._answered:
            # It runs since the answer to the request before, if that came in the same packet.
            self._unset_keepalive_if_required()
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self._answered:
            super().on_message_complete()

    def _is_plain(self) -> bool:
        """A GET without a body, on a connection that goes on and on which nothing waits."""
        # Of many requests in one packet only the first is answered at once: the others take turns
        # with the rest of the process, and wait until the peer has read.
        return (
            self._first
            # None before the connection's first request, whatever its annotation says.
            and (self.cycle is None or self.cycle.response_complete)  # type: ignore[redundant-expr]
            and not self.transport.get_write_buffer_size()
            and not self.transport.is_closing()
            and self.parser.get_method() == b"GET"
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
            and not self.parser.should_upgrade()
        )

    def _answer(self) -> bool:
        header = dict(self.headers)
        if len(header) != len(self.headers) or not _OF_A_BODY.isdisjoint(header):
            return False
        assert self.at_once is not None
        try:
            answer = self.at_once(self.url, header)
        except Exception:  # the application fails in the same way, and tells of it
            return False
        if answer is None:
            return False
        date = b"".join([b"%b: %b\r\n" % pair for pair in self.server_state.default_headers])
        head = b"HTTP/1.1 200 OK\r\n%b%bcontent-length: %d\r\n\r\n"
        head %= date, answer.header, len(answer.body)
        self._first = False
        self.transport.writelines([head, answer.body])
        self.on_response_complete()
        return True
