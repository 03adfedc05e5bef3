"""The leases of brokers on the partitions of groups, kept in the bucket (`book.py`).

No clock is shared. A broker renews by changing its `beat`; it stops delivering HOLD_S after it
began its last renewal that succeeded. The others take what it owns once they have seen the same
beat for EVICT_S, counting only time in which they could read: EVICT_S > HOLD_S, so a partition
has one owner at a time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
from nats.aio.msg import Msg

from gputel import limits
from gputel.broker.engine import Share
from gputel.broker.engine.jetstream.book import Page, Turn, take_turn
from gputel.broker.engine.jetstream.bucket import Bucket
from gputel.broker.engine.jetstream.cluster import Cluster
from gputel.clock import NS_PER_S, Clock

BEAT_NS: Final = 1 * NS_PER_S
HOLD_NS: Final = 3 * NS_PER_S
EVICT_NS: Final = 4 * NS_PER_S
LOOK_NS: Final = 1 * NS_PER_S  # the most that one look adds to a silence
GROUPS_MAX: Final = 1024

assert limits.GROUPS_PER_TOPIC_MAX < GROUPS_MAX

assert BEAT_NS < HOLD_NS < EVICT_NS

_PAGE = msgspec.json.Decoder(Page)


@dataclass
class _Watch:
    """What this broker has seen of a page."""

    looked_ns: int
    beaten_ns: int = -BEAT_NS
    until_ns: int = 0
    silent: dict[str, tuple[int, int]] = field(default_factory=dict)  # broker: (beat, for ns)


class Shares:
    """See `Sharing`."""

    def __init__(
        self, bucket: Bucket, cluster: Cluster, namespace: str, broker: str, clock: Clock
    ) -> None:
        self._bucket = bucket
        self._cluster = cluster
        self._subject = f"{namespace}.group"
        self._broker = broker
        self._clock = clock
        self._watches: dict[str, _Watch] = {}
        self._told: Callable[[str, str], None] = lambda topic, group: None

    async def start(self) -> None:
        """Listen to what the others tell."""
        await self._cluster.subscribe(self._subject, self._on_told)

    def listen(self, told: Callable[[str, str], None]) -> None:
        self._told = told

    async def groups(self, topics: Iterable[str]) -> Mapping[tuple[str, str], Share]:
        # One question a topic: the servers answer with 1,024 keys at most.
        patterns = [f"group.{_encode(topic)}.*" for topic in topics]
        listed = await asyncio.gather(*(self._bucket.list(of, GROUPS_MAX) for of in patterns))
        entries = {key: entry for found in listed for key, entry in found.items()}
        found = {}
        for key, entry in entries.items():
            _, topic, group = key.split(".")
            page = _PAGE.decode(entry.value)
            held = frozenset(p for p, owner in page.owners.items() if owner == self._broker)
            found[_decode(topic), _decode(group)] = self._share(page, held, 0)
        return found

    async def renew(
        self,
        topic: str,
        group: str,
        *,
        partitions: int,
        members: int,
        positions: Mapping[int, int],
        released: Mapping[int, int | None],
    ) -> Share:
        key = _key(topic, group)
        while True:
            began_ns = self._clock.monotonic_ns()
            entry = await self._bucket.get(key)
            page = _PAGE.decode(entry.value) if entry else Page()
            watch, gone = self._look(key, page)
            turn = take_turn(
                page,
                self._broker,
                members=members,
                partitions=partitions,
                positions=positions,
                released=released,
                gone=gone,
            )
            due = bool(members or positions) and began_ns - watch.beaten_ns >= BEAT_NS
            if not turn.changed and not due:
                return self._share(turn.page, turn.held, watch.until_ns)
            if self._broker in turn.page.brokers:
                turn.page.brokers[self._broker].beat += 1
            data = msgspec.json.encode(turn.page)
            if await self._bucket.put(key, data, entry.revision if entry else 0) is not None:
                watch.beaten_ns, watch.until_ns = began_ns, began_ns + HOLD_NS
                await self._tell(topic, group, page, turn)
                return self._share(turn.page, turn.held, watch.until_ns)

    async def seek(self, topic: str, group: str, positions: Mapping[int, int]) -> bool:
        key = _key(topic, group)
        while True:
            entry = await self._bucket.get(key)
            page = _PAGE.decode(entry.value) if entry else Page()
            _, gone = self._look(key, page)
            if page.brokers.keys() - gone:
                return False
            moved = Page(positions={**page.positions, **positions})
            data = msgspec.json.encode(moved)
            if await self._bucket.put(key, data, entry.revision if entry else 0) is not None:
                await self._tell(topic, group, page, Turn(moved, frozenset(), changed=True))
                return True

    def _look(self, key: str, page: Page) -> tuple[_Watch, set[str]]:
        """Note whose beat has changed; who has been silent for too long."""
        now_ns = self._clock.monotonic_ns()
        watch = self._watches.setdefault(key, _Watch(now_ns))
        added_ns = min(now_ns - watch.looked_ns, LOOK_NS)
        watch.looked_ns = now_ns
        silent: dict[str, tuple[int, int]] = {}
        for name, presence in page.brokers.items():
            beat, for_ns = watch.silent.get(name, (-1, 0))
            silent[name] = (presence.beat, for_ns + added_ns if beat == presence.beat else 0)
        silent.pop(self._broker, None)
        watch.silent = silent
        return watch, {name for name, (_, for_ns) in silent.items() if for_ns >= EVICT_NS}

    async def _tell(self, topic: str, group: str, before: Page, turn: Turn) -> None:
        """The other brokers need not wait for their next look when it concerns them."""
        after = turn.page
        counts = {name: of.members for name, of in after.brokers.items()}
        if before.owners != after.owners or counts != {
            name: of.members for name, of in before.brokers.items()
        }:
            word = json.dumps([topic, group, self._broker]).encode()
            await self._cluster.announce(self._subject, word)

    async def _on_told(self, message: Msg) -> None:
        try:
            topic, group, broker = json.loads(message.data)
        except (ValueError, TypeError):
            return
        if broker != self._broker:
            self._told(str(topic), str(group))

    def _share(self, page: Page, held: frozenset[int], until_ns: int) -> Share:
        own = page.brokers.get(self._broker)
        return Share(page.positions, held, page.members - (own.members if own else 0), until_ns)


def _key(topic: str, group: str) -> str:
    return f"group.{_encode(topic)}.{_encode(group)}"


def _encode(name: str) -> str:
    return name.replace(".", "=")


def _decode(word: str) -> str:
    return word.replace("=", ".")
