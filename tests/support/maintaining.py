"""Maintainers that are killed: `python -m support.maintaining`.

A line on standard input is a JSON object of `Plan`; a process is forked for it, which maintains
until nothing is left to do, or kills itself (SIGKILL) at one of its statements: before it is
sent, while the server is at it, or when its answer has come. Its exit status is a line on
standard output. What is imported is imported once.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from typing import Any

import asyncpg
import msgspec

from gputel import store as store_package
from gputel.clock import ManualClock
from gputel.store import frozen, rechunk, seal
from gputel.store.maintain import Maintainer
from gputel.store.settings import DatabaseSettings
from support.tiers import SETTINGS, settle

ROWS_A_STEP = 16
CHUNKS_A_STEP = 16
STATEMENTS = ("execute", "fetch", "fetchrow", "fetchval", "copy_to_table", "copy_from_query")


@dataclass(frozen=True)
class Plan:
    """What one process does. `statement`: at which it dies; 0: at none.

    `frozen_rows_max`: of partitions that are frozen; 0: all are sealed by steps that delete.
    """

    database: dict[str, Any]
    time_ns: int
    seed: int
    statement: int = 0
    frozen_rows_max: int = frozen.ROWS_MAX

    def line(self) -> str:
        """For standard input."""
        return json.dumps(asdict(self)) + "\n"


def die_at(number: int, seed: int) -> None:
    """Let the process kill itself at its `number`th statement."""
    chance = random.Random(seed)
    left = number

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # never returns

    def dying(name: str) -> Any:
        method = getattr(asyncpg.Connection, name)

        async def statement(self: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left:
                return await method(self, *arguments, **options)
            when = chance.choice(("before", "meanwhile", "after"))
            if when == "before":
                die()
            elif when == "meanwhile":
                asyncio.get_running_loop().call_later(chance.uniform(0, 0.01), die)
            found = await method(self, *arguments, **options)
            die()
            return found

        return statement

    for name in STATEMENTS:
        setattr(asyncpg.Connection, name, dying(name))


async def maintain(plan: Plan) -> None:
    """Until nothing is left to do."""
    store = await store_package.connect(msgspec.convert(plan.database, DatabaseSettings))
    try:
        clock = ManualClock(plan.time_ns)
        await settle(Maintainer(store, SETTINGS, clock), clock)
    finally:
        await store.close()


def run(plan: Plan) -> None:
    """As a process of its own, which does not return."""
    seal.ROWS_A_STEP = ROWS_A_STEP  # type: ignore[misc]
    frozen.ROWS_MAX = plan.frozen_rows_max  # type: ignore[misc]
    rechunk.CHUNKS_A_STEP = CHUNKS_A_STEP  # type: ignore[misc]
    if plan.statement:
        die_at(plan.statement, plan.seed)
    status = 1
    try:
        asyncio.run(maintain(plan))
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            run(Plan(**json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
