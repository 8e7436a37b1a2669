"""Paths walked by descriptors: as long as the file system has them, and, inside a rootfs, never out of it."""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

PIECE_CHARS = 1000  # of a path walked at once: below PATH_MAX (4096 bytes) whatever they are
MAX_LINKS = 40  # as the kernel's own walk


class Place(NamedTuple):
    """Where something can be mounted or unmounted: a directory (O_PATH) and a name in it; and both as a path without
    links, to be shown, or given to a program."""

    directory: int
    name: str
    path: str

    def open(self) -> int:
        """What is there now, on top of all that is mounted (O_PATH)."""
        return os.open(self.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.directory)

    def copy(self) -> Place:
        return self._replace(directory=os.dup(self.directory))

    def close(self) -> None:
        os.close(self.directory)


def canonical(path: str) -> str:
    """Its real path, found without asking what is mounted there: that may never answer."""
    parent, name = os.path.split(path.rstrip("/"))
    try:
        os.readlink(path)
    except OSError:
        return os.path.join(os.path.realpath(parent), name)
    return os.path.realpath(path)


def open_path(path: str) -> int:
    """An O_PATH descriptor of an absolute path of any length."""
    fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    rest = path.strip("/")
    while rest:
        cut = len(rest) if len(rest) <= PIECE_CHARS else rest.rfind("/", 0, PIECE_CHARS)
        piece, rest = (rest[:cut], rest[cut:].lstrip("/")) if cut > 0 else (rest, "")
        fd = _step_down(fd, piece, os.O_PATH | os.O_CLOEXEC)
    return fd


def _step_down(fd: int, path: str, flags: int) -> int:
    try:
        return os.open(path, flags, dir_fd=fd)
    finally:
        os.close(fd)


def open_place(rootfs: str, target: str) -> Place:
    """Where ``target`` lies inside ``rootfs``: links are followed, but none leads out of it.

    Raises OSError, whose filename is where it would lie.
    """
    parent, name = os.path.split(rootfs)
    stack = [Place(open_path(parent), name, rootfs)]  # from the root down; ".." takes the last one off, not the root
    todo = _words(target)
    links = 0
    try:
        while todo:
            word = todo[-1]
            if word == "..":
                todo.pop()
                if len(stack) > 1:
                    stack.pop().close()
                continue
            stack.append(Place(_open_directory(stack[-1]), word, f"{stack[-1].path}/{word}"))
            todo.pop()
            here = stack[-1].directory
            if not stat.S_ISLNK(os.stat(word, dir_fd=here, follow_symlinks=False).st_mode):
                continue
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            link = os.readlink(word, dir_fd=here)
            kept = 1 if link.startswith("/") else len(stack) - 1
            while len(stack) > kept:
                stack.pop().close()
            todo += _words(link)
        return stack.pop()
    except OSError as error:
        error.filename = "/".join([stack[-1].path, *reversed(todo)])
        raise
    finally:
        for place in stack:
            place.close()


def _open_directory(place: Place) -> int:
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
    return os.open(place.name, flags, dir_fd=place.directory)


def _words(path: str) -> list[str]:
    """The components of a path, the first one last."""
    return [word for word in reversed(path.split("/")) if word not in ("", ".")]
