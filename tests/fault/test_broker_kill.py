"""kill -9 of a broker in the middle of a publish: nothing acknowledged is lost or doubled."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from gputel.broker import StartAt, connect

pytestmark = [pytest.mark.fault, pytest.mark.integration]

MESSAGES = 3000
KILLS = 3

RUNNER = """
import asyncio, sys
from pathlib import Path
from gputel.broker.server import BrokerServer
from gputel.broker.settings import BrokerSettings
from gputel.observe import Health, Telemetry

async def main():
    settings = BrokerSettings(listen=sys.argv[2], partitions=2, disk_reserve_bytes=0)
    server = BrokerServer(settings, Path(sys.argv[1]), Telemetry("broker"), Health("broker"))
    await server.start()
    print(server.address, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def start_broker(data_dir: Path, listen: str) -> tuple[asyncio.subprocess.Process, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RUNNER, str(data_dir), listen, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(20):
        return process, (await process.stdout.readline()).decode().strip()


async def kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGKILL)
    await process.wait()


async def test_killed_brokers_lose_and_double_nothing(tmp_path):
    process, address = await start_broker(tmp_path, "127.0.0.1:0")
    client = await connect(address)
    try:
        publisher = await client.publisher("t", "p", 1)
        first_of_round = 1
        for round_number in range(KILLS):
            last = MESSAGES * (round_number + 1) // KILLS
            for sequence in range(first_of_round, last + 1):
                await publisher.publish(sequence, f"k{sequence % 7}", b"%d:" % sequence * 200)
            first_of_round = last + 1
            # Some are acknowledged, most are still on their way.
            async with asyncio.timeout(20):
                oldest = last - MESSAGES // KILLS + 1
                while publisher.last_acked_sequence < oldest:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            await kill(process)
            process, address = await start_broker(tmp_path, address)
        assert await publisher.flush(30)
        await publisher.close()
        seen: list[tuple[int, int]] = []
        async with client.consumer("t", start_at=StartAt.EARLIEST) as consumer:
            async with asyncio.timeout(30):
                async for delivery in consumer:
                    assert delivery.payload == b"%d:" % delivery.sequence * 200
                    seen.append((delivery.partition, delivery.sequence))
                    if len(seen) >= MESSAGES:
                        break
        stored = sum(
            partition.next_offset
            for topic in await client.topics()
            for partition in topic.partitions
        )
        assert stored == MESSAGES
        assert sorted(sequence for _, sequence in seen) == list(range(1, MESSAGES + 1))
        for index in (0, 1):
            order = [sequence for partition, sequence in seen if partition == index]
            assert order == sorted(order)
    finally:
        await client.close()
        await kill(process)
