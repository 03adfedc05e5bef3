"""Small steps with processes: run one to its end, wait for a condition, recognise a postmaster."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gputel.errors import EmbeddedPostgresError

INIT_TIMEOUT_S: Final = 120.0
POLL_S: Final = 0.02

# No PG* variable of the user's reaches the server.
ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


async def run(command: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env=ENVIRONMENT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), INIT_TIMEOUT_S)
    except BaseException as error:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if isinstance(error, TimeoutError):
            raise EmbeddedPostgresError(
                f"initdb did not end within {INIT_TIMEOUT_S:.0f} s", hint="is the disk very slow?"
            ) from error
        raise
    if process.returncode != 0:
        raise EmbeddedPostgresError(
            f"the embedded PostgreSQL can't be prepared: {last_words(output.decode())}",
            hint="check owner, permissions and free space of the data directory",
        )


async def until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Poll until `condition()` holds; False when `timeout_s` passed first."""

    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def pid_in(pid_file: Path) -> int | None:
    """The postmaster's pid: the first line of its pid file."""
    try:
        return int(pid_file.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None


def is_postmaster(pid: int, cluster: Path) -> bool:
    """Is `pid` a PostgreSQL server working in `cluster`, and not another with the same pid?"""
    try:
        stat_line = Path(f"/proc/{pid}/stat").read_text()
        if stat_line.rpartition(")")[2].split()[0] == "Z":
            return False
        executable = Path(f"/proc/{pid}/exe").readlink().name.removesuffix(" (deleted)")
        return executable == "postgres" and Path(f"/proc/{pid}/cwd").samefile(cluster)
    except (OSError, IndexError):
        return False


def last_words(text: str) -> str:
    """The line that tells why: the last FATAL or error, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "FATAL" in line or "error:" in line or "PANIC" in line]
    return (telling or lines or ["it said nothing"])[-1]
