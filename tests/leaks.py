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
RUNTIME_ROOTS = ("/run/containerd/runc", "/run/runc", "/run/crun")
STATE_DIRECTORIES = ("/run/dunnage", "/run/containerd/s", "/run/containerd/fifo", *RUNTIME_ROOTS)
TEST_CGROUPS = re.compile(r"^(default|dunnage.*|k8s\.io|moby|t-.*|(runc|crun|dunnage|cri-containerd)-.*)$")


class Snapshot(NamedTuple):
    """Each set holds lines ready to be shown."""

    processes: frozenset[str]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    files: frozenset[str]
    fds: frozenset[str]

    @classmethod
    def take(cls, *, session: str, base: Path, top_cgroups: frozenset[str], shared: bool = False) -> Snapshot:
        """``base`` is this session's own temporary directory; ``top_cgroups`` are those of before the session.

        On a ``shared`` host only what is certainly this session's counts.
        """
        return cls(
            processes=frozenset(_processes(session, shared=shared)),
            mounts=frozenset(line for line in _mounts(base) if not shared or f" {base}/" in line),
            cgroups=frozenset(() if shared else _cgroups(top_cgroups)),
            files=frozenset(() if shared else _files(base)),
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


def _processes(session: str, *, shared: bool) -> Iterator[str]:
    parents: dict[int, int] = {}
    marks: dict[int, str] = {}
    shown: dict[int, str] = {}
    shims: set[int] = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        pid = int(name)
        try:
            comm, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            environment = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        state, parent, start = rest.split()[0], int(rest.split()[1]), rest.split()[19]
        parents[pid] = parent
        for variable in environment.split("\0"):
            if variable.startswith(f"{SESSION}="):
                marks[pid] = variable.partition("=")[2]
        if state == "Z" and parent == 1:
            continue
        if comm.startswith("containerd-shim"):
            shims.add(pid)
        shown[pid] = f"{pid} started {start} ({comm}) {argv[:160]}" + (" (zombie)" if state == "Z" else "")
    marks[os.getpid()] = session
    del shown[os.getpid()]
    for pid, line in shown.items():
        ancestors = [pid]
        while ancestors[-1] > 1 and ancestors[-1] not in marks:
            ancestors.append(parents.get(ancestors[-1], 0))
        mark = marks.get(ancestors[-1])
        if mark == session or (mark is None and not shared and not shims.isdisjoint(ancestors)):
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


def _files(base: Path) -> Iterator[str]:
    def is_another_sessions(name: str) -> bool:
        # a state directory is named after containerd's address, which the tests keep below their own base
        path = name.replace("-", "/").replace("\\x2d", "-")
        return f"{base.parent}/"[1:] in path and f"{base}/"[1:] not in path

    yield from (f"/{name}" for name in os.listdir("/"))  # where a path that a test made up would be made
    for root in STATE_DIRECTORIES:
        for path, directories, names in os.walk(root):
            if path in RUNTIME_ROOTS:
                # a directory for each containerd namespace stays, as it does under runc
                continue
            if path == "/run/dunnage":
                directories[:] = [name for name in directories if not is_another_sessions(name)]
            if root == "/run/dunnage":
                # directories stay, and of a keeper that ended its lock (safely removed by nobody) and its log
                yield from (f"{path}/{name}" for name in names if name not in ("lock", "log"))
                continue
            yield from (f"{path}/{name}" for name in names)
            yield from (f"{path}/{name}" for name in directories)


def _fds() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        try:
            yield f"{name} {os.readlink(f'/proc/self/fd/{name}')}"
        except OSError:
            continue


def _is_directory(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)
