"""Brokers that share a group's partitions by taking turns with one page."""

from __future__ import annotations

import random

from gputel.broker.engine.jetstream.book import Page, Presence, take_turn


def turn(page: Page, broker: str, members: int, partitions: int = 4, **changed):
    fields = {"positions": {}, "released": {}, "gone": ()} | changed
    return take_turn(page, broker, members=members, partitions=partitions, **fields)


def test_the_first_broker_gets_all_and_gives_back_when_another_comes() -> None:
    page, held, changed = turn(Page(), "a", 1)
    assert held == {0, 1, 2, 3}
    assert changed
    page, held, _ = turn(page, "b", 1)
    assert held == set()
    page, held, _ = turn(page, "a", 1, positions=dict.fromkeys(range(4), 10))
    assert held == {0, 1}
    # Until it has let go, it owns them: nobody else does.
    assert turn(page, "b", 1).held == set()
    page, held, _ = turn(page, "a", 1, positions={0: 11, 1: 11}, released={2: 12, 3: 13})
    assert held == {0, 1}
    page, held, _ = turn(page, "b", 1)
    assert held == {2, 3}
    assert page.positions == {0: 11, 1: 11, 2: 12, 3: 13}
    assert not turn(page, "b", 1, positions={2: 12, 3: 13}).changed


def test_shares_follow_the_members() -> None:
    page = Page({"a": Presence(3, 0), "b": Presence(1, 0)}, {})
    page, held, _ = turn(page, "a", 3)
    assert len(held) == 3
    assert len(turn(page, "b", 1).held) == 1


def test_who_has_lost_a_partition_can_not_move_its_position() -> None:
    page, _, _ = turn(Page(), "a", 1)
    page, held, _ = turn(page, "b", 1, gone={"a"})
    assert held == {0, 1, 2, 3}
    page, _, _ = turn(page, "b", 1, positions={0: 100})
    page, held, _ = turn(page, "a", 1, positions={0: 7}, released={1: 9})
    assert held == set()
    assert page.positions == {0: 100}


def test_a_broker_without_members_leaves_the_page_and_its_positions() -> None:
    page, _, _ = turn(Page(), "a", 2)
    page, held, _ = turn(page, "a", 0, released={0: 5, 1: 6, 2: 7, 3: 8})
    assert held == set()
    assert page == Page({}, {}, {0: 5, 1: 6, 2: 7, 3: 8})


def test_what_has_dead_letters_on_their_way_is_kept_until_it_is_let_go_of() -> None:
    page, _, _ = turn(Page(), "a", 1)
    page, _, _ = turn(page, "a", 0, positions={3: 1}, released={0: 5, 1: 6, 2: 7})
    assert page.owners == {3: "a"}
    page, held, _ = turn(page, "b", 1)
    assert held == {0, 1, 2}
    page, _, _ = turn(page, "a", 0, released={3: 2})
    assert turn(page, "b", 1).held == {0, 1, 2, 3}


class Brokers:
    """Brokers that take turns, as registries make them."""

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions
        self.page = Page()
        self.members = dict.fromkeys("abc", 0)
        self.held: dict[str, frozenset[int]] = dict.fromkeys("abc", frozenset())
        self.released: dict[str, frozenset[int]] = dict.fromkeys("abc", frozenset())

    def go(self, name: str) -> None:
        """One turn; a broker without members lets go of everything."""
        if not self.members[name]:
            self.released[name] |= self.held[name]
            self.held[name] = frozenset()
        self.page, held, _ = take_turn(
            self.page,
            name,
            members=self.members[name],
            partitions=self.partitions,
            positions=dict.fromkeys(self.held[name], 1),
            released=dict.fromkeys(self.released[name], 1),
        )
        self.released[name] = self.held[name] - held
        self.held[name] = held
        everywhere = [p for those in self.held.values() for p in those]
        assert len(everywhere) == len(set(everywhere)), "a partition is held twice"


def test_any_history_of_turns_ends_with_everything_shared_evenly() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for _ in range(200):
        brokers = Brokers(draw.randint(1, 12))
        for _ in range(30):
            brokers.members[draw.choice("abc")] = draw.randint(0, 3)
            brokers.go(draw.choice("abc"))
        for name in "abc" * 4:
            brokers.go(name)
        total = sum(brokers.members.values())
        held = sorted(p for those in brokers.held.values() for p in those)
        assert held == (list(range(brokers.partitions)) if total else [])
        for name, count in brokers.members.items():
            share = brokers.partitions // max(total, 1)
            assert share * count <= len(brokers.held[name]) <= (share + 1) * count
