"""A feed: everything that clients with the same selection share.

A feed gathers changes, and at its rate serialises them once for all of its clients. A
client that is still busy with an earlier message does not get a queue: it is marked, and
when it is ready it gets the whole current state of the selection instead of what it
missed (latest value wins). So a client that never reads holds one message at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from gputel.clock import Clock
from gputel.stream.board import Board, Change, GpuState
from gputel.stream.protocol import Reading, Selection, shared_body


class Slot:
    """What one client has to be sent of one feed."""

    __slots__ = ("conflated", "feed", "id", "owes_state", "update", "wake")

    def __init__(self, id: str, feed: Feed, wake: asyncio.Event) -> None:
        self.id = id
        self.feed = feed
        self.wake = wake
        self.update: str | None = None
        self.owes_state = False  # an update was skipped: send the whole state instead
        self.conflated = 0  # updates skipped since the last message of this slot

    def offer(self, body: str) -> int:
        """Take an update, or note that it was skipped; returns the updates skipped (0 to 2)."""
        skipped = 0
        if self.owes_state:
            skipped = 1
        elif self.update is not None:
            skipped = 2
            self.update, self.owes_state = None, True
        else:
            self.update = body
        self.conflated += skipped
        self.wake.set()
        return skipped

    def take(self) -> tuple[int, str] | None:
        """(updates skipped, body) of the message due now, if there is one."""
        if self.owes_state:
            body: str | None = self.feed.state()
        else:
            body = self.update
        if body is None:
            return None
        conflated, self.conflated = self.conflated, 0
        self.update, self.owes_state = None, False
        return conflated, body


class Feed:
    """One selection and its clients."""

    def __init__(self, selection: Selection, board: Board, clock: Clock) -> None:
        self.selection = selection
        self.slots: set[Slot] = set()
        self.conflated = 0
        self.updates = 0
        self._names = {metric: metric.name for metric in selection.metrics}
        self._board = board
        self._clock = clock
        self._changed: dict[tuple[str, str], tuple[GpuState, Change]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._sent_at = float("-inf")
        self._state: str | None = None

    def wants(self, state: GpuState) -> bool:
        """Is this GPU in the selection?"""
        wish = self.selection
        return (wish.nodes is None or state.node in wish.nodes) and (
            wish.gpus is None or state.uuid in wish.gpus
        )

    def add(self, changes: Iterable[tuple[GpuState, Change]]) -> None:
        """Gather changes; they go out at once, or when the rate allows."""
        for state, change in changes:
            if not self.wants(state):
                continue
            wanted = {metric: change[metric] for metric in change if metric in self._names}
            if not wanted:
                continue
            key = (state.node, state.uuid)
            known = self._changed.get(key)
            if known is None:
                self._changed[key] = (state, wanted)
            else:
                known[1].update(wanted)
        if self._changed:
            self._state = None
            if self._timer is None:
                loop = asyncio.get_running_loop()
                due = self._sent_at + 1 / self.selection.max_hz
                self._timer = loop.call_at(max(due, loop.time()), self._flush)

    def state(self) -> str:
        """The whole selection as it is now; serialised once until something changes."""
        if self._state is None:
            wanted = [state for state in self._board.gpus.values() if self.wants(state)]
            for state in wanted:
                self._board.read(state)
            readings = [self._reading(state, state.values) for state in wanted]
            self._state = shared_body(
                self._clock.time_ns(), [reading for reading in readings if reading.values]
            )
        return self._state

    def close(self) -> None:
        """Forget what is gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._changed.clear()

    def _reading(self, state: GpuState, values: Change) -> Reading:
        shown = {name: values[metric] for metric, name in self._names.items() if metric in values}
        time_ns = max((state.times_ns[m] for m in self._names if m in values), default=0)
        return Reading(state.node, state.uuid, time_ns, shown)

    def _flush(self) -> None:
        self._timer = None
        self._sent_at = asyncio.get_running_loop().time()
        readings = [self._reading(state, change) for state, change in self._changed.values()]
        self._changed.clear()
        self.updates += 1
        body = shared_body(self._clock.time_ns(), readings)
        for slot in self.slots:
            self.conflated += slot.offer(body)
