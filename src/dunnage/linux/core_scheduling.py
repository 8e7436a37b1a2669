"""Core scheduling domains: only processes of the same one run on a core's threads at the same time (linux 5.14)."""

from __future__ import annotations

import ctypes
import os

from dunnage.linux.libc import check, libc

PR_SCHED_CORE = 62  # linux/prctl.h
GET, CREATE, SHARE_FROM = 0, 1, 3  # PR_SCHED_CORE_*
THREAD, THREAD_GROUP = 0, 1  # PR_SCHED_CORE_SCOPE_*


def check_offered() -> None:
    """Raises OSError where the kernel has no core scheduling (EINVAL), or the machine no threads to share (ENODEV)."""
    cookie = ctypes.c_ulonglong()
    check(libc().prctl(PR_SCHED_CORE, GET, os.getpid(), THREAD, ctypes.byref(cookie)))


def enter(peer: int) -> None:
    """Put the calling process, which has one thread, into the domain of ``peer``; into a new one for 0, or where
    ``peer`` has gone. Raises OSError."""
    if peer:
        try:
            check(libc().prctl(PR_SCHED_CORE, SHARE_FROM, peer, THREAD, 0))
            return
        except ProcessLookupError:
            pass  # and with it the last of its domain whom we know
    check(libc().prctl(PR_SCHED_CORE, CREATE, 0, THREAD_GROUP, 0))
