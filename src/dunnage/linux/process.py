"""What a process may say about itself: its name and title, whose orphans it takes, which session and cgroup it is in.

Every function here changes the calling process only, and at once.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

from dunnage.linux.libc import check, libc

PR_SET_NAME = 15  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36

COMM_BYTES = 15  # TASK_COMM_LEN without its NUL


def set_child_subreaper() -> None:
    """Become the parent of every orphan below this process (not inherited by fork)."""
    check(libc().prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def set_name(name: str) -> None:
    """Set ``comm``: at most 15 bytes, the rest is cut off as the kernel does."""
    check(libc().prctl(PR_SET_NAME, ctypes.c_char_p(os.fsencode(name)[:COMM_BYTES]), 0, 0, 0))


def set_title(arguments: Sequence[str]) -> bool:
    """Make ``/proc/self/cmdline`` begin with ``arguments``; false if the kernel does not say where it lies.

    There is room for as many bytes as the command line had at exec: what is too long is cut off.
    """
    with open("/proc/self/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end: fields 48 and 49 of proc(5), after pid and comm
    if not 0 < start < end:
        return False
    room = end - start - 1  # the last byte stays NUL: else the kernel reads on into the environment
    title = b"\0".join(os.fsencode(argument) for argument in arguments)[:room]
    ctypes.memmove(start, title.ljust(end - start, b"\0"), end - start)
    return True


def leave_terminal() -> None:
    """Leave the session of whoever started us, and the cgroups that a user's session owns.

    A login session's end kills what is in its cgroups, so each path below ``user.slice`` is left for
    ``/system.slice/dunnage`` of the same hierarchy where we may; any other cgroup is where someone meant us to be.
    """
    try:
        os.setsid()
    except PermissionError:
        pass  # already a process group's leader: the launcher has made the session
    os.chdir("/")
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape", newline="") as file:
        memberships = file.read()
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="") as file:
        mounts = file.read()
    for root in session_hierarchies(memberships, mounts):
        home = f"{root}/system.slice/dunnage"
        try:
            os.makedirs(home, exist_ok=True)
            with open(f"{home}/cgroup.procs", "w", encoding="ascii") as procs:
                procs.write(str(os.getpid()))
        except OSError:
            continue  # not ours to change (a user namespace, a read-only mount): stay, as any daemon would


def session_hierarchies(memberships: str, mounts: str) -> list[str]:
    """Mount points of the hierarchies in which ``memberships`` (/proc/self/cgroup) lies below user.slice. Pure.

    A line ends in a newline alone: any other separator may be part of somebody's mount point.
    """
    points: dict[str, str] = {}
    for line in filter(None, mounts.split("\n")):
        left, _, right = line.partition(" - ")
        fields, (kind, _, options) = left.split(" "), right.split(" ", 2)
        if fields[3] != "/":
            continue  # a part of the hierarchy: its root is not to be seen here
        if kind == "cgroup2":
            points.setdefault("", fields[4])
        elif kind == "cgroup":
            for option in options.split(","):
                points.setdefault(option, fields[4])
    found: list[str] = []
    for line in filter(None, memberships.split("\n")):
        _, controllers, path = line.split(":", 2)
        point = points.get(controllers.split(",")[0])
        if point and (path + "/").startswith("/user.slice/") and point not in found:
            found.append(point)
    return found
