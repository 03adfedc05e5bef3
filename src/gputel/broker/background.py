"""Tasks that a broker can't do without: one that ends before it is told to ends the broker.

Such an end is a mistake of ours. A broker that went on without renewing a lease, say, would look
well and deliver nothing; its successor does the work again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Background:
    """Long-lived tasks, watched from `start` until `stop`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        #: Which task has ended, and how; empty while all of them work.
        self.problem = ""

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run `work` until `stop`."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)
        return task

    async def stop(self, *tasks: asyncio.Task[None]) -> None:
        """End `tasks`, all when none is named, and wait for it."""
        ending = tasks or tuple(self._tasks)
        self._tasks.difference_update(ending)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def until_ended(self) -> str:
        """Return the `problem` once there is one."""
        await self._ended.wait()
        return self.problem

    def _note_end(self, task: asyncio.Task[None]) -> None:
        if task not in self._tasks:
            return  # it was told to
        self._tasks.discard(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        self.problem = self.problem or f"{task.get_name()} has ended: {error!r}"
        log.error("%s has ended by itself", task.get_name(), exc_info=error)
        self._ended.set()


async def first_of(*waits: Coroutine[Any, Any, _T]) -> _T:
    """What the first of `waits` to end returns or raises; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
