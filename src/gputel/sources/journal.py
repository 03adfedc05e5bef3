"""What a source has to tell, between the threads that notice it and the one that asks."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from gputel.clock import Clock
from gputel.inventory import Event, EventKind

EVENTS_MAX: Final = 4096


class Journal:
    """A bounded list of events; what finds no room is counted, and told as a gap."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._dropped = 0
        self.dropped_events = 0  # in all

    def tell(
        self, kind: EventKind, gpu_uuid: str, code: int, message: str, time_ns: int | None = None
    ) -> None:
        """Note an event; of now, unless `time_ns` says when."""
        if time_ns is None:
            time_ns = self._clock.time_ns() // 1000 * 1000
        with self._lock:
            if len(self._events) < EVENTS_MAX:
                self._events.append(Event(time_ns, kind, gpu_uuid, code, message))
            else:
                self._dropped += 1
                self.dropped_events += 1

    def take(self) -> Sequence[Event]:
        """What was told since the last call."""
        with self._lock:
            events, self._events = self._events, []
            dropped, self._dropped = self._dropped, 0
        if dropped:
            time_ns = events[-1].time_ns
            message = f"{dropped} events of the driver found no room"
            events.append(Event(time_ns, EventKind.GAP, "", dropped, message))
        return events
