"""A recorded file as a source: once with its own times, or looped with time shifted to now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from gputel.catalog import Cadence
from gputel.clock import NS_PER_MS, NS_PER_S, NS_PER_US
from gputel.inventory import Event, Gpu, ProcessSample
from gputel.sources.replay_file import open_recording
from gputel.sources.source import Rings
from gputel.sources.steps import Row, steps

PACED_PERIOD_NS: Final = 10 * NS_PER_MS
UNPACED_PERIOD_NS: Final = NS_PER_MS
LOOP_PAUSE_NS: Final = NS_PER_S  # recorded time between the end and the beginning of a loop
BEHIND_NS_MAX: Final = 5 * NS_PER_S  # a loop that can't keep up begins again at now


class Replay:
    """`speed` 1 is the recorded pace, 0 as fast as the rings are emptied.

    A file that is not sorted by time is paced within windows of `steps.WINDOW_VALUES`
    values: what comes late is written at once.
    """

    name = "replay"

    def __init__(self, spec: str, *, node: str, speed: float = 1, once: bool = False) -> None:
        assert speed >= 0
        self._file = open_recording(spec, node=node)
        self._speed = speed
        self._once = once
        self._gpus: tuple[Gpu, ...] = ()
        self._steps: Iterator[list[Row]] = iter(())
        self._step: list[Row] = []
        self._position = 0
        self._sequences: dict[tuple[int, int], int] = {}
        self._base_ns: int | None = None  # wall time of the file's first sample in this loop
        self._recorded_ns = -1  # unpaced loop: the recorded time that `_shown_ns` stands for
        self._shown_ns = 0
        self._exhausted = False
        self._event = 0  # index of the next one of the file
        self._events: list[Event] = []  # due, not yet taken
        self.identity: str | None = None
        self.description = f"{self._file.path} ({self._file.format})"

    def open(self) -> Sequence[Gpu]:
        """Read the file once and go to its beginning. InputError: nothing usable in it."""
        if not self._gpus:
            file = self._file
            file.scan()
            self._gpus = file.gpus()
            self.identity = file.identity if self._once else None
            self.description = (
                f"{file.path} ({file.format}): {file.values} values of {len(self._gpus)} GPUs "
                f"on {len({gpu.node for gpu in self._gpus})} nodes, {file.left_out}"
            )
            self._rewind()
        return self._gpus

    def cadences(self) -> Mapping[Cadence, int]:
        """One call brings the rows of all sets."""
        return {Cadence.FAST: PACED_PERIOD_NS if self._speed else UNPACED_PERIOD_NS}

    def sweep(self, cadence: Cadence, time_ns: int, rings: Rings, lateness_us: int = 0) -> bool:
        """Write what is due of the current step, as far as it fits."""
        if self._exhausted or not self._step:
            return False
        if self._base_ns is None:
            self._base_ns = time_ns
        while self._position < len(self._step):
            row = self._step[self._position]
            shown_ns = self._shown_at(row, time_ns)
            ring = rings[row.metric_set]
            if (self._speed and shown_ns > time_ns) or ring.free_rows == 0:
                return False
            key = (row.slot, row.metric_set.id)
            sequence = self._sequences.get(key, 0)
            time_of_row = row.time_ns if self._once else shown_ns
            pushed = ring.push(time_of_row, row.slot, sequence, lateness_us, row.values)
            assert pushed, "a ring with free rows takes one"
            self._sequences[key] = sequence + 1
            self._position += 1
        last = self._step[-1]
        shift_ns = 0 if self._once else self._shown_at(last, time_ns) - last.time_ns
        ended = self._next_step(time_ns)
        self._take_events(None if ended else last.time_ns, shift_ns)
        return True

    def _take_events(self, until_ns: int | None, shift_ns: int) -> None:
        """Events go with the step that they fall into, so that frames depend on the file alone;
        None: all that are left."""
        events = self._file.events
        while self._event < len(events):
            event = events[self._event]
            if until_ns is not None and event.time_ns > until_ns:
                return
            self._events.append(replace(event, time_ns=event.time_ns + shift_ns))
            self._event += 1
        if until_ns is None:
            self._event = 0

    def _shown_at(self, row: Row, now_ns: int) -> int:
        """The row's time moved into this loop, whole microseconds. Paced, it is due then;
        as fast as possible, times near now that keep their order."""
        assert self._base_ns is not None
        if self._speed:
            offset = int((row.time_ns - self._file.first_ns) / self._speed)
            return (self._base_ns + offset) // NS_PER_US * NS_PER_US
        if row.time_ns != self._recorded_ns:
            self._recorded_ns = row.time_ns
            self._shown_ns = max(now_ns, self._shown_ns + NS_PER_US)
        return self._shown_ns

    def _rewind(self) -> None:
        self._steps = steps(self._file.records())
        self._step = next(self._steps)
        self._position = 0

    def _next_step(self, now_ns: int) -> bool:
        """Go on; True when the file has ended, and for a loop begins again."""
        self._step = next(self._steps, [])
        self._position = 0
        if self._step:
            return False
        if self._once:
            self._exhausted = True
            return True
        assert self._base_ns is not None
        if self._speed:
            span_ns = self._file.last_ns - self._file.first_ns + LOOP_PAUSE_NS
            self._base_ns += int(span_ns / self._speed)
            if self._base_ns < now_ns - BEHIND_NS_MAX:
                self._base_ns = now_ns
        self._rewind()
        return True

    def events(self) -> Sequence[Event]:
        """Those of the steps that were written since the last call."""
        events, self._events = self._events, []
        return events

    def processes(self) -> Sequence[ProcessSample]:
        """None are read."""
        return ()

    @property
    def exhausted(self) -> bool:
        """True when a replay that runs once has written its last row."""
        return self._exhausted

    def close(self) -> None:
        """Forget the file; its handle is closed with its iterator."""
        self._steps = iter(())
        self._step = []
        self._position = 0
