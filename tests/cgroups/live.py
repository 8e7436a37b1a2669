"""v1 cgroups of the test's own on this machine, and processes in them."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dunnage.cgroups import V1Cgroup, cgroup_of, is_unified

SHELL = ["busybox", "sh", "-c"]
EAT = "tail /dev/zero"
"""Takes memory until it is killed: there is no newline."""


@contextmanager
def v1_cgroup(*, limit_bytes: int | None = None) -> Iterator[V1Cgroup]:
    """A new directory in every controller that has processes of its own: memory, cpuacct, …"""
    if os.geteuid() != 0 or is_unified():
        pytest.skip("needs a host with cgroup v1 and root")
    roots = {name: Path(path) for name, path in _roots().items()}
    name = f"dunnage-test-{uuid.uuid4().hex[:12]}"
    made = {controller: root / name for controller, root in roots.items()}
    directories = set(made.values())
    try:
        for directory in directories:
            directory.mkdir()
        if limit_bytes is not None:
            (made["memory"] / "memory.limit_in_bytes").write_text(str(limit_bytes))
        yield V1Cgroup({controller: str(directory) for controller, directory in made.items()})
    finally:
        for directory in directories:
            if directory.is_dir():
                directory.rmdir()


@contextmanager
def process_in(cgroup: V1Cgroup, script: str) -> Iterator[subprocess.Popen[bytes]]:
    """A shell in ``cgroup`` that waits for a line before it begins; killed at the end."""
    argv = [*SHELL, f"read line; {script}"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            for directory in cgroup.directories.values():
                Path(directory, "cgroup.procs").write_text(str(process.pid))
            yield process
        finally:
            process.kill()
    assert process.returncode in (0, -signal.SIGKILL)


def begin(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    process.stdin.flush()


def _roots() -> dict[str, str]:
    """Where this process is, so that nobody's limits but its own count; cpuset needs its CPUs set first."""
    found = cgroup_of(os.getpid(), unified=False)
    assert isinstance(found, V1Cgroup)
    return {name: path for name, path in found.directories.items() if name not in ("cpuset", "name=systemd")}
