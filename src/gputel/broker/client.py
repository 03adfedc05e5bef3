"""The asyncio client of the broker."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import Message

from gputel import limits
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker import transport
from gputel.broker.consumer import Consumer, OnAssign, OnRevoke, StartAt
from gputel.broker.publisher import Publisher
from gputel.broker.rotation import Brokers
from gputel.clock import SYSTEM_CLOCK, Clock
from gputel.errors import BrokerUnavailable

_Response = TypeVar("_Response", bound=Message)


async def connect(address: str, *, clock: Clock = SYSTEM_CLOCK) -> BrokerClient:
    """A client of the broker at `address` (`host:port`), or of all brokers of a cluster
    (`host:port,host:port`).

    Never raises for a broker that is away: publishers and consumers connect by themselves,
    to whichever broker serves, as often as it takes.
    """
    return BrokerClient(address, clock)


class BrokerClient:
    """Makes publishers and consumers; close them before the client.

    Those that are still open when it closes end with BrokerUnavailable.
    """

    def __init__(self, address: str, clock: Clock) -> None:
        self._brokers = Brokers([one.strip() for one in address.split(",")])
        self._asked = self._brokers.rotation()
        self._clock = clock
        self._children: weakref.WeakSet[Publisher | Consumer] = weakref.WeakSet()
        self._closed = False
        self.address = address

    async def publisher(
        self,
        topic: str,
        producer: str,
        epoch: int,
        *,
        pending_bytes: int = 64 * limits.MIB,
        on_change: Callable[[], None] = lambda: None,
    ) -> Publisher:
        """A producer that keeps at most `pending_bytes` of unacknowledged messages.

        `on_change` is called whenever it has connected, got an acknowledgement or failed.
        """
        self._check()
        publisher = Publisher(
            self._brokers.rotation(),
            topic,
            producer,
            epoch,
            pending_bytes=pending_bytes,
            clock=self._clock,
            on_change=on_change,
        )
        self._children.add(publisher)
        return publisher

    def consumer(
        self,
        topic: str,
        *,
        group: str = "",
        ack_timeout_s: float = 30,
        messages: int = 1000,
        bytes: int = 32 * limits.MIB,
        start_at: StartAt | None = None,
        max_deliver: int = 0,
        on_assign: OnAssign | None = None,
        on_revoke: OnRevoke | None = None,
    ) -> Consumer:
        """A member of `group`, or without one an observer of all partitions.

        `messages` and `bytes` bound what is delivered and not settled. `on_assign(partition)`
        returns the next offset to deliver, or None for the group's own position; it is
        awaited before the first delivery of a partition, again after a reconnect.
        `on_revoke(partition)` tells that another member may have it now.
        """
        self._check()
        start = start_at or (StartAt.EARLIEST if group else StartAt.LATEST)
        consumer = Consumer(
            self._brokers.rotation(),
            mq.ConsumeOpen(
                topic=topic,
                group=group,
                ack_timeout_ms=round(ack_timeout_s * 1000),
                max_deliver=max_deliver,
                start_at=start.value,
            ),
            messages=messages,
            bytes_=bytes,
            on_assign=on_assign,
            on_revoke=on_revoke,
            clock=self._clock,
        )
        self._children.add(consumer)
        return consumer

    async def topics(self) -> list[mq.Topic]:
        """Topics with their partitions; BrokerUnavailable when nobody answers."""
        response = await self._ask("ListTopics", mq.ListTopicsRequest(), mq.ListTopicsResponse)
        return list(response.topics)

    async def groups(self) -> list[mq.Group]:
        """Consumer groups with position and lag; BrokerUnavailable when nobody answers."""
        response = await self._ask("ListGroups", mq.ListGroupsRequest(), mq.ListGroupsResponse)
        return list(response.groups)

    async def seek(
        self,
        topic: str,
        group: str,
        to: int | datetime | StartAt,
        partitions: Sequence[int] = (),
    ) -> list[mq.GroupPosition]:
        """Move a group that has no members to an offset, a time or an edge; where it stands.

        InputError: it has members, or makes no sense. NotFound: no such topic.
        """
        request = mq.SeekRequest(topic=topic, group=group, partitions=partitions)
        if isinstance(to, StartAt):
            request.edge = to.value
        elif isinstance(to, datetime):
            request.time_ns = round(to.timestamp() * 1_000_000) * 1000
        else:
            request.offset = to
        return list((await self._ask("Seek", request, mq.SeekResponse)).positions)

    async def fetch(
        self, topic: str, partition: int, offset: int, messages_max: int = 0
    ) -> mq.FetchResponse:
        """Messages from `offset` on, as many as fit one answer. InputError, NotFound."""
        request = mq.FetchRequest(
            topic=topic, partition=partition, offset=offset, messages_max=messages_max
        )
        return await self._ask("Fetch", request, mq.FetchResponse)

    async def _ask(self, method: str, request: Message, response: type[_Response]) -> _Response:
        """Ask one broker, and each of the others while none answers."""
        self._check()
        problems = []
        for _ in self._brokers.addresses:
            call: Callable[..., Any] = self._asked.channel.unary_unary(
                f"/{transport.SERVICE}/{method}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=response.FromString,
            )
            try:
                answer: _Response = await call(request, timeout=transport.UNARY_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                refusal = transport.refusal(error)
                if refusal is not None:
                    raise refusal from None
                problems.append(f"broker {self._asked.address}: {transport.said(error)}")
                self._asked.move_on()
            else:
                return answer
        raise BrokerUnavailable("; ".join(problems), hint="is it running?")

    def _check(self) -> None:
        if self._closed:
            raise _closed()

    async def close(self) -> None:
        """Close the connections."""
        self._closed = True
        # First, for a call on a closed channel is an error in gRPC's own words.
        await asyncio.gather(*(child.abort(_closed()) for child in tuple(self._children)))
        await self._brokers.close()


def _closed() -> BrokerUnavailable:
    return BrokerUnavailable("the client is closed")
