"""Loop devices that go away with their last user."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

LO_FLAGS_READ_ONLY = 1  # linux/loop.h
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_DIRECT_IO = 16
LOOP_CONFIGURE = 0x4C0A
LOOP_SET_FD = 0x4C00
LOOP_CLR_FD = 0x4C01
LOOP_SET_STATUS64 = 0x4C04
LOOP_SET_DIRECT_IO = 0x4C08
LOOP_CTL_GET_FREE = 0x4C82
CONFIG = struct.Struct("=2I 5Q4I64s64s32s2Q 64x")  # struct loop_config, with its loop_info64

INFO_AT = 8  # where in it that is

TRIES = 100  # somebody else may take the free device between the question and the claim


def attach(path: str, *, read_only: bool, direct_io: bool) -> tuple[int, str]:
    """A free device over a file: its fd (keep it until the device is mounted) and its path.

    File and flags are set by one call, from kernel 5.8 on: whoever dies leaves no device behind. Raises OSError.
    """
    mode = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
    flags = LO_FLAGS_AUTOCLEAR | (LO_FLAGS_READ_ONLY if read_only else 0) | (LO_FLAGS_DIRECT_IO if direct_io else 0)
    file = os.open(path, mode)
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            name = os.fsencode(path)[:63]
            config = CONFIG.pack(file, 0, 0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
            for _ in range(TRIES):
                device = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
                fd = os.open(device, mode)
                try:
                    _configure(fd, file, flags, config)
                except OSError as error:
                    os.close(fd)
                    if error.errno not in (errno.EBUSY, errno.EAGAIN):
                        raise
                else:
                    return fd, device
        finally:
            os.close(control)
    finally:
        os.close(file)
    raise OSError(errno.EBUSY, f"no loop device is free after {TRIES} tries")


def _configure(fd: int, file: int, flags: int, config: bytes) -> None:
    try:
        fcntl.ioctl(fd, LOOP_CONFIGURE, config)
        return
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    fcntl.ioctl(fd, LOOP_SET_FD, file)  # before 5.8; where it is the file that is wrong, this fails in the same way
    try:
        fcntl.ioctl(fd, LOOP_SET_STATUS64, config[INFO_AT:])
        if flags & LO_FLAGS_DIRECT_IO:
            fcntl.ioctl(fd, LOOP_SET_DIRECT_IO, 1)
    except OSError:
        fcntl.ioctl(fd, LOOP_CLR_FD)
        raise
