"""The data directory of `gputel up`: its lock, and the file that tells others what runs.

    DATA_DIR/run/lock      flock held by the running `gputel up`
    DATA_DIR/run/up.json   what runs, where, and how often it was restarted; no secrets

The lock is the truth: a state file whose lock nobody holds is what a killed one left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Final

import msgspec

from gputel.config import Config, default_data_dir, from_here, parse_address
from gputel.errors import GputelError, InputError
from gputel.limits import MIB

FREE_BYTES_MIN: Final = 128 * MIB
PREDECESSOR_WAIT_S: Final = 8.0
STATE_BYTES_MAX: Final = 1 * MIB


class DataDirInUse(GputelError):
    """Another `gputel up` runs on the same data directory."""


class ServiceState(msgspec.Struct, frozen=True, kw_only=True):
    """One part. `pid_ticks` is its start time in /proc, which tells a reused pid."""

    pid: int | None
    pid_ticks: int | None
    state: str
    restarts: int
    last_end: str
    addresses: dict[str, str]


class UpState(msgspec.Struct, frozen=True, kw_only=True):
    """A running `gputel up`."""

    version: str
    pid: int
    state: str
    source: str
    database: str
    services: dict[str, ServiceState]


class DataDir:
    """A data directory held by this process until `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._run = path / "run"
        self._lock = -1

    def open(self) -> None:
        """Make it if need be, lock it, and see the last ones of a killed `gputel up` out.

        InputError when it can't be written, DataDirInUse when another holds it.
        """
        try:
            if not self.path.exists():
                # Others may pass (the database has a user of its own), not look.
                self.path.mkdir(parents=True)
                self.path.chmod(0o711)
            self._run.mkdir(mode=0o700, exist_ok=True)
            self._lock = os.open(self._run / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            free = shutil.disk_usage(self.path).free
        except OSError as error:
            self._release()
            raise InputError(
                f"data directory {self.path}: {error.strerror}",
                hint="choose one you may write with --data-dir",
            ) from None
        if free < FREE_BYTES_MIN:
            self._release()
            raise InputError(
                f"data directory {self.path}: {free // MIB} MiB are free, "
                f"{FREE_BYTES_MIN // MIB} MiB are needed to start",
                hint="free some space, or choose another --data-dir",
            )
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._release()
            running = read_state(self.path)
            who = f" (pid {running.pid})" if running else ""
            raise DataDirInUse(
                f"data directory {self.path} is in use by another `gputel up`{who}",
                hint="stop that one, or choose another --data-dir",
            ) from None
        self._outlive_predecessor()

    def write(self, state: UpState) -> None:
        """Replace the state file, whole or not at all. OSError when the disk says no."""
        staging = self._run / "up.json.new"
        staging.write_bytes(msgspec.json.format(msgspec.json.encode(state)) + b"\n")
        staging.replace(self._run / "up.json")

    def close(self) -> None:
        """Forget the state and release the lock."""
        if self._lock >= 0:
            (self._run / "up.json").unlink(missing_ok=True)
            self._release()

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _outlive_predecessor(self) -> None:
        """Wait for services that lost their supervisor; they stop by themselves."""
        left = read_state(self.path)
        if left is None:
            return
        deadline = time.monotonic() + PREDECESSOR_WAIT_S
        for name, service in left.services.items():
            if name == "postgres":  # its own lock and pid file take care of it
                continue
            while runs(service) and time.monotonic() < deadline:
                time.sleep(0.02)
            if runs(service) and service.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(service.pid, signal.SIGKILL)


def read_state(data_dir: Path) -> UpState | None:
    """What the state file says; None without a readable one."""
    try:
        with (data_dir / "run" / "up.json").open("rb") as file:
            return msgspec.json.decode(file.read(STATE_BYTES_MAX), type=UpState)
    except (OSError, msgspec.DecodeError):
        return None


def is_running(data_dir: Path) -> bool:
    """Does a `gputel up` hold this data directory?"""
    try:
        descriptor = os.open(data_dir / "run" / "lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def pid_ticks(pid: int) -> int | None:
    """Start time of a process, clock ticks since boot: proc(5), /proc/PID/stat field 22."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def runs(service: ServiceState) -> bool:
    """Is its process alive?"""
    return (
        service.pid is not None
        and service.pid_ticks is not None
        and pid_ticks(service.pid) == service.pid_ticks
    )


def data_dir_of(config: Config) -> Path:
    """The data directory that `config` means."""
    return Path(config.data_dir) if config.data_dir else default_data_dir()


def running_broker(config: Config) -> str:
    """The brokers of the pipeline that runs on the data directory, else the configured ones."""
    return ",".join(_running(config, "broker")) or config.message_queue.address


def running_api(config: Config) -> str:
    """The URL of the API of the pipeline that runs on the data directory, else the configured."""
    for url in _running(config, "api"):
        return url
    return f"http://{from_here(parse_address(config.api.listen))}"


def _running(config: Config, name: str) -> list[str]:
    """The addresses of this name of the services that run on the data directory."""
    data_dir = data_dir_of(config)
    state = read_state(data_dir) if is_running(data_dir) else None
    services = state.services.values() if state else ()
    return [of.addresses[name] for of in services if name in of.addresses]
