"""gRPC's event engine stays out of the way of messages, unless somebody wants it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gputel.broker import sockets

CALLS = 200

PROGRAM = f"""
import asyncio
from pathlib import Path

import gputel.broker
import grpc.aio


async def echo(request, context):
    return request


def switches():
    count = 0
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().startswith("event_engine"):
            lines = (task / "status").read_text().splitlines()
            count += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return count


async def main():
    server = grpc.aio.server()
    handlers = {{"Echo": grpc.unary_unary_rpc_method_handler(echo)}}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{{port}}") as channel:
        call = channel.unary_unary("/t/Echo")
        assert await call(b"x", timeout=30) == b"x"
        before = switches()
        for _ in range({CALLS}):
            await call(b"x", timeout=30)
        print(switches() - before)
    await server.stop(0)


asyncio.run(main())
"""


def thread_switches(experiments: str | None) -> tuple[int, str]:
    """How often the event engine's threads were switched for CALLS calls; what stderr says."""
    environment = {key: text for key, text in os.environ.items() if key != "GRPC_EXPERIMENTS"}
    if experiments is not None:
        environment["GRPC_EXPERIMENTS"] = experiments
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout), done.stderr


def test_messages_pass_the_event_engine_by() -> None:
    switched, said = thread_switches(None)
    assert switched < CALLS / 2
    assert "Unknown experiment" not in said  # this version of gRPC knows them


@pytest.mark.parametrize("own", ["event_engine_client,event_engine_listener", ""])
def test_who_sets_experiments_decides(own: str) -> None:
    switched, _ = thread_switches(own)
    assert switched >= CALLS


@pytest.mark.parametrize("module", ["gputel.broker.client", "gputel.services.broker"])
def test_it_is_decided_before_grpc_is_imported(module: str) -> None:
    program = f"""
import importlib, os, sys


class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "grpc":
            print(os.environ.get("GRPC_EXPERIMENTS"))


sys.meta_path.insert(0, Watch())
importlib.import_module({module!r})
"""
    environment = {key: text for key, text in os.environ.items() if key != "GRPC_EXPERIMENTS"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [sockets.EXPERIMENTS]
