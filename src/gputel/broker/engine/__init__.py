"""The seam between the broker's protocol and what keeps its messages.

The server and the consumer groups know these protocols only. An engine stores messages
durably, in order per partition, and recognises repeats; it knows no consumers beyond
their saved positions. All methods are called on the event loop's thread, none blocks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from gputel.broker.engine.record import Record
from gputel.errors import GputelError
from gputel.observe import Health, Telemetry

__all__ = [
    "Chunk",
    "Engine",
    "Message",
    "NoRoom",
    "PartitionFailed",
    "PartitionLog",
    "Record",
    "Share",
    "Sharing",
    "TopicLog",
]


class PartitionFailed(GputelError):
    """A partition that takes no more messages, and why."""


class NoRoom(GputelError):
    """A bound of the broker that is reached: topics, producers, groups or streams."""


class Message(NamedTuple):
    """A message of a producer on its way into a partition."""

    sequence: int
    key: bytes
    payload: bytes


class Chunk(NamedTuple):
    """What a read returned, and the offset where the next read goes on.

    `next_offset` is beyond the last record's successor when what lies between is gone
    (retention) or can't be read any more (damage).
    """

    records: Sequence[Record]
    next_offset: int


class PartitionLog(Protocol):
    """An ordered log of messages."""

    @property
    def index(self) -> int: ...
    @property
    def name(self) -> str:
        """`topic/index`, for people."""
        ...

    @property
    def first_offset(self) -> int:
        """The oldest offset still kept."""
        ...

    @property
    def next_offset(self) -> int:
        """One beyond the newest durable message: what readers may read up to."""
        ...

    @property
    def size_bytes(self) -> int: ...
    @property
    def segments(self) -> int: ...
    @property
    def failure(self) -> str:
        """Why no more messages are taken; empty when they are."""
        ...

    @property
    def damage(self) -> str:
        """Which stored messages can't be read any more; empty when all can."""
        ...

    @property
    def pending_bytes(self) -> int:
        """Accepted and not yet durable."""
        ...

    @property
    def damaged_bytes(self) -> int: ...
    @property
    def messages_in(self) -> int:
        """Messages that this broker has stored since it began; so are the next two."""
        ...

    @property
    def bytes_in(self) -> int: ...
    @property
    def duplicates(self) -> int: ...

    def append(
        self,
        producer: str,
        epoch: int,
        sequence: int,
        key: bytes,
        payload: bytes,
        *,
        repeatable: bool = True,
    ) -> int:
        """Accept a message; returns a ticket for `is_durable`.

        A repeat (see `Message` in the protocol) is not stored; its ticket is that of what
        was stored. `repeatable=False` stores the message whatever its sequence is.
        Raises ProducerFenced, PartitionFailed, and NoRoom when there is no room.
        """
        ...

    def extend(
        self, producer: str, epoch: int, messages: Sequence[Message], *, repeatable: bool = True
    ) -> int:
        """Accept messages of growing sequences, at least one; the ticket of the last.

        As `append` of each, but all or none: when one is durable, those before it are.
        """
        ...

    def is_durable(self, ticket: int) -> bool: ...

    async def catch_up(self) -> None:
        """Know of all that is durable, whichever broker has stored it. BrokerUnavailable."""
        ...

    async def read(self, offset: int, messages_max: int, bytes_max: int) -> Chunk:
        """Messages from `offset` on; at least one where there is one, else within the bounds."""
        ...

    async def offset_at(self, time_ns: int) -> int:
        """The first message stored at or after `time_ns`, by the clock of the broker then;
        `next_offset` when there is none."""
        ...

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` after every commit, and when the partition fails."""
        ...

    def unwatch(self, changed: Callable[[], None]) -> None: ...


class TopicLog(Protocol):
    """A named set of partitions, and the producers that write to it."""

    @property
    def name(self) -> str: ...
    @property
    def id(self) -> str:
        """Made with the topic, never used again."""
        ...

    @property
    def partitions(self) -> Sequence[PartitionLog]: ...

    async def open_producer(self, producer: str, epoch: int) -> int:
        """Fence older epochs; returns a sequence up to which everything is durable.

        Raises ProducerFenced when a newer epoch is known.
        """
        ...

    def newest_epoch(self, producer: str) -> int:
        """The epoch that may publish; 0 for an unknown producer."""
        ...


class Share(NamedTuple):
    """What this broker serves of a group until `until_ns` (monotonic), and what others do."""

    positions: Mapping[int, int]
    held: frozenset[int]
    members_elsewhere: int
    until_ns: int


class Sharing(Protocol):
    """Groups whose partitions are served by several brokers."""

    def listen(self, told: Callable[[str, str], None]) -> None:
        """Call `told(topic, group)` when another broker's turn concerns this one."""
        ...

    async def groups(self, topics: Iterable[str]) -> Mapping[tuple[str, str], Share]:
        """All groups ever known of `topics`, by (topic, group)."""
        ...

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
        """Say that this broker lives, has `members`, and where it stands in what it holds and
        in what it has let go of. What `held` lacks must be let go of, and be said so."""
        ...

    async def seek(self, topic: str, group: str, positions: Mapping[int, int]) -> bool:
        """Move a group; False when it has members somewhere."""
        ...


class Engine(Protocol):
    """Topics, and the saved positions of consumer groups."""

    @property
    def sharing(self) -> Sharing | None:
        """How groups are shared with other brokers; None when this one is alone. Then
        `load_positions` and `save_positions` keep the positions."""
        ...

    def observe(self, telemetry: Telemetry, health: Health) -> None:
        """Register the engine's own metrics and checks; once, before `start`."""
        ...

    async def start(self) -> None: ...

    async def stop(self) -> None:
        """Make durable what was accepted, and let go of everything."""
        ...

    @property
    def topics(self) -> Mapping[str, TopicLog]: ...

    async def open_topic(self, name: str) -> TopicLog:
        """The topic, which is made when missing."""
        ...

    async def find_topic(self, name: str) -> TopicLog | None:
        """The topic, if there is one."""
        ...

    async def refresh(self) -> None:
        """Know of all topics and all that is durable in them, whichever broker made it."""
        ...

    async def until_failed(self) -> str:
        """Return once a new process would do what this one can't any more; why that is so."""
        ...

    def throttle_ms(self) -> int:
        """How long producers should wait before they send more; 0 when they need not."""
        ...

    async def room(self) -> None:
        """Return once few enough bytes are accepted and not yet durable to accept more."""
        ...

    async def load_positions(self) -> Mapping[tuple[str, str], Mapping[int, int]]:
        """(topic, group) -> partition -> next offset, of all groups ever saved."""
        ...

    async def save_positions(self, topic: str, group: str, positions: Mapping[int, int]) -> None:
        """Keep a group's positions durably; a crash leaves the old ones or these."""
        ...
