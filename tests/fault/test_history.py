"""A random history of producers, consumers, crashes and broken disks obeys the broker's laws.

`make fault MINUTES=60` runs it for so long, each round with a new seed; a failure prints it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from support import history as laws
from support.crashing import Plan
from support.history import History, Store
from support.proxy import Proxy

pytestmark = [pytest.mark.fault, pytest.mark.slow]

ROUND_S = 8.0
#: A round goes on until so many brokers have begun, however slow the machine is.
LIVES_MIN = 3
LIVES_S = 120.0
QUIET_S = 60.0
START_S = 30.0


class Mode(NamedTuple):
    """What goes wrong."""

    power_loss: bool = False
    kills: bool = False
    bad_disk: bool = False
    bad_network: bool = False
    fsync: str = "always"
    power_loss_after_max: int = 1500


MODES = {
    "killed": Mode(kills=True, bad_network=True),
    "powerless": Mode(power_loss=True, bad_disk=True),
    "everything": Mode(power_loss=True, kills=True, bad_disk=True, bad_network=True),
}


class Brokers:
    """One broker process after the other on one data directory, behind the proxy."""

    def __init__(self, data_dir: Path, proxy: Proxy, draw: random.Random, mode: Mode) -> None:
        self._data_dir = data_dir
        self._proxy = proxy
        self._draw = draw
        self._mode = mode
        self._errors = data_dir.with_suffix(".errors")
        self.starts = 0
        self.well = False

    def _plan(self) -> Plan:
        bad = self._mode.bad_disk and not self.well
        return Plan(
            str(self._data_dir),
            seed=self._draw.randrange(2**32),
            power_loss_after=self._draw.randint(1, self._mode.power_loss_after_max)
            if self._mode.power_loss and not self.well
            else 0,
            full_chance=0.002 if bad else 0,
            sync_error_chance=0.0005 if bad else 0,
            write_error_chance=0.0005 if bad else 0,
            short_write_chance=0.1 if bad else 0,
            clock_jumps=not self.well,
            fsync=self._mode.fsync,
        )

    async def run(self) -> None:
        """Start them until cancelled; each is killed, or dies of its plan, unless `well`."""
        while True:
            self.starts += 1
            with self._errors.open("wb") as errors:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "support.crashing",
                    self._plan().argument(),
                    stdout=asyncio.subprocess.PIPE,
                    stderr=errors,
                    cwd=Path(__file__).parents[1],
                )
            try:
                await self._live(process)
            finally:
                self._proxy.target = ""
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    async def _live(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async with asyncio.timeout(START_S):
            address = (await process.stdout.readline()).decode().strip()
        self._proxy.target = address  # empty: it died while it started
        life_s = None
        if self._mode.kills and not self.well:
            life_s = self._draw.uniform(0.2, 4)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(life_s):
                code = await process.wait()
                # It may fail to start on a bad disk. Then only the plan ends it.
                assert not address or code == -signal.SIGKILL, self._errors.read_text()


async def disturb(proxy: Proxy, draw: random.Random) -> None:
    while True:
        await asyncio.sleep(draw.uniform(0.1, 1.5))
        if draw.random() < 0.6:
            proxy.cut()
        else:
            await proxy.stall(draw.uniform(0.1, 2))


async def live_through(data_dir: Path, seed: int, mode: Mode) -> str:
    """One round; what happened in it, in words."""
    draw = random.Random(seed)
    history = History()
    async with Proxy() as proxy:
        brokers = Brokers(data_dir, proxy, draw, mode)
        store = Store(history)
        address = proxy.address

        def fork() -> random.Random:
            return random.Random(draw.randrange(2**32))

        running = asyncio.create_task(brokers.run())
        producers = [
            asyncio.create_task(laws.produce(history, address, f"p{i}", fork())) for i in range(3)
        ]
        others = [
            *(laws.consume(history, address, "group", fork()) for _ in range(2)),
            laws.consume(history, address, "strict", fork()),
            store.run(address, fork()),
        ]
        consumers = [asyncio.create_task(other) for other in others]
        trouble = [asyncio.create_task(disturb(proxy, draw))] if mode.bad_network else []
        everything = [running, *producers, *consumers, *trouble]
        try:
            await laws.first_failure(everything, ROUND_S)
            async with asyncio.timeout(LIVES_S):
                while brokers.starts < LIVES_MIN:
                    await laws.first_failure(everything, 0.2)
            for task in trouble:
                task.cancel()
            brokers.well = True
            proxy.target, cut = "", proxy.cut
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            cut()
            everything[0] = running = asyncio.create_task(brokers.run())
            await laws.conclude(
                history,
                address,
                producers=producers,
                others=[running, *consumers],
                timeout_s=QUIET_S,
            )
        finally:
            for task in everything:
                task.cancel()
            await asyncio.gather(*everything, return_exceptions=True)
    return laws.told(history, brokers.starts)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("mode", MODES)
def test_a_random_history_obeys_the_laws(
    mode: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    deadline = time.monotonic() + 60 * float(pytestconfig.getoption("--minutes"))
    number = 0
    while number == 0 or time.monotonic() < deadline:
        seed = random.randrange(2**32)
        print(f"{mode}: seed {seed}", flush=True)
        told = asyncio.run(live_through(tmp_path / str(number), seed, MODES[mode]))
        print(f"{mode}: {told}", flush=True)
        number += 1


@pytest.mark.timeout(0)
def test_a_broker_that_acknowledges_too_early_is_found_out(tmp_path: Path) -> None:
    """Without fsync a power cut loses what was acknowledged: the laws must notice."""
    mode = Mode(power_loss=True, fsync="interval", power_loss_after_max=200)
    found = ""
    for number in range(5):
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        try:
            asyncio.run(live_through(tmp_path / str(number), seed, mode))
        except AssertionError as error:
            found = str(error)
            break
    assert any(words in found for words in ("lost", "now holds", "are gone")), found
