"""The pipe pages this node's streams hold: small while idle, wide while busy, never more than their share.

The kernel counts the pages of all pipes of a user against ``fs.pipe-user-pages-soft`` (16,384 by default, for uid 0
like any other); past it, a process without CAP_SYS_RESOURCE and CAP_SYS_ADMIN gets pipes of two pages. A container
with all three streams costs six pipes: at the kernel's 16 pages each, 170 idle containers would use it all up. So a
stream's pipes are cut to `IDLE_BYTES` when made (four pages: 24 for a container), grow to `DEFAULT_BYTES` when they
fill up and to `BUSY_BYTES` when much goes through, and all growth stops where half the quota is used: the other half
belongs to pipes that containers make.
"""

from __future__ import annotations

import fcntl
from pathlib import Path

IDLE_BYTES = 16 * 1024
DEFAULT_BYTES = 64 * 1024
BUSY_BYTES = 256 * 1024
PAGE_BYTES = 4096  # the quota's unit; on larger pages the kernel rounds a pipe up, and `_size` says what it gave

_SOFT_LIMIT = Path("/proc/sys/fs/pipe-user-pages-soft")
_KERNEL_DEFAULT_PAGES = 16384  # fs/pipe.c: PIPE_DEF_BUFFERS * INR_OPEN_CUR


class PipeBudget:
    """One per worker, handed to every ProcessIO; a pipe is counted by the descriptor it was adopted with.

    `limit_bytes` is half the quota unless given: where a node has several workers, each is given its part.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        self.limit_bytes = _soft_limit_pages() * PAGE_BYTES // 2 if limit_bytes is None else limit_bytes
        self.used_bytes = 0
        self._sizes: dict[int, int] = {}

    def adopt(self, fd: int) -> None:
        """Count the pipe `fd`, and cut it to its idle size; what is no pipe, or full, is left alone."""
        size = _size(fd)
        if size is not None:
            self._note(fd, size)
            self.shrink(fd)

    def forget(self, fd: int) -> None:
        """To be called before `fd` is closed; idempotent."""
        self.used_bytes -= self._sizes.pop(fd, 0)

    def grow(self, fd: int, size_bytes: int) -> bool:
        """Grow the pipe `fd` to `size_bytes` if it is smaller and the budget allows it; say whether it grew."""
        held = self._sizes.get(fd)
        if held is None or held >= size_bytes or self.used_bytes - held + size_bytes > self.limit_bytes:
            return False
        return self._resize(fd, size_bytes)

    def shrink(self, fd: int) -> bool:
        """Cut the pipe `fd` to its idle size; False if it holds too much for that."""
        held = self._sizes.get(fd)
        return held is None or held <= IDLE_BYTES or self._resize(fd, IDLE_BYTES)

    def is_grown(self, fd: int) -> bool:
        return self._sizes.get(fd, 0) > IDLE_BYTES

    def size_bytes(self, fd: int) -> int:
        return self._sizes.get(fd, 0)

    def _resize(self, fd: int, size_bytes: int) -> bool:
        try:
            self._note(fd, fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size_bytes))
        except OSError:  # EBUSY: more bytes in it than that; EPERM: not root, and the quota is used up
            return False
        return True

    def _note(self, fd: int, size_bytes: int) -> None:
        self.used_bytes += size_bytes - self._sizes.get(fd, 0)
        self._sizes[fd] = size_bytes


def _size(fd: int) -> int | None:
    try:
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    except OSError:  # not a pipe
        return None


def _soft_limit_pages() -> int:
    try:
        # 0 means no limit; half of the default is plenty then
        return int(_SOFT_LIMIT.read_text()) or _KERNEL_DEFAULT_PAGES
    except (OSError, ValueError):
        return _KERNEL_DEFAULT_PAGES
