"""A filesystem that never answers: what touches it hangs, as on a dead server, until the test lets go."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Self

_libc = ctypes.CDLL(None, use_errno=True)
_MNT_FORCE, _MNT_DETACH = 1, 2


class HungFilesystem:
    """`with HungFilesystem(directory):` everything below ``directory`` hangs; at the end it fails instead."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._fd = -1

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True)
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0".encode()
        if _libc.mount(b"hung", os.fsencode(self.directory), b"fuse", 0, options) != 0:
            os.close(self._fd)
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()

    def let_go(self) -> None:
        """Idempotent: everything that hangs gets ENOTCONN."""
        if self._fd < 0:
            return
        os.close(self._fd)  # the last one: it aborts what is under way
        self._fd = -1
        _libc.umount2(os.fsencode(self.directory), _MNT_FORCE)
        _libc.umount2(os.fsencode(self.directory), _MNT_DETACH)
