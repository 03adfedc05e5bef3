"""The supervisor with tiny children: ready protocol, restarts, order, parent's death."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from gputel.clock import Clock, SystemClock
from gputel.errors import GputelError, PortInUse
from gputel.services.announcement import decode, encode_failure, revive
from gputel.services.child import Child
from gputel.services.supervisor import CantStart, Plan, State, Supervisor

#: What each child does: `note` appends to a log that all share, `say` writes the ready pipe.
HEAD = """
import json, os, signal, sys, time
fd = int(sys.argv[sys.argv.index('--ready-fd') + 1])
name, log = sys.argv[1], sys.argv[2]
def note(what):
    with open(log, 'a') as f: f.write(name + ' ' + what + chr(10))
def say(**o): os.write(fd, (json.dumps(o) + chr(10)).encode())
def end(*_): note('stop'); sys.exit(0)
signal.signal(signal.SIGTERM, end)
note('spawn')
config = json.loads(sys.stdin.readline() or 'null')
note('start')
"""
READY = "say(service=name, pid=os.getpid(), addresses={'port': str(config['port'] or 77)})\n"
SERVE = HEAD + READY + "sys.stdin.read()\nnote('orphan')\n"


def plan(
    log: Path, name: str, script: str = SERVE, needs: Sequence[str] = (), stop_s: float = 5
) -> Plan:
    child = Child(name, [sys.executable, "-S", "-c", script, name, str(log)])

    def configure(announcements: object) -> bytes:
        assert isinstance(announcements, dict)
        mine = announcements.get(name)
        return json.dumps({"port": mine.addresses["port"] if mine else 0}).encode()

    return Plan(child, tuple(needs), configure, start_deadline_s=10, stop_deadline_s=stop_s)


async def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.01)


class Supervisors:
    """Makes supervisors and stops them at the end of a test."""

    def __init__(self) -> None:
        self.made: list[Supervisor] = []

    def __call__(
        self, plans: Sequence[Plan], order: Sequence[Sequence[str]], clock: Clock | None = None
    ) -> Supervisor:
        self.made.append(Supervisor(plans, order, clock=clock or SystemClock()))
        return self.made[-1]


@pytest.fixture
async def supervisors() -> AsyncIterator[Supervisors]:
    made = Supervisors()
    yield made
    for supervisor in made.made:
        if any(keeper.state is not State.STOPPED for keeper in supervisor.keepers.values()):
            supervisor.kill()
            await supervisor.stop()


async def test_children_start_after_what_they_need_and_stop_in_order(
    tmp_path: Path, supervisors: Supervisors
) -> None:
    log = tmp_path / "log"
    plans = [
        plan(log, "sink", needs=["broker"]),
        plan(log, "collector", needs=["sink"]),
        plan(log, "broker"),
    ]
    supervisor = supervisors(plans, [["collector"], ["sink"], ["broker"]])
    announcements = await supervisor.start()
    assert announcements["sink"].addresses == {"port": "77"}
    assert await supervisor.stop()
    lines = log.read_text().split("\n")[:-1]
    starts = [line for line in lines if line.endswith("start")]
    assert starts == ["broker start", "sink start", "collector start"]
    assert lines[-3:] == ["collector stop", "sink stop", "broker stop"]


async def test_a_killed_child_is_back_with_its_address_and_counted(
    tmp_path: Path, supervisors: Supervisors
) -> None:
    script = SERVE.replace("or 77", "or os.getpid()")
    supervisor = supervisors([plan(tmp_path / "log", "api", script)], [["api"]])
    before = (await supervisor.start())["api"]
    keeper = supervisor.keepers["api"]
    os.kill(before.pid, signal.SIGKILL)
    await until(lambda: keeper.restarts == 1 and keeper.serves.is_set())
    after = supervisor.announcements["api"]
    assert after.pid != before.pid
    assert after.addresses == before.addresses
    assert keeper.last_end == "SIGKILL"
    assert await supervisor.stop()


async def test_the_back_off_doubles_to_its_bound(tmp_path: Path, supervisors: Supervisors) -> None:
    class Recorder(SystemClock):
        slept: list[float] = []  # noqa: RUF012

        async def sleep(self, delay_s: float) -> None:
            self.slept.append(delay_s)
            if len(self.slept) >= 8:
                await asyncio.Event().wait()

    clock = Recorder()
    script = HEAD + READY + "sys.exit(3)\n"
    supervisor = supervisors([plan(tmp_path / "log", "api", script)], [["api"]], clock)
    await supervisor.start()
    await until(lambda: len(clock.slept) >= 8, 30)
    assert clock.slept[:8] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert supervisor.keepers["api"].last_end == "exit code 3"
    await supervisor.stop()


async def test_an_error_at_the_first_start_ends_the_whole_with_it(
    tmp_path: Path, supervisors: Supervisors
) -> None:
    script = HEAD + "say(error={'type': 'PortInUse', 'message': 'api: taken'}); sys.exit(5)\n"
    plans = [plan(tmp_path / "log", "api", script), plan(tmp_path / "log", "sink", needs=["api"])]
    supervisor = supervisors(plans, [["sink"], ["api"]])
    with pytest.raises(PortInUse, match=r"^api: taken$"):
        await supervisor.start()
    await supervisor.stop()
    assert supervisor.keepers["api"].restarts == 0


async def test_a_child_that_only_dies_is_tried_thrice(
    tmp_path: Path, supervisors: Supervisors
) -> None:
    supervisor = supervisors([plan(tmp_path / "log", "api", HEAD + "sys.exit(3)")], [["api"]])
    with pytest.raises(CantStart, match="exit code 3"):
        await supervisor.start()
    await supervisor.stop()
    assert (tmp_path / "log").read_text().count("spawn") == 3


async def test_a_child_that_talks_nonsense_is_not_ready(
    tmp_path: Path, supervisors: Supervisors
) -> None:
    script = HEAD + "os.write(fd, b'nonsense' + bytes([10]))\n"
    supervisor = supervisors([plan(tmp_path / "log", "api", script)], [["api"]])
    with pytest.raises(CantStart, match="unreadable"):
        await supervisor.start()
    await supervisor.stop()


async def test_a_child_that_does_not_stop_is_killed(
    tmp_path: Path, supervisors: Supervisors
) -> None:
    script = HEAD + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + "time.sleep(60)\n"
    supervisor = supervisors([plan(tmp_path / "log", "api", script, stop_s=0.3)], [["api"]])
    announced = await supervisor.start()
    assert not await supervisor.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(announced["api"].pid, 0)


async def test_kill_ends_a_stop_under_way(tmp_path: Path, supervisors: Supervisors) -> None:
    script = HEAD + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + "time.sleep(60)\n"
    supervisor = supervisors([plan(tmp_path / "log", "api", script, stop_s=60)], [["api"]])
    await supervisor.start()
    stopping = asyncio.create_task(supervisor.stop())
    await until(lambda: supervisor.keepers["api"].state is State.STOPPING)
    supervisor.kill()
    async with asyncio.timeout(5):
        await stopping


async def test_stop_while_starting_leaves_nothing(tmp_path: Path, supervisors: Supervisors) -> None:
    script = HEAD + "time.sleep(60)\n"
    log = tmp_path / "log"
    supervisor = supervisors([plan(log, "a", script), plan(log, "b", needs=["a"])], [["b"], ["a"]])
    starting = asyncio.create_task(supervisor.start())
    await until(lambda: log.exists() and "a start" in log.read_text())
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert await supervisor.stop()
    assert all(keeper.plan.part.pid is None for keeper in supervisor.keepers.values())


async def test_a_child_notices_that_its_supervisor_was_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import asyncio, sys\n"
        "from gputel.services.child import Child\n"
        "async def main():\n"
        "    child = Child('api', [sys.executable, '-S', '-c', *sys.argv[1:]])\n"
        "    await child.spawn(); await child.start(b'{\"port\": 0}'); await child.ended()\n"
        "asyncio.run(main())",
        SERVE,
        "api",
        str(log),
    )
    await until(lambda: log.exists() and "start" in log.read_text())
    parent.kill()
    await parent.wait()
    await until(lambda: "orphan" in log.read_text())


def test_an_error_travels_with_its_type() -> None:
    failure = decode(encode_failure(PortInUse("api", "127.0.0.1:1")))
    error = revive(failure)  # type: ignore[arg-type]
    assert isinstance(error, PortInUse)
    assert "127.0.0.1:1" in str(error)


@pytest.mark.parametrize("line", [b"{}", b"", b"[]", b"{", b'{"service": 1}', b"\xff"])
def test_a_line_that_is_none_of_ours(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any of msgspec's and ours
        decode(line)


def test_an_unknown_error_type_is_an_error_still() -> None:
    for name in ("SystemExit", "annotations", "", "Sequence"):
        error = revive(decode(json.dumps({"error": {"type": name, "message": "m"}}).encode()))  # type: ignore[arg-type]
        assert isinstance(error, GputelError)
        assert str(error) == "m"
