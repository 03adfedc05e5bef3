"""The laws of tests/fault/test_history.py notice what they are there for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from support import history as laws
from support.history import History, Identity

Log = dict[int, list[mq.Delivery]]
GOOD = [Identity("p", 1, 1), Identity("p", 1, 2), Identity("p", 2, 1)]
UNACKNOWLEDGED = "not acknowledged after 3 deliveries"
POISON = Identity("p", 2, laws.POISON_EVERY)


def message(identity: Identity, offset: int) -> mq.Delivery:
    return mq.Delivery(
        offset=offset,
        producer=identity.producer,
        epoch=identity.epoch,
        sequence=identity.sequence,
        payload=laws.payload_of(identity),
    )


def letter(identity: Identity, reason: str = laws.POISON, attempts: int = 1) -> mq.Delivery:
    buried = mq.DeadLetter(
        topic="t",
        reason=reason,
        attempts=attempts,
        producer=identity.producer,
        epoch=identity.epoch,
        sequence=identity.sequence,
        payload=laws.payload_of(identity),
    )
    return mq.Delivery(payload=buried.SerializeToString())


def lawful() -> tuple[History, Log, list[mq.Delivery]]:
    history = History()
    everything = [*GOOD, POISON]
    history.published |= set(everything)
    history.acked |= set(everything[:2])
    history.terminated.add(POISON)
    history.applied += everything
    for group in ("group", "strict"):
        history.by_group[group] |= set(everything)
    for offset, identity in enumerate(everything):
        history.delivered[0, offset] = identity
    log = {0: [message(identity, offset) for offset, identity in enumerate(everything)]}
    return history, log, [letter(POISON)]


def test_what_is_lawful_passes() -> None:
    assert list(laws.broken(*lawful())) == []


def test_a_good_message_may_be_given_up_when_members_were_lost_with_it() -> None:
    history, log, letters = lawful()
    history.takings[0] = laws.STRICT_DELIVERIES
    letters.append(letter(GOOD[0], UNACKNOWLEDGED, laws.STRICT_DELIVERIES))
    letters.append(letters[-1])  # the broker died before it knew that it was buried
    assert list(laws.broken(history, log, letters)) == []


def lose(history: History, log: Log, letters: list[mq.Delivery]) -> None:
    history.acked.add(Identity("p", 3, 1))


def double(history: History, log: Log, letters: list[mq.Delivery]) -> None:
    log[1] = [message(GOOD[0], 0)]


def invent(history: History, log: Log, letters: list[mq.Delivery]) -> None:
    history.published.remove(GOOD[2])


def swap(history: History, log: Log, letters: list[mq.Delivery]) -> None:
    history.delivered.clear()
    log[0] = [message(GOOD[1], 0), message(GOOD[0], 1), *log[0][2:]]


def spoil(history: History, log: Log, letters: list[mq.Delivery]) -> None:
    log[0][1].payload += b"x"


def forget(history: History, log: Log, letters: list[mq.Delivery]) -> None:
    history.by_group["group"].discard(GOOD[1])


def vanish(history: History, log: Log, letters: list[mq.Delivery]) -> None:
    history.delivered[0, 9] = GOOD[0]


def change(history: History, log: Log, letters: list[mq.Delivery]) -> None:
    history.delivered[0, 0] = GOOD[1]


def apply_twice(history: History, log: Log, letters: list[mq.Delivery]) -> None:
    history.applied.append(GOOD[0])


def never_apply(history: History, log: Log, letters: list[mq.Delivery]) -> None:
    history.applied.remove(GOOD[0])


def lose_letter(history: History, log: Log, letters: list[mq.Delivery]) -> None:
    letters.clear()


def spoil_letter(history: History, log: Log, letters: list[mq.Delivery]) -> None:
    buried = mq.DeadLetter.FromString(letters[0].payload)
    buried.payload += b"x"
    letters[0].payload = buried.SerializeToString()


def bury_good(history: History, log: Log, letters: list[mq.Delivery]) -> None:
    history.takings[0] = laws.STRICT_DELIVERIES - 1
    letters.append(letter(GOOD[0], UNACKNOWLEDGED, laws.STRICT_DELIVERIES))


def bury_early(history: History, log: Log, letters: list[mq.Delivery]) -> None:
    history.takings[0] = 100
    letters.append(letter(GOOD[0], UNACKNOWLEDGED, laws.STRICT_DELIVERIES - 1))


def bury_another(history: History, log: Log, letters: list[mq.Delivery]) -> None:
    history.takings[0] = 100
    letters.append(letter(GOOD[0]))


@pytest.mark.parametrize(
    ("crime", "sentence"),
    [
        (lose, "1 acknowledged and lost"),
        (double, "1 messages are stored twice"),
        (invent, "1 from nowhere"),
        (swap, "lies behind"),
        (spoil, "has other bytes"),
        (forget, "1 never delivered to `group`"),
        (vanish, "were delivered and are gone"),
        (change, "was delivered as"),
        (apply_twice, "1 applied twice"),
        (never_apply, "1 never applied"),
        (lose_letter, "1 given up and not among"),
        (spoil_letter, "the dead letter of"),
        (bury_good, "0: 1 dead letters that nobody gave up: members were given it 2 times"),
        (bury_early, "was given up after 2 deliveries: not acknowledged"),
        (bury_another, "was given up after 1 deliveries: poison"),
    ],
)
def test_what_is_not_lawful_is_told(
    crime: Callable[[History, Log, list[mq.Delivery]], None], sentence: str
) -> None:
    history, log, letters = lawful()
    crime(history, log, letters)
    assert any(sentence in told for told in laws.broken(history, log, letters))
