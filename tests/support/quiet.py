"""Tests that measure how long something takes have the machine to themselves.

    @pytest.mark.quiet

With several workers (`make test`) such a test waits until the tests of the other workers have
ended, and they begin none before it has. Two locks, on files of this package:

    turnstile   held for a moment by each test that goes in; by a quiet one until it is out again
    room        shared by the others, a quiet one's alone

Without the turnstile a quiet test would never find the room empty.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

import pytest

ROOM: Final = Path(__file__)
TURNSTILE: Final = ROOM.with_name("__init__.py")


@contextlib.contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    """Hold a lock on a file."""
    with path.open("rb") as file:
        fcntl.flock(file, how)
        try:
            yield
        finally:
            # By its name, not by closing: a forked child that is left has the descriptor, too.
            fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def in_the_room(*, quiet: bool) -> Iterator[None]:
    """With the others, or alone."""
    with contextlib.ExitStack() as alone:
        alone.enter_context(locked(TURNSTILE, fcntl.LOCK_EX))
        with locked(ROOM, fcntl.LOCK_EX if quiet else fcntl.LOCK_SH):
            if not quiet:
                alone.close()
            yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Around all else, so that nobody's timeout runs while a test waits for its turn."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with in_the_room(quiet=item.get_closest_marker("quiet") is not None):
        return (yield)
