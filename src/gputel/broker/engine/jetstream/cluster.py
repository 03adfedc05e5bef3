"""The NATS cluster as the engine uses it: a connection, JetStream's API, and what it answers.

Errors are two: BrokerUnavailable, where nobody knows what has happened, and of its kind
Refused, which is the server's own word. Trying again may help against both.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from gputel import limits
from gputel.broker.settings import JetStreamSettings
from gputel.errors import BrokerUnavailable, InputError

log = logging.getLogger(__name__)

START_S: Final = 20.0
REQUEST_S: Final = 5.0
RECONNECT_S: Final[Any] = 0.2  # their annotation says int; a float does
CREATE_S: Final = 10.0
PING_S: Final = 2
PENDING_BYTES: Final = 2 * limits.PENDING_BYTES_MAX
NO_RESPONDERS: Final = "503"
READ_ENDS: Final = frozenset({"204", "404"})  # all that was asked for, nothing
#: JetStream's own error numbers.
MESSAGE_NOT_FOUND: Final = 10037
WRONG_LAST_SEQUENCE: Final = frozenset({10071, 10164})
NO_PEERS: Final = 10005
STREAM_DIFFERS: Final = 10058
NOT_ENABLED: Final = frozenset({10039, 10076})

Handler = Callable[[Msg], Awaitable[None]]


class Refused(BrokerUnavailable):
    """What a JetStream server answered instead of doing it."""

    def __init__(self, what: str, error: Mapping[str, Any]) -> None:
        self.number = int(error.get("err_code", 0))
        super().__init__(f"{what}: {error.get('description', 'refused')} ({self.number})")


class Stored(NamedTuple):
    """A message of a stream."""

    sequence: int
    headers: Mapping[str, str]
    data: bytes


class StreamState(NamedTuple):
    """What a stream holds."""

    first_sequence: int
    last_sequence: int
    messages: int
    size_bytes: int


class _Answer:
    """The answer to one request: a message, or those of a read up to the one that ends it."""

    def __init__(self, *, several: bool) -> None:
        self.messages: list[Stored] = []
        self.last: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._several = several

    def feed(self, message: Msg) -> None:
        headers = message.headers or {}
        if self._several and "Status" not in headers:
            self.messages.append(Stored(int(headers["Nats-Sequence"]), headers, message.data))
        elif not self.last.done():
            self.last.set_result(message)


class Cluster:
    """One connection to the cluster, which is made anew for ever when it is lost."""

    def __init__(self, settings: JetStreamSettings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._client = Client()
        self._answers: dict[str, _Answer] = {}
        self._numbers = count()
        self._inbox = ""
        #: Called when the connection is lost and when it is back.
        self.on_change: Callable[[], None] = lambda: None
        self.reconnects = 0
        self._closing = False
        self._last_error = ""
        self._refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def connected(self) -> bool:
        """Whether a server is connected now."""
        return self._client.is_connected

    async def connect(self) -> None:
        """Connect. BrokerUnavailable: no server answers; InputError: it can never work."""
        settings = self._settings
        options: dict[str, Any] = {}
        if settings.credentials_file:
            _check_readable(settings.credentials_file)
            options["user_credentials"] = settings.credentials_file
        if settings.tls:
            options["tls"] = _tls(settings)
        connecting = asyncio.ensure_future(
            self._client.connect(
                servers=list(settings.servers),
                name=self._name,
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnected,
                reconnected_cb=self._on_reconnected,
                connect_timeout=PING_S,
                reconnect_time_wait=RECONNECT_S,
                max_reconnect_attempts=-1,
                ping_interval=PING_S,
                max_outstanding_pings=2,
                pending_size=PENDING_BYTES,
                **options,
            )
        )
        try:
            # The client tries for ever, whatever the servers say.
            both: set[asyncio.Future[Any]] = {connecting, self._refused}
            await asyncio.wait(both, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
            if not connecting.done():
                raise self._refusal()
            connecting.result()
        except (OSError, ValueError, nats.errors.Error) as error:
            raise InputError(
                f"broker.jetstream: can't connect to {self._shown}: {error}",
                hint="check servers and credentials_file",
            ) from None
        finally:
            if not connecting.done():
                connecting.cancel()
                await asyncio.wait({connecting}, timeout=CREATE_S)
                await self.close()
        if self._client.max_payload < limits.NATS_PAYLOAD_BYTES_MAX:
            found = self._client.max_payload
            await self.close()
            raise InputError(
                f"broker.jetstream: {self._shown} takes messages of {found} bytes at most, "
                f"{limits.NATS_PAYLOAD_BYTES_MAX} are needed",
                hint="set max_payload in nats-server's configuration",
            )
        self._inbox = self._client.new_inbox()
        await self._client.subscribe(f"{self._inbox}.*", cb=self._on_answer, pending_bytes_limit=0)

    def _refusal(self) -> InputError | BrokerUnavailable:
        if self._refused.done():
            return InputError(
                f"broker.jetstream: {self._shown} refuses us: {self._refused.result()}",
                hint="check user and password in broker.jetstream.servers, or credentials_file",
            )
        return BrokerUnavailable(
            f"broker.jetstream: none of {self._shown} answers ({self._last_error or 'timeout'})",
            hint="is nats-server running there?",
        )

    async def close(self) -> None:
        """Let go of the connection, if there ever was one."""
        self._closing = True
        if self._client.connected_url is None and not self._client.is_reconnecting:
            return
        self._closing = True
        with contextlib.suppress(OSError, nats.errors.Error):
            await self._client.close()

    @property
    def _shown(self) -> str:
        return ", ".join(self._settings.addresses)

    async def subscribe(self, subject: str, handler: Handler) -> None:
        """Have `handler` called for each message; it lasts over reconnects."""
        await self._client.subscribe(subject, cb=handler)

    async def announce(self, subject: str, data: bytes) -> None:
        """Tell whoever listens now; lost when nobody does."""
        with contextlib.suppress(OSError, nats.errors.Error):
            await self._client.publish(subject, data)

    async def call(
        self, operation: str, body: object = None, *, timeout_s: float = REQUEST_S
    ) -> dict[str, Any]:
        """Ask JetStream's API; its answer. Refused, BrokerUnavailable."""
        data = b"" if body is None else json.dumps(body).encode()
        answer = await self._request(f"$JS.API.{operation}", data, None, timeout_s)
        return _checked(operation, answer)

    async def publish(
        self,
        subject: str,
        data: bytes,
        headers: dict[str, str],
        *,
        timeout_s: float = REQUEST_S,
    ) -> int:
        """Store a message; its stream sequence. Refused, BrokerUnavailable."""
        answer = await self._request(subject, data, headers, timeout_s)
        return int(_checked(subject, answer)["seq"])

    async def _request(
        self, subject: str, data: bytes, headers: dict[str, str] | None, timeout_s: float
    ) -> Msg:
        answer = _Answer(several=False)
        message = await self._ask(answer, subject, data, headers, timeout_s)
        if (message.headers or {}).get("Status") == NO_RESPONDERS:
            raise BrokerUnavailable("the NATS cluster has no leader for it now")
        return message

    async def _ask(
        self,
        answer: _Answer,
        subject: str,
        data: bytes,
        headers: dict[str, str] | None,
        timeout_s: float,
    ) -> Msg:
        """The last message of `answer`.

        NOTE(request): the client's own `request` waits in a way that, up to Python 3.11, forgets
        that its task was cancelled when the answer comes at the same time.
        """
        if not self._client.is_connected:
            raise BrokerUnavailable("no NATS server is connected")
        token = str(next(self._numbers))
        self._answers[token] = answer
        try:
            reply = f"{self._inbox}.{token}"
            await self._client.publish(subject, data, reply=reply, headers=headers)
            async with asyncio.timeout(timeout_s):
                return await answer.last
        except TimeoutError:
            raise BrokerUnavailable(f"the NATS cluster did not answer in {timeout_s:g} s") from None
        except (OSError, nats.errors.Error) as error:
            raise BrokerUnavailable(f"the NATS cluster: {error}") from None
        finally:
            del self._answers[token]

    async def create(self, config: Mapping[str, Any]) -> None:
        """Make a stream; one that is there with other settings keeps them."""
        try:
            await self.call(f"STREAM.CREATE.{config['name']}", config, timeout_s=CREATE_S)
        except Refused as refused:
            if refused.number != STREAM_DIFFERS:
                raise

    async def state(self, stream: str, *, timeout_s: float = REQUEST_S) -> StreamState:
        """What a stream holds, by the word of its leader."""
        state = (await self.call(f"STREAM.INFO.{stream}", timeout_s=timeout_s))["state"]
        return StreamState(state["first_seq"], state["last_seq"], state["messages"], state["bytes"])

    async def read(
        self, stream: str, subject: str, sequence: int, messages: int, size_bytes: int
    ) -> list[Stored]:
        """Messages from `sequence` on, or from the first one behind it that is kept."""
        found = await self._read_batch(
            stream, {"seq": sequence, "batch": messages, "max_bytes": size_bytes}
        )
        if found and found[0].sequence == sequence:
            return found
        # Gone, or not at this replica: it may lag, or be damaged. The leader knows.
        return await self._read_one(stream, {"seq": sequence, "next_by_subj": subject})

    async def last_of_each(self, stream: str, subject: str, messages: int) -> list[Stored]:
        """The last message of each subject that matches."""
        return await self._read_batch(stream, {"multi_last": [subject], "batch": messages})

    async def last(self, stream: str, subject: str) -> Stored | None:
        """The last message of a subject, by the word of the leader."""
        found = await self._read_one(stream, {"last_by_subj": subject})
        return found[0] if found else None

    async def _read_one(self, stream: str, query: object) -> list[Stored]:
        try:
            answer = await self.call(f"STREAM.MSG.GET.{stream}", query)
        except Refused as refused:
            if refused.number == MESSAGE_NOT_FOUND:
                return []
            raise
        message = answer["message"]
        headers = _headers(base64.b64decode(message.get("hdrs", "")))
        return [Stored(message["seq"], headers, base64.b64decode(message.get("data", "")))]

    async def _read_batch(self, stream: str, query: object) -> list[Stored]:
        answer = _Answer(several=True)
        subject, data = f"$JS.API.DIRECT.GET.{stream}", json.dumps(query).encode()
        try:
            last = await self._ask(answer, subject, data, None, REQUEST_S)
        except BrokerUnavailable:
            if answer.messages:  # what came is whole and in order
                return answer.messages
            raise
        headers = last.headers or {}
        status = headers.get("Status")
        if status == NO_RESPONDERS:
            raise BrokerUnavailable("the NATS cluster has no replica that answers now")
        if status not in READ_ENDS:
            raise BrokerUnavailable(f"{stream}: {status} {headers.get('Description', '')}")
        return answer.messages

    async def _on_answer(self, message: Msg) -> None:
        answer = self._answers.get(message.subject.rpartition(".")[2])
        if answer is not None:
            answer.feed(message)

    async def _on_error(self, error: Exception) -> None:
        log.debug("NATS: %s", error)
        self._last_error = str(error)
        if "authorization" in self._last_error.lower() and not self._refused.done():
            self._refused.set_result(self._last_error)

    async def _on_disconnected(self) -> None:
        if not self._closing:
            log.warning("the connection to the NATS cluster is lost")
            self.on_change()

    async def _on_reconnected(self) -> None:
        self.reconnects += 1
        url = self._client.connected_url
        log.info("connected to NATS server %s again", url.netloc.rpartition("@")[2] if url else "")
        self.on_change()


def _check_readable(file: str) -> None:
    try:
        Path(file).read_bytes()
    except OSError as error:
        raise InputError(
            f"broker.jetstream.credentials_file: {file} can't be read: {error.strerror}"
        ) from None


def _tls(settings: JetStreamSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
        if settings.certificate_file:
            context.load_cert_chain(settings.certificate_file, settings.key_file or None)
    except (OSError, ssl.SSLError) as error:
        files = (settings.ca_file, settings.certificate_file, settings.key_file)
        shown = ", ".join(file for file in files if file)
        raise InputError(f"broker.jetstream: {shown} can't be used for TLS: {error}") from None
    return context


def _checked(what: str, answer: Msg) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(answer.data)
    except ValueError:
        raise BrokerUnavailable(f"{what}: an answer that is no JSON") from None
    error = found.get("error")
    if error is None:
        return found
    # No leader, no quorum, no room in its queues, or a server away that a replica needs.
    if error.get("code") == 503 or error.get("err_code") == NO_PEERS:
        raise BrokerUnavailable(f"the NATS cluster: {error.get('description')}")
    raise Refused(what, error)


def _headers(raw: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in raw.split(b"\r\n")[1:]:
        name, found, value = line.partition(b":")
        if found:
            headers[name.decode()] = value.strip().decode()
    return headers
