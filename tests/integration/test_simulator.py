"""The simulator for a while: no row lost or doubled, and samples are live at once."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import datetime
from typing import Any

import pytest
import websockets

from support.account import gaps_and_doubles, hot_rows, query, until

pytestmark = [pytest.mark.integration, pytest.mark.slow]
GPUS, HZ, SECONDS = 8, 10, 20


async def worst_age_s(url: str, updates: int) -> float:
    """How old the newest sample of an update was at most, when it arrived."""
    worst = 0.0
    async with asyncio.timeout(30), websockets.connect(url) as socket:
        await socket.send(json.dumps({"type": "subscribe", "id": "a"}))
        while updates:
            message = json.loads(await socket.recv())
            if message["type"] == "update":
                newest = max(datetime.fromisoformat(gpu["time"]) for gpu in message["gpus"])
                worst = max(worst, time.time() - newest.timestamp())
                updates -= 1
    return worst


@pytest.mark.quiet
@pytest.mark.timeout(180)
def test_eight_gpus_at_ten_hertz(start_pipeline: Any) -> None:
    running = start_pipeline("--source", "sim", "--gpus", str(GPUS), "--hz", str(HZ))
    assert asyncio.run(worst_age_s(running.ready["stream"], updates=30)) < 1.0
    wanted = GPUS * HZ * SECONDS
    until(lambda: hot_rows(running.ready) >= wanted, SECONDS + 20)
    assert gaps_and_doubles(running.ready) == []
    ((epochs, first, last),) = query(
        running.ready, "SELECT count(DISTINCT epoch), min(time), max(time) FROM sample_hot_fast"
    )
    assert epochs == 1
    # The rate is the asked one: no tick was missed.
    seconds = (last - first).total_seconds()
    assert hot_rows(running.ready) / GPUS >= seconds * HZ * 0.99
