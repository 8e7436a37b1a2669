"""/proc/self/mountinfo as values, and the order in which mounts can be taken away. Pure."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple


class Mounted(NamedTuple):
    """One line: its id, that of the mount it lies in, where, and of what type."""

    id: int
    parent: int
    path: str
    fstype: str

    @property
    def is_fuse(self) -> bool:
        return self.fstype.partition(".")[0] in ("fuse", "fuse3", "fuseblk")


def mounts_below(mountinfo: bytes, root: str) -> list[Mounted]:
    """Every mount at or below ``root``, in the kernel's order."""
    found = []
    inside = root.rstrip("/") + "/"
    for line in mountinfo.split(b"\n"):  # a carriage return is a character of a path like any other
        left, _, right = line.partition(b" - ")
        fields = left.split(b" ")
        if len(fields) < 6:
            continue  # the end
        path = os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), fields[4]))
        if path == root or path.startswith(inside):
            found.append(Mounted(int(fields[0]), int(fields[1]), path, os.fsdecode(right.split(b" ")[0])))
    return found


def unmount_order(mounts: Sequence[Mounted]) -> list[Mounted]:
    """Each mount before the one it lies in, deepest first, and of those that one hides the one on top first."""
    ids = {mount.id for mount in mounts}
    children: dict[int, list[Mounted]] = {}
    for mount in mounts:
        children.setdefault(mount.parent if mount.parent in ids else -1, []).append(mount)
    order: list[Mounted] = []
    todo = sorted(children.get(-1, ()), key=lambda mount: len(mount.path), reverse=True)
    while todo:  # from the outside in: a mount, and then what lies in it; what covers it whole comes last
        above = todo.pop()
        order.append(above)
        inner = children.get(above.id, ())
        todo += sorted(inner, key=lambda mount: (mount.path == above.path, len(mount.path)), reverse=True)
    return order[::-1]
