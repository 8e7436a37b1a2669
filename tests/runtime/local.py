"""A real runtime on this host without a keeper: bundles of busybox, a spawner on asyncio, orphans that come to us."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dunnage.runtime.client import Runtime

PR_SET_CHILD_SUBREAPER = 36
HUGETLB = Path("/sys/fs/cgroup/hugetlb")


class Exit(NamedTuple):
    code: int | None
    signal: int | None


@dataclass
class LocalSpawner:
    """Runs the runtime as our own child; remembers the names it was given."""

    names: list[str] = field(default_factory=list)

    async def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        fds: Mapping[int, int],
        deadline_s: float,
    ) -> Exit:
        self.names.append(name)
        # fork and exec of a child are short, and asyncio's own way would start a thread for each
        process = subprocess.Popen(  # noqa: ASYNC220
            argv, env=dict(env), cwd=cwd, stdin=fds[0], stdout=fds[1], stderr=fds[2]
        )
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        pidfd = os.pidfd_open(process.pid)
        loop.add_reader(pidfd, ended.set)
        try:
            async with asyncio.timeout(deadline_s):
                await ended.wait()
        except TimeoutError:
            process.kill()
            raise
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            status = process.wait()
        return Exit(status, None) if status >= 0 else Exit(None, -status)


@contextmanager
def child_subreaper() -> Iterator[None]:
    """Inits and execs become our children, so that their statuses can be seen and no zombie stays."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@contextmanager
def hugetlb_mounted() -> Iterator[None]:
    """crun 1.8 wants this controller as cgroup v1 on a hybrid host."""
    hybrid = HUGETLB.parent.joinpath("memory").is_dir()
    missing = hybrid and not os.path.ismount(HUGETLB)
    if missing:
        HUGETLB.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "cgroup", "-o", "hugetlb", "cgroup", HUGETLB], check=True)
    yield
    if missing and subprocess.run(["umount", HUGETLB], check=False).returncode == 0:
        HUGETLB.rmdir()


def make_rootfs(directory: Path) -> Path:
    busybox = shutil.which("busybox")
    assert busybox is not None, "busybox-static is needed"
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "root"):
        (directory / name).mkdir(parents=True)
    (directory / "tmp").chmod(0o1777)  # also for a tmpfs on it: runc 1.1.5 gives that its directory's mode
    shutil.copy(busybox, directory / "bin/busybox")
    for applet in ("cat", "echo", "env", "hostname", "id", "mount", "pwd", "sh", "sleep", "stty", "touch", "true"):
        (directory / "bin" / applet).symlink_to("busybox")
    (directory / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nweb:x:33:44:web:/:/bin/sh\n")
    (directory / "etc/group").write_text("root:x:0:\nweb:x:44:\nlogs:x:55:web\n")
    return directory


def children() -> list[int]:
    pids = [task.joinpath("children").read_text().split() for task in Path("/proc/self/task").iterdir()]
    return [int(pid) for of_task in pids for pid in of_task]


def reap_children(timeout_s: float = 10) -> None:
    """Reap every child of ours as it dies, in no order: an unreaped exec keeps its pid namespace's init from ending."""
    deadline = time.monotonic() + timeout_s
    while pids := children():
        poll = select.poll()
        pidfds = {}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                pidfds[os.pidfd_open(pid)] = pid
        for pidfd in pidfds:
            poll.register(pidfd, select.POLLIN)
        dead = [pidfds[pidfd] for pidfd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)]
        for pidfd in pidfds:
            os.close(pidfd)
        assert dead or not pidfds, f"{sorted(pidfds.values())} still run"
        for pid in dead:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def wait_for_exit(pid: int, timeout_s: float = 10) -> int:
    """Reap a child of ours: its exit code, or 128 + its signal."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(timeout_s * 1000), f"{pid} still runs"
    finally:
        os.close(pidfd)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


@dataclass
class Bundle:
    """A bundle whose container is deleted, and whose processes are reaped, when it is closed."""

    directory: Path
    command: str
    container: str
    spawner: LocalSpawner = field(default_factory=LocalSpawner)

    @property
    def runtime(self) -> Runtime:
        return self.make_runtime()

    @property
    def root(self) -> Path:
        return self.directory.parent / "root"

    @property
    def pid_file(self) -> Path:
        return self.directory / "init.pid"

    @property
    def pid(self) -> int:
        return int(self.pid_file.read_text())

    def make_runtime(
        self, command: str | None = None, deadline_s: float = 30, checkpoint_deadline_s: float = 30
    ) -> Runtime:
        return Runtime(
            command or self.command,
            root=str(self.root),
            log_path=str(self.directory / "log.json"),
            systemd_cgroup=False,
            spawner=self.spawner,
            env=os.environ | {"NOTIFY_SOCKET": "/nowhere"},
            deadline_s=deadline_s,
            checkpoint_deadline_s=checkpoint_deadline_s,
            scope="test",
        )

    def write(self, spec: Mapping[str, Any]) -> None:
        (self.directory / "config.json").write_text(json.dumps(spec))

    def close(self) -> None:
        if (self.root / self.container).exists():
            argv = [self.command, "--root", str(self.root), "delete", "--force", self.container]
            subprocess.run(argv, check=False, capture_output=True, timeout=30)
        reap_children()
