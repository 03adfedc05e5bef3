"""The groups of this broker: made when somebody asks, their positions kept by the engine.

Where brokers share an engine, each serves some partitions of a group only, for as long as it
renews its share; the registry asks, and tells the groups.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from gputel import limits
from gputel.broker.background import Background
from gputel.broker.engine import Engine, NoRoom, Share, Sharing
from gputel.broker.groups import Group
from gputel.broker.statuses import GroupInUse
from gputel.clock import Clock
from gputel.errors import GputelError

log = logging.getLogger(__name__)

RENEW_S: Final = 0.5
LOOK_S: Final = 2.0  # how old may be what is told of groups that only other brokers serve


class Registry:
    """Groups by (topic, name)."""

    def __init__(self, engine: Engine, clock: Clock, background: Background) -> None:
        self._engine = engine
        self._clock = clock
        self._background = background
        self._leases: dict[tuple[str, str], _Lease] = {}
        self.groups: dict[tuple[str, str], Group] = {}

    async def start(self) -> None:
        """Know the groups that the engine knows."""
        sharing = self._engine.sharing
        if sharing is not None:
            sharing.listen(self._told)
            await self.refresh()
            self._background.start(self._look(), "registry-look")
            return
        for (topic, name), positions in (await self._engine.load_positions()).items():
            if topic in self._engine.topics:
                partitions = len(self._engine.topics[topic].partitions)
                self.groups[topic, name] = Group(topic, name, partitions, positions)

    def open(self, topic: str, name: str, partitions: int) -> Group:
        """The group, which is made when missing. NoRoom."""
        group = self.groups.get((topic, name))
        if group is None:
            held = sum(of == topic for of, _ in self.groups)
            if held >= limits.GROUPS_PER_TOPIC_MAX:
                raise NoRoom(f"topic {topic!r} has {held} groups, the most it may have")
            group = self._make(topic, name, partitions)
        return group

    def _make(self, topic: str, name: str, partitions: int) -> Group:
        group = self.groups[topic, name] = Group(topic, name, partitions, {})
        sharing = self._engine.sharing
        if sharing is not None:
            self._leases[topic, name] = _Lease(group, sharing, self._clock, self._background)
        return group

    async def refresh(self) -> None:
        """Know what other brokers have done."""
        sharing = self._engine.sharing
        if sharing is None:
            return
        topics = dict(self._engine.topics)
        for (topic, name), share in (await sharing.groups(topics)).items():
            group = self.groups.get((topic, name))
            if group is None:
                group = self._make(topic, name, len(topics[topic].partitions))
            group.look(share.positions, share.members_elsewhere)

    def tick(self, now_ns: int) -> None:
        """See `Group.tick`."""
        for group in tuple(self.groups.values()):
            group.tick(now_ns)
        for lease in tuple(self._leases.values()):
            lease.tick(now_ns)

    async def save(self) -> None:
        """Keep the positions of a broker that is alone. OSError."""
        if self._engine.sharing is not None:
            return
        for (topic, name), group in tuple(self.groups.items()):
            positions = group.unsaved()
            if positions is not None:
                await self._engine.save_positions(topic, name, positions)
                group.saved(positions)

    async def seek(self, group: Group, targets: Mapping[int, int]) -> None:
        """Move a group that has no members. GroupInUse."""
        if group.members:
            raise GroupInUse(
                f"group {group.name!r} of topic {group.topic!r} has {len(group.members)} members",
                hint="stop them first: a member would go on from where it stands",
            )
        lease = self._leases.get((group.topic, group.name))
        if lease is not None:
            await lease.seek(targets)
            return
        group.seek(targets)
        positions = group.positions
        await self._engine.save_positions(group.topic, group.name, positions)
        group.saved(positions)

    async def stop(self) -> None:
        """Save the positions, and leave the partitions to others."""
        if self._leases:
            await asyncio.gather(*(lease.stop() for lease in self._leases.values()))
        await self.save()

    async def _look(self) -> None:
        """Groups whose members are all elsewhere move too: their lag shall not seem to grow."""
        while True:
            await self._clock.sleep(LOOK_S)
            try:
                await self.refresh()
            except (GputelError, OSError) as error:
                log.debug("groups are looked at again later: %s", error)

    def _told(self, topic: str, name: str) -> None:
        lease = self._leases.get((topic, name))
        if lease is not None:
            lease.stir()


class _Lease:
    """One group's share of its partitions."""

    def __init__(
        self, group: Group, sharing: Sharing, clock: Clock, background: Background
    ) -> None:
        self._group = group
        self._sharing = sharing
        self._clock = clock
        self._until_ns = 0
        self._released: dict[int, int | None] = {}
        self._turn = asyncio.Lock()
        self._stirred = asyncio.Event()
        self._failure = ""
        self._closed = False
        group.hold(frozenset(), {})
        group.on_members = self.stir
        self._background = background
        self._task = background.start(self._run(), f"share-{group.topic}-{group.name}")

    def stir(self) -> None:
        """Look at the share now."""
        self._stirred.set()

    def tick(self, now_ns: int) -> None:
        """Stop delivering when the share could not be renewed."""
        if self._group.held and now_ns >= self._until_ns:
            # Others may serve it by now.
            log.warning(
                "group %s of topic %s: its share could not be renewed in time, deliveries stop",
                self._group.name,
                self._group.topic,
            )
            self._group.hold(frozenset(), {})

    async def seek(self, targets: Mapping[int, int]) -> None:
        """Move the group. GroupInUse."""
        async with self._turn:
            group = self._group
            self._let_go(frozenset())
            await self._sharing.renew(
                group.topic,
                group.name,
                partitions=len(group.cursors),
                members=0,
                positions={},
                released=dict(self._released),
            )
            self._released.clear()
            moved = await self._sharing.seek(group.topic, group.name, targets)
            if group.members or not moved:
                raise GroupInUse(
                    f"group {group.name!r} of topic {group.topic!r} has members",
                    hint="stop them first; those of a broker that died are forgotten in seconds",
                )
            group.seek(targets)

    async def stop(self) -> None:
        """Give everything back."""
        await self._background.stop(self._task)
        self._closed = True
        try:
            await self._renew()
        except (GputelError, OSError) as error:
            log.warning(
                "group %s of topic %s: its positions are not saved: %s",
                self._group.name,
                self._group.topic,
                error,
            )

    async def _run(self) -> None:
        while True:
            self._stirred.clear()
            try:
                if self._group.members or self._group.held or self._released:
                    await self._renew()
                self._failure = ""
            except (GputelError, OSError) as error:
                if str(error) != self._failure:
                    self._failure = str(error)
                    log.warning("group %s: can't renew its share: %s", self._group.name, error)
            await self._wait()

    async def _wait(self) -> None:
        """Until it is time, or something has happened. A group without members need not look."""
        busy = self._group.members or self._group.held or self._released
        sleeping = asyncio.ensure_future(self._clock.sleep(RENEW_S)) if busy else None
        stirring = asyncio.ensure_future(self._stirred.wait())
        waiting = {task for task in (sleeping, stirring) if task is not None}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _renew(self) -> None:
        async with self._turn:
            again = True
            while again:
                group = self._group
                members = 0 if self._closed else len(group.members)
                if not members:
                    self._let_go(frozenset())
                released = dict(self._released)
                share = await self._sharing.renew(
                    group.topic,
                    group.name,
                    partitions=len(group.cursors),
                    members=members,
                    positions=group.held_positions,
                    released=released,
                )
                self._released.clear()
                self._until_ns = share.until_ns
                group.look(share.positions, share.members_elsewhere)
                again = self._take(share) if group.members and not self._closed else False

    def _take(self, share: Share) -> bool:
        """Hold what the share says; whether something was let go of, which is to be said."""
        group = self._group
        if self._clock.monotonic_ns() >= share.until_ns:
            return False  # it took too long: the next one is in time
        let_go = self._let_go(share.held)
        group.hold(group.held | share.held, share.positions)
        return let_go

    def _let_go(self, kept: frozenset[int]) -> bool:
        """Serve `kept` only, and what has messages on their way to the dead letters."""
        group = self._group
        lost = {
            partition
            for partition in group.held - kept
            if self._closed or not group.cursors[partition].dead
        }
        group.hold(group.held - lost, {})
        for partition in lost:
            self._released[partition] = group.cursors[partition].floor
        return bool(lost)
