"""The broker's unary calls: what is there, where groups stand, and moving them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import grpc

from gputel import limits
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker import names, statuses
from gputel.broker.dead_letters import Undertaker
from gputel.broker.engine import Engine, PartitionLog, TopicLog
from gputel.broker.groups import Group
from gputel.broker.registry import Registry
from gputel.broker.statuses import Context, GroupInUse
from gputel.errors import GputelError, InputError, NotFound

FETCH_MESSAGES_MAX: Final = 1000


class Admin:
    """Answers over `engine` and the groups of `registry`."""

    def __init__(self, engine: Engine, registry: Registry, undertaker: Undertaker) -> None:
        self._engine = engine
        self._registry = registry
        self._undertaker = undertaker

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """Method name to handler."""
        return {
            "ListTopics": _unary(self._list_topics, mq.ListTopicsRequest),
            "ListGroups": _unary(self._list_groups, mq.ListGroupsRequest),
            "Seek": _unary(self._seek, mq.SeekRequest),
            "Fetch": _unary(self._fetch, mq.FetchRequest),
        }

    async def _list_topics(self, _: mq.ListTopicsRequest) -> mq.ListTopicsResponse:
        await self._engine.refresh()
        response = mq.ListTopicsResponse()
        for name, topic in sorted(self._engine.topics.items()):
            listed = response.topics.add(name=name, id=topic.id)
            for of in topic.partitions:
                listed.partitions.add(
                    partition=of.index,
                    first_offset=of.first_offset,
                    next_offset=of.next_offset,
                    size_bytes=of.size_bytes,
                    segments=of.segments,
                    failure=of.failure,
                    damage=of.damage,
                )
        return response

    async def _list_groups(self, _: mq.ListGroupsRequest) -> mq.ListGroupsResponse:
        await self._engine.refresh()
        await self._registry.refresh()
        response = mq.ListGroupsResponse()
        for (topic, name), group in sorted(self._registry.groups.items()):
            members = len(group.members) + group.members_elsewhere
            listed = response.groups.add(topic=topic, group=name, members=members)
            logs = self._engine.topics[topic].partitions
            listed.positions.extend(_positions(group, logs, group.positions))
        return response

    async def _seek(self, request: mq.SeekRequest) -> mq.SeekResponse:
        topic = await self._topic(request.topic)
        names.check_group(request.group)
        logs = topic.partitions
        wanted = sorted(set(request.partitions)) or range(len(logs))
        targets = {of.index: await _target(of, request) for of in map(_in(topic), wanted)}
        group = self._registry.open(request.topic, request.group, len(logs))
        # What was given up before is buried first: the cursors that know of it are replaced.
        await self._undertaker.bury(group)
        if any(cursor.dead for cursor in group.cursors):
            raise GroupInUse(f"group {group.name!r} has dead letters that can't be moved yet")
        await self._registry.seek(group, targets)
        return mq.SeekResponse(positions=_positions(group, logs, targets))

    async def _fetch(self, request: mq.FetchRequest) -> mq.FetchResponse:
        of = _in(await self._topic(request.topic))(request.partition)
        await of.catch_up()
        count = min(request.messages_max or FETCH_MESSAGES_MAX, FETCH_MESSAGES_MAX)
        chunk = await of.read(request.offset, count, limits.BATCH_BYTES_MAX)
        return mq.FetchResponse(
            deliveries=[
                mq.Delivery(
                    partition=of.index,
                    offset=record.offset,
                    stored_at_ns=record.stored_at_ns,
                    producer=record.producer,
                    epoch=record.epoch,
                    sequence=record.sequence,
                    payload=record.payload,
                )
                for record in chunk.records
            ],
            next_offset=chunk.next_offset,
        )

    async def _topic(self, name: str) -> TopicLog:
        names.check_topic(name)
        topic = await self._engine.find_topic(name)
        if topic is None:
            raise NotFound(f"there is no topic {name!r}")
        return topic


def _in(topic: TopicLog) -> Callable[[int], PartitionLog]:
    def partition(index: int) -> PartitionLog:
        if index >= len(topic.partitions):
            count = len(topic.partitions)
            raise InputError(f"partition: {index}; topic {topic.name!r} has 0 to {count - 1}")
        return topic.partitions[index]

    return partition


async def _target(of: PartitionLog, request: mq.SeekRequest) -> int:
    kind = request.WhichOneof("to")
    await of.catch_up()
    if kind == "time_ns":
        return await of.offset_at(request.time_ns)
    if kind == "offset":
        return min(max(request.offset, of.first_offset), of.next_offset)
    edges = {
        mq.START_AT_EARLIEST: of.first_offset,
        mq.START_AT_LATEST: of.next_offset,
    }
    if kind is None or request.edge not in edges:
        raise InputError("to: an offset, a time, or an edge (earliest, latest) is needed")
    return edges[request.edge]


def _positions(group: Group, logs: Any, positions: Mapping[int, int]) -> list[mq.GroupPosition]:
    return [
        mq.GroupPosition(
            partition=partition,
            next_offset=next_offset,
            lag=max(logs[partition].next_offset - next_offset, 0),
            in_flight=group.cursors[partition].in_flight,
        )
        for partition, next_offset in positions.items()
    ]


def _unary(
    answer: Callable[[Any], Awaitable[Any]], request: type[Any]
) -> grpc.RpcMethodHandler[Any, Any]:
    async def handle(message: Any, context: Context) -> Any:
        try:
            return await answer(message)
        except (GputelError, OSError) as error:
            await statuses.refuse(context, error)

    return grpc.unary_unary_rpc_method_handler(
        handle,
        request_deserializer=request.FromString,
        response_serializer=lambda response: response.SerializeToString(),
    )
