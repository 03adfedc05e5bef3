"""The writing end of a partition: what is accepted becomes blocks, and blocks form a chain.

A block is stored only as the successor of the block that its broker took for the last one
(`Nats-Expected-Last-Sequence`). So a partition is one log however many brokers write to it:

    41 lost with a leader    it is sent again; nothing was sent behind it, so no hole appears
    another broker's 41      ours is refused; we read theirs, and know its producers' marks

Whatever goes wrong, what comes next is the same: wait for the last answer, ask the leader where
the log ends, read what is new there, and send again what is not in it. A block that was stored
though its answer was lost is recognised by its id; a message that another broker has stored, by
its producer's mark. No time window limits either.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from gputel import limits
from gputel.broker.engine import Message
from gputel.broker.engine.jetstream import block
from gputel.broker.engine.jetstream.block import Head
from gputel.broker.engine.jetstream.cluster import (
    REQUEST_S,
    WRONG_LAST_SEQUENCE,
    Cluster,
    Refused,
)
from gputel.broker.engine.memory import Backlog, cost_bytes
from gputel.broker.engine.producers import Mark, Producers
from gputel.clock import Clock
from gputel.errors import BrokerUnavailable

log = logging.getLogger(__name__)

#: NOTE(one): behind a block that is lost another broker's may take its place; a second one in
#: flight would then pass the comparison of sequences, with wrong offsets and a hole before it.
#: More would not be faster either: docs/decisions/068.
IN_FLIGHT_MAX: Final = 1
#: While a block is on its way, the next one waits until it is worth a sync of the servers.
GATHER_BYTES: Final = 256 * limits.KIB
RETRY_FIRST_S: Final = 0.05
RETRY_LAST_S: Final = 1.0
#: A stream without a leader answers nothing: ask again soon, and be patient with a slow one.
ASK_FIRST_S: Final = 1.0
#: Tickets that are remembered as refused. Streams ask first whether they are fenced.
FENCED_MAX: Final = 4096


@dataclass(eq=False, slots=True)
class Run:
    """Messages of one producer and epoch, accepted together. A ticket is a run's number."""

    ticket: int
    producer: str
    epoch: int
    messages: Sequence[Message]
    repeatable: bool
    cost_bytes: int  # in memory, as accepted
    size_bytes: int  # in a block
    done: bool = False


@dataclass(eq=False, slots=True)
class Sent:
    """A block on its way to become `sequence` of the stream."""

    sequence: int
    head: Head
    runs: list[Run]
    payload: bytes
    answer: asyncio.Task[int] = field(repr=False)


class Log(Protocol):
    """What a writer sees of its partition."""

    @property
    def name(self) -> str: ...
    @property
    def tip(self) -> int:
        """The stream sequence of the last known block."""
        ...

    @property
    def next_offset(self) -> int: ...
    @property
    def newest_ns(self) -> int:
        """When the last known block was stored."""
        ...

    @property
    def durable(self) -> Producers: ...

    async def catch_up(self, timeout_s: float) -> None: ...
    def stored(self, sent: Sent) -> None:
        """`sent` is durable at its sequence."""
        ...

    def notify(self) -> None: ...


class Writer:
    """Accepts messages and brings them into the stream, in order."""

    def __init__(
        self, of: Log, subject: str, cluster: Cluster, clock: Clock, backlog: Backlog, name: str
    ) -> None:
        self._log = of
        self._subject = subject
        self._cluster = cluster
        self._clock = clock
        self._backlog = backlog
        self._name = name
        self._accepted = of.durable.copy()
        self._open: deque[Run] = deque()  # neither durable nor refused, by ticket
        self._pending: deque[Run] = deque()
        self._pending_size_bytes = 0
        self._in_flight: deque[Sent] = deque()
        self._lost: dict[str, tuple[int, list[Run]]] = {}  # sent blocks without an answer yet
        self._fenced: dict[int, None] = {}
        self._done_ticket = 0
        self._next_ticket = 1
        self._number = 0
        self._chain = (0, 0, 0)  # sequence, base and time of the last block in flight
        self._broken = False  # the chain in flight can't be continued
        self._stale = False  # another broker has stored something since the last look
        self._retry_s = RETRY_FIRST_S
        self._wake = asyncio.Event()
        self._interrupted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._refused = ""  # the last refusal that was told in the log
        self.stalled = False
        self.duplicates = 0
        self.pending_bytes = 0
        self.conflicts = 0
        self.messages_in = 0
        self.bytes_in = 0

    def accept(
        self, producer: str, epoch: int, messages: Sequence[Message], *, repeatable: bool
    ) -> int:
        """See `PartitionLog.extend`."""
        if repeatable:
            fresh, stored_at = self._accepted.fresh(producer, epoch, messages)
            self.duplicates += len(messages) - len(fresh)
            if not fresh:
                return stored_at
            messages = fresh
        runs = self._runs(producer, epoch, messages, repeatable)
        last = runs[-1]
        self._accepted.advance(producer, Mark(epoch, messages[-1].sequence, last.ticket))
        self._next_ticket = last.ticket + 1
        for run in runs:
            self._count(run.cost_bytes)
            self._pending_size_bytes += run.size_bytes
        self._open += runs
        self._pending += runs
        if self._in_flight:
            self._fill()
        else:
            self._wake.set()
        return last.ticket

    def _runs(
        self, producer: str, epoch: int, messages: Sequence[Message], repeatable: bool
    ) -> list[Run]:
        """The messages in runs that each fit a block; nothing is changed yet."""
        runs: list[Run] = []
        head_bytes = block.run_bytes(producer)
        size_bytes = cost = 0
        first = 0
        for number, (_, key, payload) in enumerate(messages):
            added = block.message_bytes(key, payload)
            full = head_bytes + size_bytes + added > block.BLOCK_BYTES_MAX
            if number > first and (full or number - first >= block.BLOCK_MESSAGES_MAX):
                runs.append(
                    Run(
                        self._next_ticket + len(runs),
                        producer,
                        epoch,
                        messages[first:number],
                        repeatable,
                        cost,
                        head_bytes + size_bytes,
                    )
                )
                first, size_bytes, cost = number, 0, 0
            size_bytes += added
            cost += cost_bytes(key, payload)
        ticket = self._next_ticket + len(runs)
        kept = messages[first:] if first else messages
        size_bytes += head_bytes
        runs.append(Run(ticket, producer, epoch, kept, repeatable, cost, size_bytes))
        return runs

    def is_durable(self, ticket: int) -> bool:
        """See `PartitionLog.is_durable`."""
        return ticket <= self._done_ticket and ticket not in self._fenced

    @property
    def idle(self) -> bool:
        """Whether everything accepted is durable."""
        return not self._open

    def interrupt(self) -> None:
        """The leader or the connection has changed: answers that are due may never come."""
        if not self._interrupted.done():
            self._interrupted.set_result(None)
        self._wake.set()

    def close(self) -> None:
        """Wait for nothing any more; what is not durable was not acknowledged."""
        for sent in self._in_flight:
            sent.answer.cancel()

    # -- what the log tells ------------------------------------------------------------

    def folded(self, sequence: int, head: Head) -> None:
        """A block is the stream's `sequence`: one of ours, or another broker's."""
        sent = self._lost.pop(head.id, None)
        if sent is not None:
            for run in sent[1]:
                self._complete(run)
            self.messages_in += head.messages
        else:
            self._stale = True
            self._broken |= bool(self._in_flight)
            for producer, epoch, last in head.marks:
                self._accepted.rebuild(producer, Mark(epoch, last, 0))
        # What was sent for a place that is taken can't be stored any more.
        for id_ in [id_ for id_, (at, _) in self._lost.items() if at <= sequence]:
            del self._lost[id_]

    def _complete(self, run: Run) -> None:
        run.done = True
        while self._open and self._open[0].done:
            first = self._open.popleft()
            self._done_ticket = first.ticket
            self._count(-first.cost_bytes)

    def _count(self, size_bytes: int) -> None:
        self.pending_bytes += size_bytes
        self._backlog.grow(size_bytes)

    # -- sending -----------------------------------------------------------------------

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            self._wake.clear()
            self._fill()
            if not self._in_flight:
                await self._wake.wait()
                continue
            sent = self._in_flight[0]
            try:
                sequence = await asyncio.shield(sent.answer)
            except BrokerUnavailable as error:
                await self._mend(error)
                continue
            if sequence != sent.sequence:
                await self._mend(BrokerUnavailable(f"stored at {sequence}, not {sent.sequence}"))
                continue
            self._in_flight.popleft()
            # Another broker's block may lie behind all of ours: nothing was lost to it.
            self._broken &= bool(self._in_flight)
            self._refused = ""
            self._retry_s = RETRY_FIRST_S
            self.stalled = False
            self.bytes_in += len(sent.payload)
            self._log.stored(sent)

    def _fill(self) -> None:
        """Send what is worth a block now."""
        if not self._in_flight and not self._broken:
            if self._interrupted.done():
                self._interrupted = asyncio.get_running_loop().create_future()
            if self._stale:
                self._drop_stored()
        while self._pending and not self._broken and self._cluster.connected:
            if self._in_flight:
                if self._pending_size_bytes < GATHER_BYTES:
                    return
                if len(self._in_flight) >= IN_FLIGHT_MAX:
                    return
            runs, marks = self._take()
            if not runs:
                continue
            if not self._in_flight:
                self._chain = (self._log.tip, self._log.next_offset, self._log.newest_ns)
            self._send(runs, marks)

    def _take(self) -> tuple[list[Run], dict[str, tuple[int, int]]]:
        """The next block's runs, and the last (epoch, sequence) of each of their producers."""
        runs: list[Run] = []
        marks: dict[str, tuple[int, int]] = {}
        size_bytes = head_bytes = count = 0
        while self._pending:
            run = self._pending[0]
            if not run.done:
                size_bytes += run.size_bytes
                count += len(run.messages)
                if run.producer not in marks:
                    head_bytes += block.mark_bytes(run.producer)
                if runs and (
                    size_bytes > block.BLOCK_BYTES_MAX
                    or head_bytes > block.HEAD_BYTES_MAX
                    or count > block.BLOCK_MESSAGES_MAX
                ):
                    break
                marks[run.producer] = (run.epoch, run.messages[-1].sequence)
                runs.append(run)
            self._pending.popleft()
            self._pending_size_bytes -= run.size_bytes
        return runs, marks

    def _send(self, runs: list[Run], marks: dict[str, tuple[int, int]]) -> None:
        last, base, newest_ns = self._chain
        self._number += 1
        head = Head(
            f"{self._name}-{self._number}",
            last,
            base,
            sum(len(run.messages) for run in runs),
            max(self._clock.time_ns(), newest_ns),
            [(producer, *mark) for producer, mark in marks.items()],
        )
        payload = block.encode((run.producer, run.epoch, run.messages) for run in runs)
        answer = asyncio.create_task(self._publish(last, head, payload), name=f"block-{head.id}")
        answer.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._in_flight.append(Sent(last + 1, head, runs, payload, answer))
        self._lost[head.id] = (last + 1, runs)
        self._chain = (last + 1, head.end, head.stored_at_ns)

    async def _publish(self, last: int, head: Head, payload: bytes) -> int:
        headers = {"Nats-Expected-Last-Sequence": str(last), block.HEAD: head.encode()}
        answer = asyncio.ensure_future(self._cluster.publish(self._subject, payload, headers))
        try:
            both: set[asyncio.Future[Any]] = {answer, self._interrupted}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise BrokerUnavailable("the leader has changed")
        finally:
            answer.cancel()

    # -- mending -----------------------------------------------------------------------

    async def _mend(self, error: BrokerUnavailable) -> None:
        """Find out what was stored, and put the rest in front of what waits."""
        self._broken = True
        lost_race = isinstance(error, Refused) and error.number in WRONG_LAST_SEQUENCE
        if lost_race:
            self.conflicts += 1
        else:
            self._tell(error)
        await asyncio.wait({sent.answer for sent in self._in_flight})
        patience_s = ASK_FIRST_S
        if not lost_race:
            await self._pause()
        while not await self._try_catch_up(patience_s):
            patience_s = min(patience_s * 2, REQUEST_S)
            await self._pause()
        runs = [run for sent in self._in_flight for run in sent.runs if not run.done]
        self._in_flight.clear()
        self._pending.extendleft(reversed(runs))
        self._drop_stored()
        self._broken = False
        self._log.notify()

    async def _pause(self) -> None:
        await self._clock.sleep(self._retry_s)
        self._retry_s = min(self._retry_s * 2, RETRY_LAST_S)

    async def _try_catch_up(self, patience_s: float) -> bool:
        if self._interrupted.done():
            self._interrupted = asyncio.get_running_loop().create_future()
        try:
            await self._log.catch_up(patience_s)
        except BrokerUnavailable as failed:
            self._tell(failed)
            return False
        return True

    def _tell(self, error: BrokerUnavailable) -> None:
        text = str(error)
        if text != self._refused:
            self._refused = text
            log.warning("partition %s: %s; it is tried again", self._log.name, text)
        self.stalled = True

    def _drop_stored(self) -> None:
        """Another broker may have stored what waits here, or a newer epoch of its producer."""
        for run in self._pending:
            mark = self._log.durable.get(run.producer)
            if mark is None or run.done or not run.repeatable or run.epoch > mark.epoch:
                continue
            if run.epoch < mark.epoch:
                self._fenced[run.ticket] = None
                if len(self._fenced) > FENCED_MAX:
                    del self._fenced[next(iter(self._fenced))]
                self._complete(run)
                continue
            fresh, _ = self._log.durable.fresh(run.producer, run.epoch, run.messages)
            self.duplicates += len(run.messages) - len(fresh)
            if not fresh:
                self._complete(run)
            elif len(fresh) < len(run.messages):
                run.messages = fresh
                run.size_bytes = block.run_bytes(run.producer) + sum(
                    block.message_bytes(key, payload) for _, key, payload in fresh
                )
        self._stale = False
        self._pending_size_bytes = sum(run.size_bytes for run in self._pending)
        self.stalled &= bool(self._open)
