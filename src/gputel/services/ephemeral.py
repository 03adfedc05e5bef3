"""Temporary data directories of `gputel up --ephemeral`, also those of one that was killed.

A directory is ours to delete when it says so itself (`run/ephemeral`), belongs to this
user, nobody holds its lock and none of its services is alive. A directory that somebody
has named with --data-dir never has the mark.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Final

from gputel.services.state import read_state, runs

log = logging.getLogger(__name__)

PREFIX: Final = "gputel-"
_MARK: Final = "ephemeral"


def make() -> Path:
    """A new directory, marked as temporary."""
    path = Path(tempfile.mkdtemp(prefix=PREFIX))
    path.chmod(0o711)  # the database's user passes through; nobody lists it
    (path / "run").mkdir(mode=0o700)
    (path / "run" / _MARK).touch()
    return path


def remove(path: Path) -> None:
    """Delete a directory of `make`."""
    shutil.rmtree(path, ignore_errors=True)


def remove_abandoned(root: Path | None = None) -> list[Path]:
    """Delete what killed ones have left in `root` (the system's place for temporary files)."""
    removed = []
    for path in sorted((root or Path(tempfile.gettempdir())).glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError):
            if _remove_if_abandoned(path):
                log.info("removed %s, left by one that was killed", path)
                removed.append(path)
    return removed


def _remove_if_abandoned(path: Path) -> bool:
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
        return False
    if not (path / "run" / _MARK).is_file():
        return False
    lock = os.open(path / "run" / "lock", os.O_RDONLY | os.O_NOFOLLOW)  # none: it is starting
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        state = read_state(path)
        if state is None or any(map(runs, state.services.values())):
            return False
        remove(path)
    finally:
        os.close(lock)
    return True
