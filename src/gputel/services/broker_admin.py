"""`gputel broker topics|groups|lag|seek|dlq|verify`: rows of plain data for the command line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from gputel import broker
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker import BrokerClient, StartAt
from gputel.broker import letters as dead
from gputel.broker.engine.verify import verify
from gputel.clock import rfc3339
from gputel.config import Config
from gputel.errors import NotFound
from gputel.services.state import data_dir_of, running_broker
from gputel.services.when import parse_time

Row = dict[str, Any]

PAYLOAD_SHOWN_BYTES: Final = 32


async def topics(config: Config) -> list[Row]:
    """A row a partition."""
    async with _connected(config) as client:
        return [
            {
                "topic": topic.name,
                "partition": of.partition,
                "first_offset": of.first_offset,
                "next_offset": of.next_offset,
                "size_bytes": of.size_bytes,
                "segments": of.segments,
                "state": of.failure or of.damage or "ok",
            }
            for topic in await client.topics()
            for of in topic.partitions
        ]


async def groups(config: Config) -> list[Row]:
    """A row a group."""
    async with _connected(config) as client:
        return [
            {
                "topic": group.topic,
                "group": group.group,
                "members": group.members,
                "partitions": len(group.positions),
                "in_flight": sum(of.in_flight for of in group.positions),
                "lag": sum(of.lag for of in group.positions),
            }
            for group in await client.groups()
        ]


async def lag(config: Config, group: str | None) -> list[Row]:
    """A row a group and partition. NotFound: no such group."""
    async with _connected(config) as client:
        known = await client.groups()
    if group and all(listed.group != group for listed in known):
        raise NotFound(f"no group {group!r}; there are: {_names(known)}")
    return [
        {"topic": listed.topic, "group": listed.group, **_position(of)}
        for listed in known
        if group in (None, listed.group)
        for of in listed.positions
    ]


async def seek(config: Config, topic: str, group: str, to: str, partitions: list[int]) -> list[Row]:
    """Where the group stands afterwards. InputError: it is at work, or `to` makes no sense."""
    target = parse_target(to, datetime.now(UTC))
    async with _connected(config) as client:
        return [_position(of) for of in await client.seek(topic, group, target, partitions)]


async def dead_letters(config: Config, topic: str, *, limit: int, all: bool) -> list[Row]:
    """Those that wait to be replayed, or `all` that are kept; at most `limit`."""
    rows: list[Row] = []
    async with _connected(config) as client:
        async for found in dead.letters(client, topic):
            if len(rows) >= limit:
                break
            if all or not found.replayed:
                rows.append(_letter(found))
    return rows


async def replay_dead_letters(
    config: Config, topic: str, limit: int | None, told: Callable[[int], None]
) -> list[Row]:
    """Publish them again to `topic`."""
    async with _connected(config) as client:
        published, passed = await dead.replay(client, topic, limit=limit, told=told)
    return [{"published": published, "no_dead_letters": passed}]


def verify_log(config: Config) -> Iterator[Row]:
    """A row a partition of the log on disk, as it is read. InputError: there is none."""
    for verdict in verify(data_dir_of(config) / "broker"):
        yield {**asdict(verdict), "sound": verdict.sound}


def parse_target(text: str, now: datetime) -> int | datetime | StartAt:
    """`earliest`, `latest`, an offset, a time (RFC 3339) or `15m` for ago. InputError."""
    if text in ("earliest", "latest"):
        return StartAt[text.upper()]
    if text.isascii() and text.isdigit() and int(text) < 2**64:
        return int(text)
    return parse_time("--to", text, now, also="earliest, latest, an offset, ")


@asynccontextmanager
async def _connected(config: Config) -> AsyncIterator[BrokerClient]:
    client = await broker.connect(running_broker(config))
    try:
        yield client
    finally:
        await client.close()


def _position(of: mq.GroupPosition) -> Row:
    return {
        "partition": of.partition,
        "next_offset": of.next_offset,
        "lag": of.lag,
        "in_flight": of.in_flight,
    }


def _names(groups: list[mq.Group]) -> str:
    return ", ".join(sorted({group.group for group in groups})) or "none"


def _letter(found: dead.Letter) -> Row:
    letter = found.letter
    row: Row = {
        "partition": found.partition,
        "offset": found.offset,
        "replayed": found.replayed,
    }
    if letter is None:
        return {**row, "reason": "no dead letter: somebody published it here"}
    return {
        **row,
        "stored_at": rfc3339(letter.stored_at_ns),
        "from": f"{letter.topic}/{letter.partition}@{letter.offset}",
        "group": letter.group,
        "attempts": letter.attempts,
        "producer": letter.producer,
        "epoch": letter.epoch,
        "sequence": letter.sequence,
        "size_bytes": len(letter.payload),
        "payload_begins": letter.payload[:PAYLOAD_SHOWN_BYTES].hex(),
        "reason": letter.reason,
    }
