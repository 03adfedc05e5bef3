"""What /proc tells of a process: its name, its cgroup, and the container behind that."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

TEXT_BYTES_MAX: Final = 512
FILE_BYTES_MAX: Final = 16 * 1024

# Docker, containerd, CRI-O and Podman name a container by 64 hexadecimal digits, alone
# (cgroupfs driver) or as RUNTIME-ID.scope (systemd driver).
_CONTAINER_ID: Final = re.compile(r"(?:^|[/:-])([0-9a-f]{64})(?:\.scope)?(?=/|$)")
# The v1 hierarchies that every runtime uses, best first; v2 has one, without a controller.
_CONTROLLERS: Final = ("", "memory", "pids", "devices", "name=systemd")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f]")


class ProcessFacts(NamedTuple):
    """Empty where /proc does not tell: the process is gone, not ours, or of another namespace."""

    name: str = ""
    cgroup: str = ""
    container_id: str = ""


def read_process(root: Path, pid: int) -> ProcessFacts:
    """The facts of `pid` under `root`, which is /proc but in tests. Never raises."""
    cgroup = cgroup_path(_read(root / str(pid) / "cgroup"))
    return ProcessFacts(
        name=_text(_read(root / str(pid) / "comm").removesuffix("\n")),
        cgroup=_text(cgroup),
        container_id=container_id(cgroup),
    )


def cgroup_path(content: str) -> str:
    """The process's cgroup out of `hierarchy:controllers:path` lines (cgroups(7)).

    The v2 hierarchy where the process is in one; else v1's, the best known first. The root
    says nothing and is ''.
    """
    paths: dict[str, str] = {}
    for line in content.splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3 and fields[2] not in ("", "/"):
            for controller in fields[1].split(","):
                paths.setdefault(controller, fields[2])
    for controller in _CONTROLLERS:
        if controller in paths:
            return paths[controller]
    return next(iter(paths.values()), "")


def container_id(cgroup: str) -> str:
    """The id of the innermost container in a cgroup path, '' when there is none."""
    found = _CONTAINER_ID.findall(cgroup)
    return found[-1] if found else ""


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX).decode("utf-8", "replace")
    except OSError:
        return ""


def _text(text: str) -> str:
    """Printable, and as long as a frame takes it."""
    text = _UNPRINTABLE.sub("?", text)
    return text.encode()[:TEXT_BYTES_MAX].decode("utf-8", "ignore")
