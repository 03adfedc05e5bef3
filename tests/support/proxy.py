"""A TCP proxy between clients and a server that comes and goes: it cuts and stalls."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

BLOCK_BYTES = 65_536


class Proxy:
    """Listens on one port for its life; `target` is where connections go, "" refuses them."""

    def __init__(self) -> None:
        self.target = ""
        self.address = ""
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def busy(self) -> bool:
        """Does anybody use it?"""
        return bool(self._writers)

    def cut(self) -> None:
        """End all connections without a word."""
        for writer in self._writers:
            writer.transport.abort()

    async def stall(self, duration_s: float) -> None:
        """Let nothing through for a while; what was sent arrives afterwards."""
        self._open.clear()
        try:
            await asyncio.sleep(duration_s)
        finally:
            self._open.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        onward: asyncio.StreamWriter | None = None
        try:
            if not self.target:
                return
            host, _, port = self.target.rpartition(":")
            back, onward = await asyncio.open_connection(host, int(port))
            self._writers |= {writer, onward}
            await asyncio.gather(self._pump(reader, onward), self._pump(back, writer))
        except (OSError, asyncio.CancelledError):  # the server's own callback can't take it
            pass
        finally:
            self._tasks.discard(task)
            for end in (writer, onward):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while block := await reader.read(BLOCK_BYTES):
                await self._open.wait()
                writer.write(block)
                await writer.drain()
        writer.transport.abort()
