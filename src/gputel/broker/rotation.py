"""Which of several brokers a stream speaks to: to one, and to the next one when that fails.

The brokers of a cluster serve the same log, so that a stream may go on with any of them. The
streams of a client begin one after the other at a broker drawn by chance: neither is one
broker left with all clients, nor a client with all its streams when one broker dies. A stream
that had to leave goes back once its broker is there again: otherwise the broker that was
restarted first would have all streams when each of them has been, and the last one none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Sequence
from typing import Final

import grpc.aio

from gputel.broker import transport
from gputel.clock import Clock

log = logging.getLogger(__name__)

BACKOFF_FIRST_S: Final = 0.05
BACKOFF_LAST_S: Final = 1.0
#: What ends sooner was no better than a stream that could not be opened.
STEADY_S: Final = 1.0
#: Until a broker that was left is tried again. It doubles each time that one is left.
HOME_FIRST_S: Final = 30.0
HOME_LAST_S: Final = 600.0


class Brokers:
    """The addresses of one log, and a channel to each that somebody uses."""

    def __init__(self, addresses: Sequence[str]) -> None:
        assert addresses
        self.addresses = tuple(addresses)
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._begin = random.randrange(len(self.addresses))

    def rotation(self) -> Rotation:
        """A stream's own turn through the brokers."""
        self._begin = (self._begin + 1) % len(self.addresses)
        return Rotation(self, self._begin)

    def channel(self, address: str) -> grpc.aio.Channel:
        """The connection to one of them; it is made when it is first used."""
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = transport.open_channel(address)
        return channel

    async def close(self) -> None:
        """Close all connections."""
        channels = tuple(self._channels.values())
        self._channels.clear()
        for channel in channels:
            await channel.close()


class Rotation:
    """Where one stream stands, and how long it waits before the next broker.

    Delays are jittered. They double up to a second from one round through all brokers to the
    next, not from broker to broker: one that is well shall not wait for those that are not.
    """

    def __init__(self, brokers: Brokers, index: int) -> None:
        self._brokers = brokers
        self._index = self._home = index
        self._failures = 0
        self._delay_s = BACKOFF_FIRST_S
        self._serves_since_s = math.inf  # monotonic
        self._home_delay_s = HOME_FIRST_S / 2
        self._returning = False

    @property
    def address(self) -> str:
        """The broker whose turn it is."""
        return self._brokers.addresses[self._index]

    @property
    def channel(self) -> grpc.aio.Channel:
        """The connection to it."""
        return self._brokers.channel(self.address)

    def serves(self) -> None:
        """It answers: if it goes on so, the delays begin anew."""
        self._serves_since_s = time.monotonic()

    async def until_home(self, clock: Clock) -> None:
        """Return once the broker that the stream began at, and has left, can be connected to: it
        is the next one then."""
        if self._index == self._home:
            await asyncio.Event().wait()  # it need not go
        home = self._brokers.addresses[self._home]
        while not self._returning:
            await clock.sleep(self._home_delay_s * random.uniform(0.5, 1.5))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(transport.OPEN_TIMEOUT_S):
                    await self._brokers.channel(home).channel_ready()
                log.info("broker %s is there again: going back to it", home)
                self._returning = True

    def move_on(self) -> float:
        """Pass on to the next one; how long to wait before, seconds."""
        if time.monotonic() - self._serves_since_s >= STEADY_S:
            self._failures = 0
            self._delay_s = BACKOFF_FIRST_S
        self._serves_since_s = math.inf
        if self._returning:
            self._returning = False
            self._index = self._home
            return 0.0
        if self._index == self._home:
            self._home_delay_s = min(self._home_delay_s * 2, HOME_LAST_S)
        delay_s = self._delay_s * random.uniform(0.5, 1.0)
        count = len(self._brokers.addresses)
        self._index = (self._index + 1) % count
        self._failures += 1
        if self._failures % count == 0:
            self._delay_s = min(self._delay_s * 2, BACKOFF_LAST_S)
        return delay_s
