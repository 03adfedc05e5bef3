"""Run as a script: become another user, die with the parent, then exec.

    python -I -S launch.py UID GID PARENT_PID PROGRAM ARGUMENT...

PostgreSQL refuses to run as root, and must not outlive the process that owns it (nor must a
nats-server, which is started in the same way). A change of user clears the parent-death
signal (prctl(2)), so it is asked for after the change; a small program does both without
running Python between fork and exec of a threaded process. PARENT_PID 0: no parent-death
signal. The parent is a thread to the kernel: the signal comes when the thread ends that
started this script.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main(argv: list[str]) -> None:
    """Exec the program; return only when the parent is gone already."""
    uid, gid, parent = (int(text) for text in argv[1:4])
    if os.geteuid() != uid:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    os.umask(0o077)
    if parent:
        libc = ctypes.CDLL(None, use_errno=True)
        # SIGINT is PostgreSQL's fast shutdown (sessions end, data are flushed), and stops a
        # nats-server.
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != parent:
            return
    os.execv(argv[4], argv[4:])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main(sys.argv)
