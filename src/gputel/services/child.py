"""One supervised part of the pipeline: how it starts, what it says, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Protocol

from gputel.errors import GputelError
from gputel.services.announcement import (
    LINE_BYTES_MAX,
    Announcement,
    Failure,
    decode,
    revive,
)

log = logging.getLogger(__name__)


class ChildEnded(Exception):
    """A child was gone before it was ready, without saying why. `how`: exit code or signal."""

    def __init__(self, name: str, how: str) -> None:
        super().__init__(f"{name} ended with {how} before it was ready")
        self.how = how


class Part(Protocol):
    """What the supervisor keeps running. One part is started many times, one at a time."""

    name: str

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        ...

    async def spawn(self) -> None:
        """Begin; what can be done without a configuration is done meanwhile."""
        ...

    async def start(self, configuration: bytes) -> Announcement:
        """Return once it serves. GputelError when it says why it can't, ChildEnded when it
        just ends."""
        ...

    async def ended(self) -> str:
        """Wait for its end; "exit code 1", "SIGKILL"."""
        ...

    async def stop(self, deadline_s: float) -> bool:
        """Let it finish, for `deadline_s` at most; False when it had to be killed."""
        ...

    def kill(self) -> None:
        """End it now."""
        ...


class ProcessPart:
    """What parts that are one process each do alike."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """See `Part`."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def stop(self, deadline_s: float) -> bool:
        """See `Part`."""
        process = self._process
        if process is None:
            return True
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        try:
            async with asyncio.timeout(deadline_s):
                await process.wait()
        except TimeoutError:
            log.warning("%s did not stop within %.0f s: killed", self.name, deadline_s)
            self.kill()
            await process.wait()
            return False
        return True

    def kill(self) -> None:
        """See `Part`."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


def told(code: int, reason: object) -> str:
    """How a process with this exit code has ended: "exit code 1: no room", "SIGKILL"."""
    how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
    return f"{how}: {reason}" if reason else how


class Child(ProcessPart):
    """A part that is a process of its own, in its own session: Ctrl-C reaches only us."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        super().__init__(name)
        self._command = tuple(command)
        self._ready: asyncio.StreamReader | None = None
        self._ready_transport: asyncio.ReadTransport | None = None

    async def spawn(self) -> None:
        assert self.pid is None, "started twice"
        self._forget()
        read_fd, write_fd = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                "--ready-fd",
                str(write_fd),
                stdin=asyncio.subprocess.PIPE,
                stdout=sys.stderr.fileno(),
                pass_fds=(write_fd,),
                start_new_session=True,
            )
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        self._ready = asyncio.StreamReader(limit=LINE_BYTES_MAX)
        protocol = asyncio.StreamReaderProtocol(self._ready)
        self._ready_transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: protocol, os.fdopen(read_fd, "rb", buffering=0)
        )

    async def start(self, configuration: bytes) -> Announcement:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._ready is not None
        with contextlib.suppress(ConnectionError):  # it has ended; the ready pipe tells
            self._process.stdin.write(configuration + b"\n")
            await self._process.stdin.drain()
        try:
            line = await self._ready.readline()
            said = decode(line) if line else None
        except ValueError:
            raise ChildEnded(self.name, "an unreadable message") from None
        if said is None:
            raise ChildEnded(self.name, await self.ended())
        if isinstance(said, Failure):
            raise revive(said)
        return said

    async def ended(self) -> str:
        assert self._process is not None
        failure = await self._last_failure()
        return told(await self._process.wait(), failure)

    async def _last_failure(self) -> GputelError | None:
        """What the child said of its end after it was ready; returns when the pipe closes."""
        failure = None
        assert self._ready is not None
        with contextlib.suppress(ValueError):
            while line := await self._ready.readline():
                said = decode(line)
                if isinstance(said, Failure):
                    failure = revive(said)
        return failure

    async def stop(self, deadline_s: float) -> bool:
        try:
            return await super().stop(deadline_s)
        finally:
            self._forget()

    def _forget(self) -> None:
        if self._ready_transport is not None:
            self._ready_transport.close()
            self._ready_transport = None
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
