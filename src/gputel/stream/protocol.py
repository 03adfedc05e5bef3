"""The stream's messages: what clients may say, and how answers are written.

    client                                       server
    ------                                       ------
                                                 {"type":"hello", ...}
    {"type":"subscribe","id":"x", ...}           {"type":"subscribed","id":"x", ...}
                                                 {"type":"snapshot","id":"x","gpus":[...]}
                                                 {"type":"update","id":"x","gpus":[...]} ...
    {"type":"unsubscribe","id":"x"}              {"type":"unsubscribed","id":"x"}
    {"type":"ping"}                              {"type":"pong", ...}
                                                 {"type":"heartbeat", ...}, {"type":"status", ...}
                                                 {"type":"error","code":"...","message":"..."}

Everything here is a pure function of its arguments; docs/reference/stream.md is the
contract for other people's clients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
import orjson

from gputel import __version__, limits
from gputel.catalog import BY_DCGM, BY_NAME, METRICS, Metric
from gputel.clock import rfc3339
from gputel.errors import GputelError

ID_CHARS_MAX: Final = 128
NAME_CHARS_MAX: Final = 512
NAMES_MAX: Final = 4096
MAX_HZ: Final = 50.0  # nothing is sent oftener, so that one message carries many nodes
MIN_HZ: Final = 0.01

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX)]
_Names = Annotated[list[_Name], msgspec.Meta(min_length=1, max_length=NAMES_MAX)]
_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_CHARS_MAX)]


class MessageInvalid(GputelError):
    """A client's message that can't be obeyed. `code` is stable, for programs."""

    def __init__(self, code: str, message: str, id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.id = id


class Subscribe(msgspec.Struct, tag="subscribe", forbid_unknown_fields=True, frozen=True):
    """Wish for updates. An absent list means all."""

    id: _Id
    nodes: _Names | None = None
    gpus: _Names | None = None
    metrics: _Names | None = None
    max_hz: Annotated[float, msgspec.Meta(ge=MIN_HZ, le=MAX_HZ)] = MAX_HZ


class Unsubscribe(msgspec.Struct, tag="unsubscribe", forbid_unknown_fields=True, frozen=True):
    """End of a subscription."""

    id: _Id


class Ping(msgspec.Struct, tag="ping", forbid_unknown_fields=True, frozen=True):
    """Are you there?"""

    id: _Id | None = None


Message = Subscribe | Unsubscribe | Ping
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


@dataclass(frozen=True, slots=True)
class Selection:
    """What a subscription asks for; equal selections share every serialised byte."""

    nodes: frozenset[str] | None
    gpus: frozenset[str] | None
    metrics: tuple[Metric, ...]
    max_hz: float


def parse_message(text: str | bytes) -> Message:
    """One client message; MessageInvalid says what is wrong with it."""
    size_bytes = len(text.encode()) if isinstance(text, str) else len(text)
    if size_bytes > limits.WS_MESSAGE_BYTES_MAX:
        raise MessageInvalid(
            "too_large",
            f"a message of {size_bytes} bytes; at most {limits.WS_MESSAGE_BYTES_MAX} are allowed",
        )
    try:
        message: Message = _decoder.decode(text)
    except msgspec.ValidationError as error:
        raise MessageInvalid("invalid_message", str(error)) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise MessageInvalid("invalid_json", "the message is not JSON") from None
    return message


def select(message: Subscribe) -> Selection:
    """The selection that `message` asks for; MessageInvalid for an unknown metric."""
    metrics: dict[Metric, None] = {}
    for name in message.metrics if message.metrics is not None else BY_NAME:
        metric = BY_NAME.get(name) or BY_DCGM.get(name)
        if metric is None:
            raise MessageInvalid(
                "unknown_metric",
                f"{name[:80]!r} is not a metric; GET /api/v1/metrics lists them",
                message.id,
            )
        metrics[metric] = None
    return Selection(
        nodes=None if message.nodes is None else frozenset(message.nodes),
        gpus=None if message.gpus is None else frozenset(message.gpus),
        # In the catalog's order, so that the same wish is the same selection.
        metrics=tuple(metric for metric in METRICS if metric in metrics),
        max_hz=message.max_hz,
    )


def _text(body: object) -> str:
    return orjson.dumps(body).decode()


def hello(source: str, heartbeat_s: float, time_ns: int) -> str:
    """The first message of a connection."""
    return _text(
        {
            "type": "hello",
            "version": __version__,
            "time": rfc3339(time_ns),
            "source": source,
            "heartbeat_seconds": heartbeat_s,
        }
    )


def subscribed(id: str, selection: Selection) -> str:
    """The answer to a subscription: what its values mean."""
    return _text(
        {
            "type": "subscribed",
            "id": id,
            "max_hz": selection.max_hz,
            "metrics": [
                {"name": m.name, "unit": m.unit.value, "kind": m.kind.value}
                for m in selection.metrics
            ],
        }
    )


def unsubscribed(id: str) -> str:
    """The answer to an unsubscription."""
    return _text({"type": "unsubscribed", "id": id})


def pong(id: str | None, time_ns: int) -> str:
    """The answer to a ping."""
    return _text({"type": "pong", "id": id, "time": rfc3339(time_ns)})


def heartbeat(time_ns: int) -> str:
    """Sent when there was nothing else to send for a while."""
    return _text({"type": "heartbeat", "time": rfc3339(time_ns)})


def status(source: str, time_ns: int) -> str:
    """Sent when the stream loses or finds its source."""
    return _text({"type": "status", "source": source, "time": rfc3339(time_ns)})


def error(problem: MessageInvalid) -> str:
    """What was wrong with the client's message."""
    return _text({"type": "error", "code": problem.code, "message": str(problem), "id": problem.id})


def values(kind: str, id: str, conflated: int, shared: str) -> str:
    """A snapshot or an update: a client's own head before the body that all share."""
    head = orjson.dumps({"type": kind, "id": id, "conflated": conflated}).decode()
    return f"{head[:-1]},{shared[1:]}"


@dataclass(frozen=True, slots=True)
class Reading:
    """Values of one GPU as they go out: `time_ns` is the newest of them."""

    node: str
    uuid: str
    time_ns: int
    values: dict[str, int | float]


def shared_body(time_ns: int, readings: list[Reading]) -> str:
    """The part of a snapshot or update that is the same for every client."""
    return _text(
        {
            "time": rfc3339(time_ns),
            "gpus": [
                {
                    "node": reading.node,
                    "uuid": reading.uuid,
                    "time": rfc3339(reading.time_ns),
                    "values": reading.values,
                }
                for reading in readings
            ],
        }
    )
