"""Keeps the parts of a pipeline running: order at the start, restarts, order at the end.

All parts are spawned at once, so that they load side by side; each gets its configuration
when those it needs serve. A part that dies is started again after a back-off, on the
addresses it had. At the first start an error that a part reports ends the whole, because
it is the user's to mend; a part that merely dies is tried again a few times.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from gputel.clock import NS_PER_S, SYSTEM_CLOCK, Clock
from gputel.errors import GputelError
from gputel.services.announcement import Announcement
from gputel.services.child import ChildEnded, Part

log = logging.getLogger(__name__)

BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0
HEALTHY_AFTER_S: Final = 30.0  # of service; then the back-off begins anew
FIRST_ATTEMPTS: Final = 3
KILL_GRACE_S: Final = 2.0


class State(Enum):
    """Where a part is in its life."""

    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting to restart"
    STOPPING = "stopping"
    STOPPED = "stopped"


class CantStart(GputelError):
    """A part died again and again before it was ever ready."""


Announcements = Mapping[str, Announcement]


@dataclass(frozen=True, slots=True)
class Plan:
    """One part and its place among the others.

    needs          the parts that must serve before this one is configured
    configure      its configuration line, from the announcements so far (its own last one
                   included, so that it keeps its addresses)
    """

    part: Part
    needs: tuple[str, ...]
    configure: Callable[[Announcements], bytes]
    start_deadline_s: float = 60.0
    stop_deadline_s: float = 10.0


class Keeper:
    """Keeps one part running until `stop`."""

    def __init__(self, plan: Plan, supervisor: Supervisor, clock: Clock) -> None:
        self.plan = plan
        self.state = State.STARTING
        self.restarts = 0
        self.last_end = ""
        self.serves = asyncio.Event()
        self.first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._supervisor = supervisor
        self._clock = clock
        self._task = asyncio.create_task(self._keep(), name=f"keep-{plan.part.name}")

    async def stop(self) -> bool:
        """Let the part finish; False when it had to be killed."""
        self.state = State.STOPPING
        self._task.cancel()
        await asyncio.wait([self._task])
        self.serves.clear()
        well = await self.plan.part.stop(self.plan.stop_deadline_s)
        self.state = State.STOPPED
        if not self.first.done():
            self.first.cancel()
        elif not self.first.cancelled():
            self.first.exception()  # seen
        return well

    async def _keep(self) -> None:
        part = self.plan.part
        delay_s = BACKOFF_MIN_S
        while True:
            served_ns = 0
            try:
                await self._start()
                begun_ns = self._clock.monotonic_ns()
                how = await part.ended()
                served_ns = self._clock.monotonic_ns() - begun_ns
            except (GputelError, ChildEnded, OSError) as error:
                if self._is_final(error):
                    return
                how = error.how if isinstance(error, ChildEnded) else str(error)
                await part.stop(KILL_GRACE_S)
            self.serves.clear()
            if served_ns >= HEALTHY_AFTER_S * NS_PER_S:
                delay_s = BACKOFF_MIN_S
            self.restarts += 1
            self.last_end = how
            self.state = State.WAITING
            log.warning(
                "%s ended (%s); restart %d in %.1f s", part.name, how, self.restarts, delay_s
            )
            self._supervisor.changed()
            await self._clock.sleep(delay_s)
            delay_s = min(delay_s * 2, BACKOFF_MAX_S)

    async def _start(self) -> None:
        part = self.plan.part
        self.state = State.STARTING
        await part.spawn()
        for need in self.plan.needs:
            await self._supervisor.keepers[need].serves.wait()
        try:
            async with asyncio.timeout(self.plan.start_deadline_s):
                announcement = await part.start(self.plan.configure(self._supervisor.announcements))
        except TimeoutError:
            how = f"no sign of readiness for {self.plan.start_deadline_s:.0f} s"
            raise ChildEnded(part.name, how) from None
        self._supervisor.announcements[part.name] = announcement
        self.state = State.READY
        self.serves.set()
        log.info("%s is ready (pid %d)", part.name, announcement.pid)
        if not self.first.done():
            self.first.set_result(None)
        self._supervisor.changed()

    def _is_final(self, error: Exception) -> bool:
        """Ends the first start: a reported error at once, a mere death after some."""
        if self.first.done():
            return False
        if isinstance(error, GputelError):
            self.first.set_exception(error)
            return True
        if self.restarts + 1 < FIRST_ATTEMPTS:
            return False
        message = f"{self.plan.part.name} does not start: {error}"
        self.first.set_exception(CantStart(message, hint="its log is above"))
        return True


class Supervisor:
    """Starts, keeps and stops the parts of `plans`.

    stop_order     names in groups; the parts of a group stop side by side
    on_change      called when a part became ready, died or stopped
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        stop_order: Sequence[Sequence[str]],
        on_change: Callable[[], None] = lambda: None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        names = [plan.part.name for plan in plans]
        assert sorted(name for group in stop_order for name in group) == sorted(names)
        self._plans = tuple(plans)
        self._stop_order = tuple(tuple(group) for group in stop_order)
        self._clock = clock
        self.changed = on_change
        self.keepers: dict[str, Keeper] = {}
        self.announcements: dict[str, Announcement] = {}

    async def start(self) -> Announcements:
        """Return when all serve. GputelError for the first that can't; then call `stop`."""
        for plan in self._plans:
            self.keepers[plan.part.name] = Keeper(plan, self, self._clock)
        await asyncio.gather(*(keeper.first for keeper in self.keepers.values()))
        return self.announcements

    async def stop(self) -> bool:
        """Stop all, in order; False when one had to be killed."""
        well = True
        for group in self._stop_order:
            keepers = [self.keepers[name] for name in group if name in self.keepers]
            results = await asyncio.gather(*(keeper.stop() for keeper in keepers))
            well = well and all(results)
            with contextlib.suppress(OSError):
                self.changed()
        return well

    def kill(self) -> None:
        """End all parts now; `stop` then returns at once."""
        for keeper in self.keepers.values():
            keeper.plan.part.kill()
