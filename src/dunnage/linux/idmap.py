"""Mounts that show other owners than are stored: a user namespace says which, and a copy of the mount carries it.

The system calls have no names in the C library of every distribution; their numbers are the same on all our machines.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import Structure, byref, c_int, c_long, c_size_t, c_uint, c_uint64
from typing import Any

from dunnage.linux.libc import check, libc
from dunnage.linux.mount_plan import IdMap, IdRange

SYS_OPEN_TREE = 428  # asm-generic/unistd.h
SYS_MOVE_MOUNT = 429
SYS_MOUNT_SETATTR = 442
CLONE_NEWUSER = 0x10000000  # linux/sched.h
AT_EMPTY_PATH = 0x1000  # linux/fcntl.h
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1  # linux/mount.h
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_IDMAP = 0x100000
MS_PRIVATE = 1 << 18


class _MountAttributes(Structure):
    """struct mount_attr of linux/mount.h."""

    _fields_ = (("set", c_uint64), ("clear", c_uint64), ("propagation", c_uint64), ("user_namespace", c_uint64))


@contextmanager
def user_namespace(id_map: IdMap) -> Iterator[int]:
    """A user namespace with these ids, as an fd. Nothing runs in it: the process that made it is gone already."""
    fd = _open_namespace(id_map)
    try:
        yield fd
    finally:
        os.close(fd)


def _open_namespace(id_map: IdMap) -> int:
    told, tell = os.pipe()
    hold, holding = os.pipe()
    pid = os.fork()
    if pid == 0:
        _make_namespace(tell, hold, close=holding)
    try:
        os.close(tell)
        os.close(hold)
        if number := int(os.read(told, 16) or b"5"):  # EIO: it died without a word
            raise OSError(number, f"a user namespace cannot be made: {os.strerror(number).lower()}")
        _write_map(f"/proc/{pid}/uid_map", id_map.uids)
        _write_map(f"/proc/{pid}/gid_map", id_map.gids)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(told)
        os.close(holding)


def _make_namespace(tell: int, hold: int, *, close: int) -> None:
    """In a child: make it, say how that went (errno, or 0), and stay until it is held, or nobody is left to hold it."""
    try:
        os.close(close)
        try:
            check(libc().unshare(c_int(CLONE_NEWUSER)))
            os.write(tell, b"0")
        except OSError as error:
            os.write(tell, str(error.errno).encode())
        os.read(hold, 1)
    finally:
        os._exit(0)


def _write_map(path: str, ranges: Sequence[IdRange]) -> None:
    text = "".join(f"{inside} {outside} {size}\n" for inside, outside, size in ranges)
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())  # in one piece: the kernel takes no second
    finally:
        os.close(fd)


def copy_mount(fd: int, *, recursive: bool) -> int:
    """A copy of the mount, from the directory or file ``fd`` on down, that is nowhere yet and goes with its fd."""
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    return _syscall(SYS_OPEN_TREE, c_int(fd), b"", c_uint(flags))


def map_ids(tree: int, user_namespace: int, *, read_only: bool) -> None:
    """Have the copy, and all in it, show the ids of the namespace. EINVAL: one of its file systems can not."""
    attributes = _MountAttributes(
        MOUNT_ATTR_IDMAP | (MOUNT_ATTR_RDONLY if read_only else 0), 0, MS_PRIVATE, user_namespace
    )
    flags = c_uint(AT_EMPTY_PATH | AT_RECURSIVE)
    _syscall(SYS_MOUNT_SETATTR, c_int(tree), b"", flags, byref(attributes), c_size_t(32))


def attach(tree: int, target: int) -> None:
    """Mount the copy on what ``target`` (O_PATH) is."""
    flags = c_uint(MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)
    _syscall(SYS_MOVE_MOUNT, c_int(tree), b"", c_int(target), b"", flags)


def _syscall(number: int, *arguments: Any) -> int:
    return check(libc().syscall(c_long(number), *arguments))
