"""Which cgroup a container has: that of its init, found when the init was made.

A host whose /sys/fs/cgroup is a cgroup2 file system has v2; every other one, the hybrid too, has v1. The names in a
path, systemd's slices and scopes among them, are taken as they are.
"""

from __future__ import annotations

import ctypes
import os
import posixpath
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from dunnage.cgroups.files import BadFormat, lines
from dunnage.errors import Error, NotFound
from dunnage.linux.libc import check, libc

ROOT = "/sys/fs/cgroup"
CGROUP2_SUPER_MAGIC = 0x63677270  # linux/magic.h
PF_EXITING = 0x4  # linux/sched.h
_OCTAL = re.compile(r"\\([0-7]{3})")


class CgroupDeleted(NotFound):
    """The init has no cgroup any more."""


class V1Cgroup(NamedTuple):
    """``directories``: controller, or ``name=systemd`` → its directory. Controllers that are not there are left out."""

    directories: Mapping[str, str]


class V2Cgroup(NamedTuple):
    directory: str


Cgroup = V1Cgroup | V2Cgroup


class HierarchyMount(NamedTuple):
    """A mounted v1 hierarchy: the part of it that is mounted, where, and its controllers."""

    root: str
    point: str
    controllers: frozenset[str]


def is_unified(root: str = ROOT) -> bool:
    """Whether this host has v2 alone."""
    # struct statfs begins with f_type, a long; its size is below 256 bytes on every architecture
    buffer = ctypes.create_string_buffer(256)
    check(libc().statfs(os.fsencode(root), buffer), root)
    word = buffer.raw[: ctypes.sizeof(ctypes.c_long)]
    return int.from_bytes(word, sys.byteorder) & 0xFFFFFFFF == CGROUP2_SUPER_MAGIC


def cgroup_of(pid: int, *, unified: bool, root: str = ROOT, proc: str = "/proc") -> Cgroup:
    """The cgroup of process ``pid``. CgroupDeleted: it, or the process, is gone."""
    try:
        v1, v2 = parse_membership(_read(f"{proc}/{pid}/cgroup"))
        if unified:
            return V2Cgroup(_unified_directory(v2, root))
        if _is_exiting(_read(f"{proc}/{pid}/stat")):
            # the kernel shows the root of every v1 hierarchy for a process that has begun to exit
            raise CgroupDeleted(f"cgroup deleted: process {pid} has exited")
        mounts = parse_mountinfo(_read(f"{proc}/self/mountinfo"))
    except (FileNotFoundError, ProcessLookupError) as error:
        raise CgroupDeleted(f"cgroup deleted: process {pid} does not exist") from error
    except OSError as error:
        raise Error(f"cgroup of process {pid}: {error.strerror}") from error
    directories = {name: path for name, path in v1_directories(v1, mounts).items() if os.path.isdir(path)}
    if not directories:
        raise CgroupDeleted("cgroup deleted")
    return V1Cgroup(directories)


def to_json(cgroup: Cgroup) -> dict[str, object]:
    """For a note that outlives the init: its cgroup can not be asked for again once it is dead."""
    if isinstance(cgroup, V2Cgroup):
        return {"v2": cgroup.directory}
    return {"v1": dict(cgroup.directories)}


def from_json(value: Mapping[str, object]) -> Cgroup:
    match value:
        case {"v2": str(directory)}:
            return V2Cgroup(directory)
        case {"v1": dict(directories)}:
            return V1Cgroup(directories)
    raise BadFormat(f"{value!r} is no cgroup")


def parse_membership(text: str) -> tuple[dict[str, str], str | None]:
    """/proc/<pid>/cgroup: v1 controller (or ``name=…``) → path in its hierarchy, and the path in v2's, if there."""
    v1: dict[str, str] = {}
    v2 = None
    for line in lines(text):
        number, found, rest = line.partition(":")
        controllers, also_found, path = rest.partition(":")
        if not (found and also_found):
            raise BadFormat(f"{line!r} is not a line of /proc/<pid>/cgroup")
        if number == "0" and not controllers:
            v2 = path
        v1.update((name, path) for name in controllers.split(",") if name)
    return v1, v2


def parse_mountinfo(text: str) -> Iterator[HierarchyMount]:
    """The v1 hierarchies among the mounts of /proc/self/mountinfo, in its order."""
    for line in lines(text):
        mount, found, filesystem = line.partition(" - ")
        fields, types = mount.split(" "), filesystem.split(" ")
        if found and len(fields) >= 6 and len(types) >= 3 and types[0] == "cgroup":
            yield HierarchyMount(_unescaped(fields[3]), _unescaped(fields[4]), frozenset(types[-1].split(",")))


def v1_directories(membership: Mapping[str, str], mounts: Iterable[HierarchyMount]) -> dict[str, str]:
    """Each controller's directory: its path made relative to what is mounted of its hierarchy.

    Of several mounts the first one counts that has the path in it; a path that no mount shows is left out.
    """
    known = list(mounts)
    found = {}
    for controller, path in membership.items():
        for mount in known:
            if controller in mount.controllers and (inside := _relative(path, mount.root)) is not None:
                found[controller] = posixpath.join(mount.point, inside).rstrip("/")
                break
    return found


def _unified_directory(path: str | None, root: str) -> str:
    if path is None:
        raise Error("cgroup path not found")
    if path.endswith(" (deleted)"):
        raise CgroupDeleted("cgroup deleted")
    if not path.startswith("/") or posixpath.normpath(path) != path:  # "/../x": outside this cgroup namespace
        raise Error(f"invalid group path {path!r}")
    return (root + path).rstrip("/")


def _relative(path: str, root: str) -> str | None:
    """``path`` below ``root``, empty for itself; None: it is elsewhere."""
    if path == root or root == "/":
        return None if ".." in path.split("/") else path.removeprefix(root).lstrip("/")
    return path.removeprefix(f"{root}/") if path.startswith(f"{root}/") else None


def _is_exiting(stat: str) -> bool:
    fields = stat.rpartition(")")[2].split()
    return len(fields) > 6 and (fields[0] in "ZX" or bool(int(fields[6]) & PF_EXITING))


def _unescaped(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return file.read()
