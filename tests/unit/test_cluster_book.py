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


def test_any_history_of_turns_ends_with_everything_shared_evenly() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for _ in range(200):
        partitions = draw.randint(1, 12)
        members = {name: 0 for name in "abc"}
        held: dict[str, set[int]] = {name: set() for name in "abc"}
        page = Page()

        def go(name: str) -> None:
            nonlocal page
            page, now, _ = take_turn(
                page,
                name,
                members=members[name],
                partitions=partitions,
                positions=dict.fromkeys(held[name], 1) if members[name] else {},
                released=dict.fromkeys(released[name], 1)
                | ({} if members[name] else dict.fromkeys(held[name], 1)),
            )
            released[name] = held[name] - now
            held[name] = set(now)
            everywhere = [p for those in held.values() for p in those]
            assert len(everywhere) == len(set(everywhere)), "a partition is held twice"

        released: dict[str, set[int]] = {name: set() for name in "abc"}
        for _ in range(30):
            name = draw.choice("abc")
            members[name] = draw.randint(0, 3)
            go(draw.choice("abc"))
        for _ in range(4):
            for name in "abc":
                go(name)
        total = sum(members.values())
        if not total:
            assert not any(held.values())
            continue
        assert sorted(p for those in held.values() for p in those) == list(range(partitions))
        share = partitions // total
        for name in "abc":
            assert share * members[name] <= len(held[name]) <= (share + 1) * members[name]
