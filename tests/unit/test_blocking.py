"""Calls that return, fail, come late, or never."""

from __future__ import annotations

import asyncio
import threading

import pytest

from gputel.collector.blocking import DaemonCaller


async def test_returns_and_raises_what_the_function_does() -> None:
    caller = DaemonCaller("test")
    assert await caller.call(lambda: 42, 5) == 42
    with pytest.raises(ZeroDivisionError):
        await caller.call(lambda: 1 // 0, 5)
    assert not caller.busy
    assert await caller.call(lambda: 43, 5) == 43


async def test_a_call_that_hangs_holds_up_nothing_but_its_successors() -> None:
    caller = DaemonCaller("test")
    go_on, calls = threading.Event(), []

    def hang() -> None:
        calls.append(1)
        go_on.wait()

    with pytest.raises(TimeoutError):
        await caller.call(hang, 0.01)
    for _ in range(100):
        with pytest.raises(TimeoutError, match="has not returned"):
            await caller.call(hang, 5)
    assert len(calls) == 1, "no thread is added to one that hangs"
    go_on.set()
    async with asyncio.timeout(5):
        while caller.busy:  # noqa: ASYNC110 - the thread tells no event
            await asyncio.sleep(0.001)
    assert await caller.call(lambda: 44, 5) == 44


async def test_a_cancelled_call_is_still_waited_for() -> None:
    caller = DaemonCaller("test")
    go_on = threading.Event()
    task = asyncio.create_task(caller.call(go_on.wait, 5))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert caller.busy
    go_on.set()


def test_a_hanging_call_does_not_keep_the_loop_from_closing() -> None:
    go_on = threading.Event()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await DaemonCaller("test").call(go_on.wait, 0.01)

    asyncio.run(main())
    go_on.set()  # the thread finds its loop closed and ends
    for thread in threading.enumerate():
        if thread.name == "test":
            thread.join(5)
            assert not thread.is_alive()
