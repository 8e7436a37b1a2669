"""Whatever a test makes on the host, seen before and after: what is new after the test is a leak.

A ``Snapshot`` holds only names that stay the same while a thing lives, so two of them can be subtracted. Other people
use the host too: a process that carries another session's mark, and cgroups that no container engine here would make,
are not counted.
"""

from __future__ import annotations

import os
import re
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

SESSION = "DUNNAGE_TEST_SESSION"
SETTLE_S = 5.0
STATE_DIRECTORIES = (
    "/run/dunnage",
    "/run/containerd/s",
    "/run/containerd/fifo",
    "/run/containerd/runc",
    "/run/runc",
    "/run/crun",
)
TEST_CGROUPS = re.compile(
    r"^(default|dunnage.*|k8s\.io|moby|t-.*|user\.slice:.*|(runc|crun|dunnage|cri-containerd)-.*)$"
)


class Snapshot(NamedTuple):
    """Each set holds lines ready to be shown."""

    processes: frozenset[str]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    files: frozenset[str]
    fds: frozenset[str]

    @classmethod
    def take(cls, *, session: str, base: Path, top_cgroups: frozenset[str]) -> Snapshot:
        """``base`` is this session's own temporary directory; ``top_cgroups`` are those of before the session."""
        return cls(
            processes=frozenset(_processes(session)),
            mounts=frozenset(_mounts(base)),
            cgroups=frozenset(_cgroups(top_cgroups)),
            files=frozenset(_files()),
            fds=frozenset(_fds()),
        )

    def new_in(self, later: Snapshot) -> list[str]:
        """What ``later`` has and this one has not, one line for each thing."""
        return [
            f"{kind[:-1]} {line}"
            for kind, before, after in zip(self._fields, self, later, strict=True)
            for line in sorted(after - before)
        ]


def top_level_cgroups() -> frozenset[str]:
    """The directories at the top of every mounted hierarchy."""
    return frozenset(entry.path for root in _cgroup_roots() for entry in os.scandir(root) if _is_directory(entry))


def wait_until_nothing_is_left(before: Snapshot, take: Callable[[], Snapshot], limit_s: float = SETTLE_S) -> list[str]:
    """Look again whenever a mount changes, and every 50 ms, until nothing is new or ``limit_s`` have passed."""
    deadline = time.monotonic() + limit_s
    left = before.new_in(take())
    if not left:
        return left
    with open("/proc/self/mountinfo", "rb") as mountinfo:
        changes = select.poll()
        changes.register(mountinfo, select.POLLPRI | select.POLLERR)
        while left and time.monotonic() < deadline:
            changes.poll(50)
            left = before.new_in(take())
        return [line for line in left if not line.startswith(f"fd {mountinfo.fileno()} ")]


def _processes(session: str) -> Iterator[str]:
    parents: dict[int, int] = {}
    shown: dict[int, str] = {}
    ours = {os.getpid()}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        pid = int(name)
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
            comm, _, rest = status.partition("(")[2].rpartition(")")
            fields = rest.split()
            state, parent, start = fields[0], int(fields[1]), fields[19]
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            environment = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        parents[pid] = parent
        if state == "Z" and parent == 1:
            continue
        mark = next((v.partition("=")[2] for v in environment.split("\0") if v.startswith(f"{SESSION}=")), None)
        if mark not in (None, session):
            continue
        shown[pid] = f"{pid} started {start} ({comm}) {argv[:160]}" + (" (zombie)" if state == "Z" else "")
        if mark == session or (mark is None and comm.startswith("containerd-shim")):
            ours.add(pid)
    for pid, line in shown.items():
        if pid == os.getpid():
            continue
        ancestor = pid
        while ancestor > 1 and ancestor not in ours:
            ancestor = parents.get(ancestor, 0)
        if ancestor in ours:
            yield line


def _mounts(base: Path) -> Iterator[str]:
    sessions = str(base.parent) + "/"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        target = fields[4].encode().decode("unicode_escape")
        if target.startswith(sessions) and not target.startswith(f"{base}/"):
            continue
        yield f"{fields[0]} {target} ({line.partition(' - ')[2]})"


def _cgroup_roots() -> list[str]:
    return [
        line.split()[4]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if line.partition(" - ")[2].startswith(("cgroup ", "cgroup2 "))
    ]


def _cgroups(before: frozenset[str]) -> Iterator[str]:
    for root in _cgroup_roots():
        for path, names, _ in os.walk(root):
            if path == root:
                names[:] = [name for name in names if f"{root}/{name}" not in before or TEST_CGROUPS.match(name)]
            yield from (f"{path}/{name}" for name in names if path != root or TEST_CGROUPS.match(name))


def _files() -> Iterator[str]:
    for root in STATE_DIRECTORIES:
        for path, directories, names in os.walk(root):
            if path in ("/run/containerd/runc", "/run/runc", "/run/crun"):
                # a directory for each containerd namespace stays, as it does under runc
                continue
            yield from (f"{path}/{name}" for name in names)
            yield from (f"{path}/{name}" for name in directories if path not in STATE_DIRECTORIES)


def _fds() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        try:
            yield f"{name} {os.readlink(f'/proc/self/fd/{name}')}"
        except OSError:
            continue


def _is_directory(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)
