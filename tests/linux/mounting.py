"""Mounts made and taken away as the keeper does it: in forked children."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dunnage.linux.mount import mount_all, unmount_all
from dunnage.linux.mount_table import mounts_below, unmount_order

LIMIT_S = 20.0

Entry = Callable[[Any, dict[str, int]], int]


def in_child(entry: Entry, argument: Any) -> tuple[int, str]:
    """Its exit status and its error text."""
    error = os.memfd_create("error")
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            status = entry(argument, {"error": error})
        finally:
            os._exit(status)
    pidfd = os.pidfd_open(pid)
    ended = select.select([pidfd], [], [], LIMIT_S)[0]
    os.close(pidfd)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    text = os.pread(error, 100_000, 0).decode()
    os.close(error)
    return os.waitstatus_to_exitcode(status), text


def mount(
    rootfs: Path, *mounts: tuple[str, str, str, list[str]], launch: dict[str, Any] | None = None
) -> tuple[int, str]:
    """``mounts``: type, source, target and options of each."""
    named = [dict(zip(("type", "source", "target", "options"), values, strict=True)) for values in mounts]
    return in_child(mount_all, {"rootfs": str(rootfs), "mounts": named, "launch": launch})


def unmount(rootfs: Path, env: dict[str, str] | None = None) -> tuple[int, str]:
    return in_child(unmount_all, {"rootfs": str(rootfs), "env": env})


def mounted(below: Path) -> list[str]:
    """In the order in which they are unmounted."""
    mounts = mounts_below(Path("/proc/self/mountinfo").read_bytes(), str(below))
    return [mount.path for mount in unmount_order(mounts)]


def in_namespaces(flags: list[str], code: str) -> str:
    """What a Python program prints in a mount namespace of its own (and what else ``flags`` of unshare(1) say)."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    done = subprocess.run(
        ["unshare", "-m", *flags, sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
