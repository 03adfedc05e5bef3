"""The tests' own locks: a quiet test is alone, and its turn comes."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from support import quiet

PATIENCE_S = 30
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Others than those that this very test is run under."""
    room, turnstile = tmp_path / "room", tmp_path / "turnstile"
    room.touch()
    turnstile.touch()
    monkeypatch.setattr(quiet, "ROOM", room)
    monkeypatch.setattr(quiet, "TURNSTILE", turnstile)
    return room, turnstile


def visit(locks: tuple[Path, Path], alone: bool, entered: Event, leave: Event) -> None:
    """In another process: go in, say so, and stay until told to leave."""
    quiet.ROOM, quiet.TURNSTILE = locks  # type: ignore[misc]
    with quiet.in_the_room(quiet=alone):
        entered.set()
        assert leave.wait(PATIENCE_S)


class Visitor:
    def __init__(self, locks: tuple[Path, Path], *, alone: bool) -> None:
        self.entered, self.leave = SPAWN.Event(), SPAWN.Event()
        arguments = (locks, alone, self.entered, self.leave)
        self.process = SPAWN.Process(target=visit, args=arguments)
        self.process.start()

    def gone(self) -> bool:
        self.leave.set()
        self.process.join(PATIENCE_S)
        return self.process.exitcode == 0


def waits_at(path: Path) -> bool:
    """Whether a process waits for the lock on this file (proc(5), /proc/locks)."""
    inode = f":{path.stat().st_ino} "
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and inode in line for line in lines)


def until_one_waits_at(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not waits_at(path):
        assert time.monotonic() < deadline, "nobody waits"
        time.sleep(0.01)


def test_others_share_the_room(locks: tuple[Path, Path]) -> None:
    visitors = [Visitor(locks, alone=False) for _ in range(2)]
    assert all(visitor.entered.wait(PATIENCE_S) for visitor in visitors)
    assert all(visitor.gone() for visitor in visitors)


def test_a_quiet_one_is_alone_and_goes_before_those_who_come_later(
    locks: tuple[Path, Path],
) -> None:
    first = Visitor(locks, alone=False)
    assert first.entered.wait(PATIENCE_S)
    alone = Visitor(locks, alone=True)
    until_one_waits_at(locks[0])
    late = Visitor(locks, alone=False)
    until_one_waits_at(locks[1])
    assert not alone.entered.is_set()
    assert not late.entered.is_set()
    assert first.gone()
    assert alone.entered.wait(PATIENCE_S)
    assert not late.entered.is_set()
    assert alone.gone()
    assert late.entered.wait(PATIENCE_S)
    assert late.gone()
