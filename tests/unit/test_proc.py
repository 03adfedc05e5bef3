"""/proc as processes of containers, of other users and of nobody show it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gputel.collector.proc import ProcessFacts, cgroup_path, container_id, read_process

ID = "3f4a" * 16
OUTER = "0b1c" * 16
POD = "kubepods-burstable-podd1a2_b3.slice"

PATHS = [
    # systemd driver: Docker, containerd, CRI-O, Podman
    (f"/system.slice/docker-{ID}.scope", ID),
    (f"/kubepods.slice/kubepods-burstable.slice/{POD}/cri-containerd-{ID}.scope", ID),
    (f"/kubepods.slice/{POD}/crio-{ID}.scope", ID),
    (f"/user.slice/user-1000.slice/user@1000.service/libpod-{ID}.scope", ID),
    (f"/machine.slice/libpod-{ID}.scope/container", ID),
    # cgroupfs driver
    (f"/docker/{ID}", ID),
    (f"/kubepods/besteffort/podd1a2-b3/{ID}", ID),
    (f"/system.slice/containerd.service/{POD}:cri-containerd:{ID}", ID),
    # seen from inside a cgroup namespace, and from a node that is a container itself
    (f"/../cri-containerd-{ID}.scope", ID),
    (f"/docker/{OUTER}/kubelet/kubepods/podx/{ID}", ID),
    (f"/docker/{OUTER}/init.scope", OUTER),
    # none
    ("/user.slice/user-1000.slice/session-3.scope", ""),
    ("/slurm/uid_1000/job_4711/step_0", ""),
    (f"/docker/{ID[:12]}", ""),
    (f"/docker/{ID}0", ""),
    (f"/docker/{ID.upper()}", ""),
    ("", ""),
]


@pytest.mark.parametrize(("path", "expected"), PATHS)
def test_the_container_behind_a_cgroup(path: str, expected: str) -> None:
    assert container_id(path) == expected


@pytest.mark.parametrize(
    ("content", "path"),
    [
        ("0::/a.slice/b.scope\n", "/a.slice/b.scope"),
        ("0::/\n", ""),
        # v1, and both at once: v2 wins where the process is in it
        ("12:pids:/p\n4:cpu,cpuacct:/c\n3:memory:/m\n1:name=systemd:/s\n", "/m"),
        ("3:memory:/m\n1:name=systemd:/s\n0::/u\n", "/u"),
        ("3:memory:/m\n1:name=systemd:/s\n0::/\n", "/m"),
        ("9:freezer:/\n1:name=systemd:/s\n", "/s"),
        ("9:rdma:/r\n", "/r"),
        ("0::/with:colons\n", "/with:colons"),
        ("", ""),
        ("garbage\n\n::\n", ""),
    ],
)
def test_one_cgroup_of_many_hierarchies(content: str, path: str) -> None:
    assert cgroup_path(content) == path


def process(root: Path, pid: int, comm: bytes | None, cgroup: bytes | None) -> None:
    folder = root / str(pid)
    folder.mkdir()
    for name, content in (("comm", comm), ("cgroup", cgroup)):
        if content is not None:
            (folder / name).write_bytes(content)


def test_a_process_in_a_container(tmp_path: Path) -> None:
    process(tmp_path, 4711, b"python3\n", f"0::/system.slice/docker-{ID}.scope\n".encode())
    facts = read_process(tmp_path, 4711)
    assert facts == ProcessFacts("python3", f"/system.slice/docker-{ID}.scope", ID)


def test_what_can_not_be_read_is_empty(tmp_path: Path) -> None:
    assert read_process(tmp_path, 1) == ProcessFacts()
    process(tmp_path, 2, b"bash\n", None)
    assert read_process(tmp_path, 2) == ProcessFacts("bash")
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "comm").mkdir()  # an OSError of another kind
    assert read_process(tmp_path, 3) == ProcessFacts()


def test_a_hostile_name_fits_into_a_frame(tmp_path: Path) -> None:
    process(tmp_path, 4, b'a\n"b\\\x00\xff\x1b[31m\n', b"0::/" + "é".encode() * 4096)
    facts = read_process(tmp_path, 4)
    assert facts.name == 'a?"b\\?\ufffd?[31m'
    assert len(facts.cgroup.encode()) <= 512
    assert facts.cgroup.startswith("/éé")


def test_our_own_process() -> None:
    facts = read_process(Path("/proc"), os.getpid())
    assert facts.name == Path("/proc/self/comm").read_text().strip()
