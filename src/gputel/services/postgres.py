"""The embedded PostgreSQL as a supervised part.

It lives in the supervisor itself: the postmaster is its child, and the kernel tells it to
shut down when the supervisor dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Final

from gputel.services.announcement import Announcement
from gputel.store.embedded import EmbeddedPostgres
from gputel.store.settings import DatabaseSettings

POLL_S: Final = 0.1


class PostgresPart:
    """A `Part` around `EmbeddedPostgres`; it keeps its port over restarts."""

    name = "postgres"

    def __init__(self, data_dir: Path) -> None:
        self._postgres = EmbeddedPostgres(data_dir)
        #: How to connect; None before the first start.
        self.settings: DatabaseSettings | None = None

    @property
    def pid(self) -> int | None:
        return self._postgres.pid

    async def spawn(self) -> None:
        """Nothing to load ahead."""

    async def start(self, configuration: bytes) -> Announcement:
        if self.settings is not None:
            await self._postgres.stop()  # what is left of the last run
        self.settings = await self._postgres.start()
        pid = self._postgres.pid
        assert pid is not None
        address = f"{self.settings.host}:{self.settings.port}"
        return Announcement(service=self.name, pid=pid, addresses={"postgres": address})

    async def ended(self) -> str:
        while self._postgres.alive():  # noqa: ASYNC110  (waitpid is polled)
            await asyncio.sleep(POLL_S)
        return "the postmaster is gone"

    async def stop(self, deadline_s: float) -> bool:
        await self._postgres.stop()  # has deadlines of its own, each milder way first
        return True

    def kill(self) -> None:
        # Immediate shutdown: it ends its backends, and recovers at the next start.
        pid = self._postgres.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGQUIT)
