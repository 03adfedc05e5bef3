"""A task that a broker can't do without does not end unnoticed, at either side of the protocol."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc.aio
import pytest

from gputel.broker import transport
from gputel.broker.background import Background, first_of


async def forever() -> None:
    await asyncio.Event().wait()


async def at_once() -> None:
    pass


async def by_a_mistake() -> None:
    raise ValueError("a mistake")


async def cancelled_by_nobody() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("work", "how"),
    [
        (at_once, "None"),
        (by_a_mistake, "ValueError('a mistake')"),
        (cancelled_by_nobody, "CancelledError()"),
    ],
)
async def test_an_end_by_itself_is_told(
    work: Callable[[], Any], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    background = Background()
    background.start(forever(), "other")
    background.start(work(), "worker")
    async with asyncio.timeout(10):
        assert await background.until_ended() == f"worker has ended: {how}"
    assert background.problem == f"worker has ended: {how}"
    assert "worker has ended by itself" in caplog.text
    await background.stop()


async def test_an_end_that_was_wanted_is_no_problem(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    background = Background()
    one = background.start(forever(), "one")
    two = background.start(forever(), "two")
    await background.stop(one)
    assert one.cancelled()
    assert not two.done()
    await background.stop()
    assert two.cancelled()
    await asyncio.sleep(0)
    assert background.problem == ""
    assert not caplog.records


async def test_the_first_of_several_ends_the_others() -> None:
    ended: list[str] = []

    async def waiting() -> str:
        try:
            return await asyncio.Future[str]()
        finally:
            ended.append("waiting")

    async def quick() -> str:
        await asyncio.sleep(0)
        return "quick"

    assert await first_of(waiting(), quick()) == "quick"
    assert ended == ["waiting"]


async def told_by_the_reader() -> None:
    raise grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details="gone"
    )


async def write_to_what_has_ended() -> None:
    raise asyncio.InvalidStateError("RPC already finished.")


async def test_a_writers_mistake_ends_the_stream() -> None:
    async with asyncio.timeout(10):
        with pytest.raises(ValueError, match="a mistake"):
            await transport.converse(forever(), by_a_mistake())


@pytest.mark.parametrize("reading", [at_once, told_by_the_reader])
async def test_a_writers_mistake_is_told_when_the_reader_ends_in_the_same_turn(
    reading: Callable[[], Any],
) -> None:
    with pytest.raises(ValueError, match="a mistake"):
        await transport.converse(reading(), by_a_mistake())


@pytest.mark.parametrize(
    "writing", [write_to_what_has_ended, told_by_the_reader, cancelled_by_nobody, at_once]
)
async def test_why_a_stream_ended_is_the_readers_word(writing: Callable[[], Any]) -> None:
    async def reading() -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        raise KeyError("the reader's word")

    with pytest.raises(KeyError, match="the reader's word"):
        await transport.converse(reading(), writing())
