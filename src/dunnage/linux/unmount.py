"""A container's rootfs taken away again, with all that lies in it.

In a child of its own, as an unmount may sleep in the kernel; nothing here asks a file system that may have died.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from ctypes import c_char_p
from typing import Any

from dunnage.errors import Error
from dunnage.linux.libc import check, libc
from dunnage.linux.mount_helper import unmount_by_helper
from dunnage.linux.mount_table import Mounted, mounts_below, unmount_order
from dunnage.linux.paths import Place, canonical, open_path

MNT_DETACH = 2  # linux/fs.h
UMOUNT_NOFOLLOW = 8

BUSY_TRIES = 50
BUSY_PAUSE_S = 0.05


def unmount_all(argument: Any, fds: Mapping[str, int]) -> int:
    """Unmount everything at and below ``{"rootfs": path}``, deepest first; what is not mounted is well.

    The exit status is 1 where the outermost mount stays, and why is in the file of ``fds["error"]``: inner ones may go
    together with it. ``"env"`` is what the helpers of FUSE get, which are of this child's own process group.
    """
    if not argument["rootfs"]:
        return 0
    os.setpgid(0, 0)
    env = argument.get("env") or os.environ
    with open("/proc/self/mountinfo", "rb") as file:
        mounts = mounts_below(file.read(), canonical(argument["rootfs"]))
    failure = ""
    for mounted in unmount_order(mounts):
        failure = _take_away(mounted, env)
    return fail(fds, failure) if failure else 0


def _take_away(mounted: Mounted, env: Mapping[str, str]) -> str:
    """Why it stays, if so."""
    if mounted.is_fuse and unmount_by_helper(mounted.path, env):
        return ""
    parent, name = os.path.split(mounted.path)
    try:
        place = Place(open_path(parent), name, mounted.path)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"failed to unmount target {mounted.path}: {reason(error)}"
    try:
        unmount_at(place)
    except Error as error:
        return str(error)
    finally:
        place.close()
    return ""


def unmount_at(place: Place, *, flags: int = 0) -> None:
    """Take one mount off, if there is one. A busy one is tried again: a process that has been killed may still be in
    its exit. Raises Error."""
    path = c_char_p(os.fsencode(f"/proc/self/fd/{place.directory}/{place.name}"))
    tries = 0
    while True:
        try:
            check(libc().umount2(path, flags | UMOUNT_NOFOLLOW))
            return
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):  # nothing is mounted there, or not any more
                return
            tries += 1
            if error.errno != errno.EBUSY or tries == BUSY_TRIES:
                raise Error(f"failed to unmount target {place.path}: {reason(error)}") from error
            time.sleep(BUSY_PAUSE_S)


def reason(error: OSError) -> str:
    text = error.strerror or str(error)
    return f"{text[:1].lower()}{text[1:]}"


def fail(fds: Mapping[str, int], text: str) -> int:
    if "error" in fds:
        os.pwrite(fds["error"], text.encode(errors="surrogateescape"), 0)
    return 1
