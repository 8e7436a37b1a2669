"""Loop devices that go away with their last user."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

LO_FLAGS_READ_ONLY = 1  # linux/loop.h
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_DIRECT_IO = 16
LOOP_SET_FD = 0x4C00
LOOP_CLR_FD = 0x4C01
LOOP_SET_STATUS64 = 0x4C04
LOOP_SET_DIRECT_IO = 0x4C08
LOOP_CTL_GET_FREE = 0x4C82
INFO = struct.Struct("=5Q4I64s64s32s2Q")  # struct loop_info64

TRIES = 100  # somebody else may take the free device between the question and the claim


def attach(path: str, flags: int) -> tuple[int, str]:
    """A free device over a file: its fd (keep it until the device is mounted) and its path."""
    read_only = flags & LO_FLAGS_READ_ONLY
    file = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            for _ in range(TRIES):
                device = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
                fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
                if _claim(fd, file, path, flags):
                    return fd, device
                os.close(fd)
        finally:
            os.close(control)
    finally:
        os.close(file)
    raise OSError(errno.EBUSY, f"no loop device is free after {TRIES} tries")


def _claim(fd: int, file: int, path: str, flags: int) -> bool:
    try:
        fcntl.ioctl(fd, LOOP_SET_FD, file)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        os.close(fd)
        raise
    name = os.fsencode(path)[:63]
    try:
        info = INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags & ~LO_FLAGS_DIRECT_IO, name, b"", b"", 0, 0)
        fcntl.ioctl(fd, LOOP_SET_STATUS64, info)
        if flags & LO_FLAGS_DIRECT_IO:
            fcntl.ioctl(fd, LOOP_SET_DIRECT_IO, 1)
    except OSError as error:
        fcntl.ioctl(fd, LOOP_CLR_FD)
        if error.errno == errno.EAGAIN:  # the device's pages were in use: another one will do
            return False
        os.close(fd)
        raise
    return True
