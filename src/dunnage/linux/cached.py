"""A look at a path without a question to its file system, which may never answer: what the kernel remembers of it."""

from __future__ import annotations

import errno
import os
import stat
import struct
from ctypes import c_int, c_long, c_size_t, c_uint, create_string_buffer
from typing import NamedTuple

from dunnage.linux.libc import check, libc

SYS_OPENAT2 = 437  # asm-generic/unistd.h: Linux 5.6
AT_FDCWD = -100  # linux/fcntl.h
AT_EMPTY_PATH = 0x1000
AT_STATX_DONT_SYNC = 0x4000
RESOLVE_CACHED = 0x20  # linux/openat2.h: Linux 5.12
STATX_TYPE = 0x1  # linux/stat.h
STATX_INO = 0x100
_STATX_BYTES = 256
_MODE_AT, _INODE_AT, _DEVICE_AT = 28, 32, 136

_HOW = struct.Struct("=3Q")  # struct open_how: flags, mode, resolve
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EPERM)  # an older kernel, or one that is told to refuse it


class Seen(NamedTuple):
    is_fifo: bool
    identity: tuple[int, int, int]


def open_cached(path: str) -> int:
    """An O_PATH descriptor of what is there. Raises BlockingIOError where the kernel does not know it by itself."""
    how = _HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, RESOLVE_CACHED)
    try:
        return check(
            libc().syscall(c_long(SYS_OPENAT2), c_int(AT_FDCWD), os.fsencode(path), how, c_size_t(len(how))), path
        )
    except OSError as error:
        if error.errno in _CANNOT:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), path) from error
        raise


def look(fd: int) -> Seen:
    """What a descriptor (O_PATH too) is of, as the kernel remembers it."""
    found = create_string_buffer(_STATX_BYTES)
    flags = c_int(AT_EMPTY_PATH | AT_STATX_DONT_SYNC)
    check(libc().statx(c_int(fd), b"", flags, c_uint(STATX_TYPE | STATX_INO), found))
    (mode,) = struct.unpack_from("=H", found, _MODE_AT)
    (inode,) = struct.unpack_from("=Q", found, _INODE_AT)
    return Seen(stat.S_ISFIFO(mode), (*struct.unpack_from("=II", found, _DEVICE_AT), inode))
