"""Messages into tables, exactly once.

One transaction moves the partition's offset (compare and set), moves each producer's mark,
drops the repeats that the mark shows, and copies everything that is new. Whatever happens
in between, the messages are either stored and behind the offset, or not at all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import asyncpg
import numpy as np

from gputel.catalog import MetricSet
from gputel.clock import SYSTEM_CLOCK, Clock
from gputel.limits import FRAME_CELLS_MAX, MIB
from gputel.store import chunks, frames, hot, late, processes
from gputel.store.chunks import Chunk
from gputel.store.claim import Claim, ClaimLost
from gputel.store.frames import Content, Message, Poison
from gputel.store.inventory import GpuIds, Identity
from gputel.store.partitions import Partitions
from gputel.store.settings import StoreSettings
from gputel.store.times import to_datetime

if TYPE_CHECKING:
    from gputel.store.connection import Connection, Store

log = logging.getLogger(__name__)

ATTEMPTS_MAX: Final = 5
REASON_CHARACTERS_MAX: Final = 1000
#: event.gpu_id of what happened to the collector itself.
NO_GPU: Final = 0
#: A transaction ends with the message that reaches this, so that what is decoded stays bounded.
TRANSACTION_CELLS: Final = 2 * MIB

# The transaction's fault, not the data's: the same statements may pass when tried again.
_TRANSIENT: Final = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    asyncpg.InvalidCachedStatementError,
)


@dataclass(slots=True)
class Committed:
    """What one or more transactions did."""

    transactions: int = 0
    frames: int = 0
    rows: int = 0
    chunks: int = 0
    processes: int = 0
    size_bytes: int = 0
    repeated_frames: int = 0
    repeated_rows: int = 0
    dead_letters: int = 0
    #: When the stored frames were sealed.
    sealed_at_ns: tuple[int, ...] = ()

    def add(self, other: Committed) -> None:
        """Sum up."""
        self.transactions += other.transactions
        self.frames += other.frames
        self.rows += other.rows
        self.chunks += other.chunks
        self.processes += other.processes
        self.size_bytes += other.size_bytes
        self.repeated_frames += other.repeated_frames
        self.repeated_rows += other.repeated_rows
        self.dead_letters += other.dead_letters
        self.sealed_at_ns += other.sealed_at_ns


class Ingest:
    """Writes messages; one object serves all workers of a process."""

    def __init__(self, store: Store, settings: StoreSettings, clock: Clock = SYSTEM_CLOCK) -> None:
        self._store = store
        self._clock = clock
        self._partitions = Partitions(store, settings)
        self._frozen = late.FrozenRanges(store, clock)
        self._ids = GpuIds()

    async def commit(
        self, claim: Claim, messages: Sequence[Message], done: Committed | None = None
    ) -> Committed:
        """Store `messages`, which ascend in offset and begin at `claim.next_offset` or later.

        They may take several transactions; `done` adds up what is committed, also when an
        error ends it. A message that can't be read, or that the database refuses, becomes a
        dead letter. ClaimLost: the rest was not stored. DatabaseUnavailable: unknown for the
        last transaction; claim the partition again to learn where it stands.
        """
        assert messages, "nothing to commit"
        assert messages[0].offset >= claim.next_offset
        done = Committed() if done is None else done
        now_ns = self._clock.time_ns()
        for items in _parts(frames.read_message(message, now_ns) for message in messages):
            await self._commit_part(claim, items, done)
        return done

    async def _commit_part(
        self, claim: Claim, items: Sequence[Content | Poison], done: Committed
    ) -> None:
        refused = await self._commit(claim, items, done)
        if refused and len(items) > 1:
            # One of them is at fault: the others must not suffer.
            for item in items:
                reason = await self._commit(claim, [item], done)
                if reason:
                    await self._commit_poison(claim, Poison(item.message, reason), done)
        elif refused:
            await self._commit_poison(claim, Poison(items[0].message, refused), done)

    async def _commit_poison(self, claim: Claim, poison: Poison, done: Committed) -> None:
        refused = await self._commit(claim, [poison], done)
        assert not refused, f"a dead letter was refused: {refused}"

    async def _commit(
        self, claim: Claim, items: Sequence[Content | Poison], done: Committed
    ) -> str:
        """One transaction, tried a few times; what the database says against the data, or ''."""
        skip_present = False
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                done.add(await self._attempt(claim, items, skip_present=skip_present))
            except asyncpg.UniqueViolationError:
                # Rows that are there already, from a producer that had another name.
                skip_present = True
            except (
                asyncpg.CheckViolationError,
                asyncpg.UndefinedTableError,
                asyncpg.InternalServerError,
            ) as error:
                # A partition was sealed or dropped since we looked, or while we waited for
                # its lock ("could not open relation", an internal error to PostgreSQL).
                self._partitions.forget()
                # Or a worker's COPY found rows that are there already, and we don't know its words.
                if self._store.cluster and isinstance(error, asyncpg.InternalServerError):
                    skip_present = True
                if attempt == ATTEMPTS_MAX:
                    if isinstance(error, asyncpg.CheckViolationError):
                        return _reason(error)
                    raise self._store.unavailable(error) from error  # no fault of the data's
            except _TRANSIENT as error:
                if late.is_refusal(error):
                    await self._frozen.look()
                if attempt == ATTEMPTS_MAX:
                    raise self._store.unavailable(error) from error
            except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
                return _reason(error)
            except (ValueError, TypeError, OverflowError) as error:
                return _reason(error)  # a value that its column can't hold
            except asyncpg.PostgresError as error:
                raise self._store.unavailable(error) from error
            else:
                return ""
        return "rows were refused as repeats of others, again and again"

    async def _attempt(
        self, claim: Claim, items: Sequence[Content | Poison], *, skip_present: bool
    ) -> Committed:
        contents = [item for item in items if isinstance(item, Content)]
        ranges = self._frozen.known()
        await self._partitions.ensure(frames.needed_partitions(contents))
        await self._partitions.ensure(late.needed_partitions(ranges))
        async with self._store.session() as session:
            async with session.transaction():
                await _advance(session, claim, items[-1].message.offset + 1)
                marks = await _load_marks(session, claim, items)
                fresh, marks, repeated = _without_repeats(items, marks)
                await _write_marks(session, claim, marks)
                contents = [item for item in fresh if isinstance(item, Content)]
                gpus = await self._ids.write(session, *frames.sightings(contents))
                ids = gpus.ids
                done = await _write_samples(
                    session, contents, ids, ranges, skip_present=skip_present
                )
                await _write_events(session, contents, ids)
                done.processes = await _write_processes(session, contents, ids)
                poison = [item for item in fresh if isinstance(item, Poison)]
                await _write_dead_letters(session, claim, poison)
            # Committed: now the memory follows.
            claim.next_offset = items[-1].message.offset + 1
            claim.marks.update(marks)
            self._ids.remember(gpus)
        done.transactions = 1
        done.frames = len(contents)
        done.repeated_frames = repeated
        done.dead_letters = len(poison)
        done.size_bytes = sum(len(content.message.payload) for content in contents)
        done.sealed_at_ns = tuple(content.sealed_at_ns for content in contents)
        return done


def _parts(items: Iterable[Content | Poison]) -> Iterator[list[Content | Poison]]:
    """What goes into each transaction; an item is read when its part is wanted."""
    part: list[Content | Poison] = []
    cells = 0
    for item in items:
        part.append(item)
        if isinstance(item, Content):
            cells += item.cells
        if cells >= TRANSACTION_CELLS:
            yield part
            part, cells = [], 0
    if part:
        yield part


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


async def _advance(session: Connection, claim: Claim, next_offset: int) -> None:
    done = await session.execute(
        "UPDATE sink_offset SET next_offset = $1, committed_at = now() WHERE topic = $2 "
        "AND partition = $3 AND next_offset = $4 AND owner_epoch = $5",
        next_offset,
        claim.topic,
        claim.partition,
        claim.next_offset,
        claim.owner_epoch,
    )
    if done != "UPDATE 1":
        raise ClaimLost(f"partition {claim.partition} of {claim.topic}: another sink has it")


async def _load_marks(
    session: Connection, claim: Claim, items: Sequence[Content | Poison]
) -> dict[str, tuple[int, int]]:
    """The marks of the producers in `items`; those not cached are read."""
    producers = {item.message.producer for item in items}
    marks = {name: claim.marks[name] for name in producers if name in claim.marks}
    if len(marks) < len(producers):
        for name, epoch, sequence in await session.fetch(
            "SELECT producer, epoch, sequence FROM producer_mark "
            "WHERE topic = $1 AND partition = $2 AND producer = ANY($3)",
            claim.topic,
            claim.partition,
            list(producers - marks.keys()),
        ):
            marks[name] = (epoch, sequence)
    return marks


def _without_repeats(
    items: Sequence[Content | Poison], marks: dict[str, tuple[int, int]]
) -> tuple[list[Content | Poison], dict[str, tuple[int, int]], int]:
    """(what is above its producer's mark, the marks afterwards, how many were not)."""
    after = dict(marks)
    fresh = []
    for item in items:
        message = item.message
        identity = (message.epoch, message.sequence)
        if identity > after.get(message.producer, (0, 0)):
            after[message.producer] = identity
            fresh.append(item)
    return fresh, after, len(items) - len(fresh)


async def _write_marks(
    session: Connection, claim: Claim, marks: dict[str, tuple[int, int]]
) -> None:
    changed = {name: mark for name, mark in marks.items() if claim.marks.get(name) != mark}
    if not changed:
        return
    await session.execute(
        "INSERT INTO producer_mark (topic, partition, producer, epoch, sequence, updated_at) "
        "SELECT $1, $2, producer, epoch, sequence, now() "
        "FROM unnest($3::text[], $4::bigint[], $5::bigint[]) AS m (producer, epoch, sequence) "
        "ON CONFLICT (topic, partition, producer) DO UPDATE SET epoch = excluded.epoch, "
        "sequence = excluded.sequence, updated_at = excluded.updated_at",
        claim.topic,
        claim.partition,
        list(changed),
        [epoch for epoch, _ in changed.values()],
        [sequence for _, sequence in changed.values()],
    )


async def _write_samples(
    session: Connection,
    contents: Sequence[Content],
    ids: Mapping[Identity, int],
    ranges: late.Ranges,
    *,
    skip_present: bool,
) -> Committed:
    """One COPY a table. Hot rows in `ranges` become chunks."""
    done = Committed()
    blocks: dict[MetricSet, list[hot.Piece]] = {}
    kept: list[tuple[int, Chunk]] = []
    for content in contents:
        for block in content.hot:
            gpu_ids = np.array([ids[identity] for identity in block.identities], np.int64)
            piece = hot.Piece(np.repeat(gpu_ids, block.counts), content.message.epoch, block.rows)
            blocks.setdefault(block.metric_set, []).append(piece)
        kept += [(ids[identity], chunk) for identity, chunk, _ in content.chunks]
    for metric_set, pieces in blocks.items():
        if ranges:
            pieces, others = late.divide(metric_set, pieces, ranges)
            kept += others
        offered = sum(len(piece.rows.time_ns) for piece in pieces)
        new = await hot.write(session, metric_set, pieces, skip_present=skip_present)
        done.rows += new
        done.repeated_rows += offered - new
    if kept:
        offered = sum(chunk.samples for _, chunk in kept)
        written = await chunks.write(session, kept, skip_present=skip_present)
        done.chunks += written.chunks
        done.rows += written.samples
        done.repeated_rows += offered - written.samples
    return done


async def _write_events(
    session: Connection, contents: Sequence[Content], ids: Mapping[Identity, int]
) -> None:
    rows = [
        (
            ids.get((event.gpu_uuid, content.node), NO_GPU),
            to_datetime(event.time_ns),
            content.node,
            event.gpu_uuid,
            event.kind.value,
            event.code,
            event.message,
        )
        for content in contents
        for event in content.events
    ]
    if rows:
        await session.execute(
            "INSERT INTO event (gpu_id, time, node, gpu_uuid, kind, code, message) "
            "SELECT * FROM unnest($1::bigint[], $2::timestamptz[], $3::text[], $4::text[], "
            "$5::text[], $6::bigint[], $7::text[])",
            *zip(*rows, strict=True),
        )


async def _write_processes(
    session: Connection, contents: Sequence[Content], ids: dict[Identity, int]
) -> int:
    rows = [
        (ids[sample.gpu_uuid, content.node], sample)
        for content in contents
        for sample in content.processes
    ]
    return await processes.write(session, rows)


async def _write_dead_letters(session: Connection, claim: Claim, poison: Sequence[Poison]) -> None:
    for item in poison:
        message = item.message
        log.warning(
            "partition %d offset %d of %s goes to dead_letter: %s",
            claim.partition,
            message.offset,
            claim.topic,
            item.reason,
        )
        await session.execute(
            'INSERT INTO dead_letter (topic, partition, "offset", producer, epoch, sequence, '
            "reason, payload) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            claim.topic,
            claim.partition,
            message.offset,
            message.producer,
            message.epoch,
            message.sequence,
            item.reason[:REASON_CHARACTERS_MAX],
            message.payload,
        )


assert TRANSACTION_CELLS <= FRAME_CELLS_MAX
