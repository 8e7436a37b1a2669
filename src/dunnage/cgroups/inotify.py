"""One inotify instance for any number of files: a user has 128 instances in all, and watches by the ten thousand."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

from dunnage.linux.libc import check, libc

IN_MODIFY = 0x2  # linux/inotify.h
IN_IGNORED = 0x8000
IN_Q_OVERFLOW = 0x4000
_EVENT = struct.Struct("iIII")  # struct inotify_event, without its name


class Inotify:
    """Owns its fd, which is readable when `changed` has something to say."""

    def __init__(self) -> None:
        self.fd = check(libc().inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))

    def add(self, path: str) -> int:
        """Watch a file for changes; the number of its watch, which is the same for the same file."""
        return check(libc().inotify_add_watch(self.fd, os.fsencode(path), IN_MODIFY), path)

    def remove(self, watch: int) -> None:
        """The kernel may have removed it by itself, with the file: then there is nothing to do."""
        libc().inotify_rm_watch(self.fd, watch)

    def changed(self) -> set[int] | None:
        """The watches whose files have changed; None: too many to be told, it may be any."""
        watches = set()
        overflow = False
        for watch, mask in self._events():
            overflow |= bool(mask & IN_Q_OVERFLOW)
            if not mask & IN_IGNORED:
                watches.add(watch)
        return None if overflow else watches

    def close(self) -> None:
        os.close(self.fd)

    def _events(self) -> Iterator[tuple[int, int]]:
        try:
            text = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(text):
            watch, mask, _, name_bytes = _EVENT.unpack_from(text, offset)
            offset += _EVENT.size + name_bytes
            yield watch, mask
