"""gRPC between client and broker: method paths, channel options, and what a status means."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, cast

import grpc
import grpc.aio

from gputel import kernels, limits
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.errors import GputelError, InputError, NotFound, ProducerFenced

SERVICE: Final = "gputel.mq.v1.Broker"
OPEN_TIMEOUT_S: Final = 5.0
UNARY_TIMEOUT_S: Final = 5.0

# A peer that vanished without a word is noticed after 5 + 3 s. The ping's own timeout says the
# same: gRPC measures bandwidth with pings too, and while one of them is on its way (which was
# sent just before the silence, when much is sent) it sends no other, for a minute by default.
# A broker that comes back is found within a second.
CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_send_message_length", limits.GRPC_MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", limits.GRPC_MESSAGE_BYTES_MAX),
    # A frame of usual size, or a batch, comes in one go instead of waiting for window updates.
    ("grpc.http2.lookahead_bytes", limits.FRAME_BYTES_MAX),
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 8_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # How long one attempt may take, whatever its name says: a busy broker needs a moment.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
)

_FATAL: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)

# Batches pass without an object of protobuf's for each message: as bytes that a kernel wrote
# where they are sent, as a list where they arrive.
Publishing = mq.PublishRequest | bytes
Published = mq.PublishRequest | list[kernels.MessageFields]
Consuming = mq.ConsumeResponse | bytes
Consumed = mq.ConsumeResponse | list[kernels.DeliveryFields]

_Response = TypeVar("_Response")

PublishCall = grpc.aio.StreamStreamCall[Publishing, mq.PublishResponse]
ConsumeCall = grpc.aio.StreamStreamCall[mq.ConsumeRequest, Consumed]


def write_published(request: Publishing) -> bytes:
    """A request of a Publish stream as bytes."""
    return request if isinstance(request, bytes) else request.SerializeToString()


def read_published(data: bytes) -> Published:
    """A request of a Publish stream; DecodeError (protobuf's) for what is none."""
    batch = kernels.decode_messages(data)
    if batch is not None:
        return batch
    request = mq.PublishRequest.FromString(data)
    if request.WhichOneof("request") != "batch":
        return request
    return [(m.sequence, m.key, m.payload) for m in request.batch.messages]


def write_consumed(response: Consuming) -> bytes:
    """A response of a Consume stream as bytes."""
    return response if isinstance(response, bytes) else response.SerializeToString()


def read_consumed(data: bytes) -> Consumed:
    """A response of a Consume stream; DecodeError (protobuf's) for what is none."""
    batch = kernels.decode_deliveries(data)
    if batch is not None:
        return batch
    response = mq.ConsumeResponse.FromString(data)
    if response.WhichOneof("response") != "batch":
        return response
    return [_fields(delivery) for delivery in response.batch.deliveries]


def open_channel(address: str) -> grpc.aio.Channel:
    """A channel that connects when it is first used."""
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)


def publish_call(channel: grpc.aio.Channel) -> PublishCall:
    """A new Publish stream."""
    method: Callable[[], Any] = channel.stream_stream(
        f"/{SERVICE}/Publish",
        request_serializer=write_published,
        response_deserializer=mq.PublishResponse.FromString,
    )
    call: PublishCall = method()
    return call


def consume_call(channel: grpc.aio.Channel) -> ConsumeCall:
    """A new Consume stream."""
    method: Callable[[], Any] = channel.stream_stream(
        f"/{SERVICE}/Consume",
        request_serializer=mq.ConsumeRequest.SerializeToString,
        response_deserializer=read_consumed,
    )
    call: ConsumeCall = method()
    return call


def _fields(d: mq.Delivery) -> kernels.DeliveryFields:
    return (
        d.partition,
        d.offset,
        d.stored_at_ns,
        d.attempt,
        d.producer,
        d.epoch,
        d.sequence,
        d.payload,
    )


async def next_response(call: grpc.aio.StreamStreamCall[Any, _Response]) -> _Response | None:
    """The next message of a stream, None at its end; AioRpcError when it ended badly."""
    message = await call.read()
    if message is not grpc.aio.EOF:
        return cast("_Response", message)
    code = await call.code()
    if code is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            code,
            await call.initial_metadata(),
            await call.trailing_metadata(),
            details=await call.details(),
        )
    return None


async def converse(reading: Coroutine[Any, Any, None], writing: Coroutine[Any, Any, None]) -> None:
    """Read a stream to its end, and write to it meanwhile. AioRpcError when it ended badly.

    What ends the writer is told by the reader, unless it is a mistake: that is raised.
    """
    reader = asyncio.create_task(reading, name="stream-reader")
    writer = asyncio.create_task(writing, name="stream-writer")
    try:
        await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
        if not writer.cancelled():  # InvalidStateError is also raised while it has not ended
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                writer.result()
        await reader
    finally:
        reader.cancel()
        writer.cancel()
        await asyncio.gather(reader, writer, return_exceptions=True)


def said(error: grpc.aio.AioRpcError) -> str:
    """What a status says to people."""
    return error.details() or error.code().name


def fatal(error: grpc.aio.AioRpcError, producer: str = "", epoch: int = 0) -> GputelError | None:
    """Our error for a status that trying again can't mend; None for one that may pass."""
    if error.code() is grpc.StatusCode.FAILED_PRECONDITION and producer:
        metadata = dict(error.trailing_metadata() or ())
        newer = str(metadata.get("newer-epoch", "0"))
        return ProducerFenced(producer, epoch, int(newer) if newer.isdigit() else 0)
    if error.code() in _FATAL:
        return InputError(f"the broker refuses: {said(error)}")
    return None


def refusal(error: grpc.aio.AioRpcError) -> GputelError | None:
    """Our error for a unary call that the broker understood and won't do; None otherwise."""
    if error.code() is grpc.StatusCode.NOT_FOUND:
        return NotFound(error.details() or "not found")
    if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
        return InputError(said(error))
    return fatal(error)
