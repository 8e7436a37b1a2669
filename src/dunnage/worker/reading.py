"""A file read where that may sleep in the kernel: in a child, which writes what it found into the descriptor it got."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any

from dunnage.errors import InvalidArgument

CONTENT = "content"
"""The child's descriptor."""

LIMIT_BYTES = 1 << 20
_READ, _REFUSED = b"+", b"-"


def send_content(argument: Any, fds: Mapping[str, int]) -> int:
    """The child: read the file called ``argument``, no longer than ``LIMIT_BYTES``, into ``fds["content"]``."""
    try:
        content = _READ + _read(argument)
    except OSError as error:
        content = _REFUSED + f"{(error.strerror or str(error)).lower()}".encode()
    while content:
        content = content[os.write(fds[CONTENT], content) :]
    return 0


def received(fd: int, path: str) -> bytes:
    """What the child read. Raises InvalidArgument naming the file and why it could not."""
    content = os.pread(fd, LIMIT_BYTES + 2, 0)
    if content[:1] != _READ:
        raise InvalidArgument(f"{path} cannot be read: {content[1:].decode(errors='replace')}")
    return content[1:]


def _read(path: str) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is not a regular file")
        content = file.read(LIMIT_BYTES + 1)
    if len(content) > LIMIT_BYTES:
        raise OSError(f"it is longer than {LIMIT_BYTES} bytes")
    return content
