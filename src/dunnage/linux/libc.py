"""The C library, loaded once, and how a call of it fails: with OSError, as everything in ``os`` does."""

from __future__ import annotations

import ctypes
import functools
import os


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library of this process; its functions keep their errno for `check`."""
    return ctypes.CDLL(None, use_errno=True)


def check(result: int, subject: str | None = None) -> int:
    """Give ``result`` back unless it is -1: then raise the OSError that errno names."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), subject)
    return result
