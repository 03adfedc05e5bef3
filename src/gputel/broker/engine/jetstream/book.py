"""How brokers share the partitions of a group: one page that all of them write in turns.

    {"brokers": {"a": {"members": 2, "beat": 17}, "b": {"members": 1, "beat": 5}},
     "owners": {"0": "a", "1": "a", "2": "b"}, "positions": {"0": 812, "1": 90, "2": 4711}}

A turn reads the page, changes it, and writes it unless somebody else was faster. Each broker
owns partitions by how many members it has; who has too many gives some back, who has too few
takes free ones. Only a partition's owner moves its position. No I/O, no time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec


class Presence(msgspec.Struct):
    """A broker that has members of the group. `beat` changes as long as it lives."""

    members: int
    beat: int


class Page(msgspec.Struct):
    """What is written down of a group."""

    brokers: dict[str, Presence] = {}
    owners: dict[int, str] = {}
    positions: dict[int, int] = {}

    @property
    def members(self) -> int:
        """How many members the group has, at all brokers."""
        return sum(broker.members for broker in self.brokers.values())


class Turn(NamedTuple):
    """A page as one broker leaves it, and what that broker holds from now on.

    `held` lacks what it shall give back: it owns that until it has said where it stands.
    """

    page: Page
    held: frozenset[int]
    changed: bool


def take_turn(
    page: Page,
    broker: str,
    *,
    members: int,
    partitions: int,
    positions: Mapping[int, int],
    released: Mapping[int, int | None],
    gone: Collection[str] = (),
) -> Turn:
    """The turn of `broker`, which stands at `positions` in what it holds and at `released` in
    what it has let go of; brokers `gone` have not been heard of for too long."""
    brokers = {name: of for name, of in page.brokers.items() if name not in gone}
    owners = {p: name for p, name in page.owners.items() if name in brokers}
    # None: no member has begun with it, so that it stands where it did.
    stands = {**positions, **{p: at for p, at in released.items() if at is not None}}
    places = page.positions | {p: at for p, at in stands.items() if page.owners.get(p) == broker}
    for partition in released:
        if owners.get(partition) == broker:
            del owners[partition]
    if members or positions:  # what is held without members has dead letters on their way
        known = brokers.get(broker)
        brokers[broker] = Presence(members, known.beat if known else 0)
    else:
        brokers.pop(broker, None)
        owners = {p: name for p, name in owners.items() if name != broker}
    quotas = _quotas(brokers, owners, partitions)
    quota = quotas.get(broker, 0)
    mine = sorted(p for p, name in owners.items() if name == broker)
    for partition in range(partitions):
        if len(mine) < quota and partition not in owners:
            owners[partition] = broker
            mine.append(partition)
    held = frozenset(mine)
    if len(mine) > quota and any(
        sum(name == other for name in owners.values()) < quotas[other] for other in quotas
    ):
        held = frozenset(mine[:quota])
    turned = Page(brokers, owners, places)
    return Turn(turned, held, turned != page)


def _quotas(
    brokers: Mapping[str, Presence], owners: Mapping[int, str], partitions: int
) -> dict[str, int]:
    """How many partitions each broker shall own; the same at whoever reckons it."""
    total = sum(broker.members for broker in brokers.values())
    if not total:
        return {}
    share, extra = divmod(partitions, total)
    quotas = {name: share * of.members for name, of in brokers.items()}
    owned = Counter(owners.values())
    # Each member may have one of what can't be shared evenly. Who has some keeps them, and that
    # does not change while what is too much is given back.
    room = {name: of.members for name, of in brokers.items()}
    for wanted in ({name: owned[name] - quotas[name] for name in quotas}, room):
        for name in sorted(brokers):
            added = min(extra, max(wanted[name], 0), room[name])
            quotas[name] += added
            room[name] -= added
            extra -= added
    return quotas
