"""The paths of a request opened: log files as sinks, and what the client has made.

Without O_APPEND, which splice(2) refuses: whoever writes looks for the end first (`pump`). An open may sleep in the
kernel, and so may only looking (a network file system that hangs): `open_elsewhere` has it done by a child with a
deadline, `open_log` and `open_existing` do it in place. A fifo is mostly found without either (`find_fifo`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from dunnage import errors
from dunnage.linux.cached import look, open_cached
from dunnage.stdio.fifo import NotOpened

Fork = Callable[[object, Mapping[str, int]], Awaitable[object]]
"""Runs `send_opened(argument, {"answer": fd})` in a child; returns when it was started."""

_OPENED, _NOT_OPENED = b"+", b"-"


def find_fifo(path: str) -> int | None:
    """Where a fifo is (O_PATH), if the kernel knows that without asking a file system; None: look elsewhere."""
    try:
        place = open_cached(path)
    except OSError:
        return None
    if look(place).is_fifo:
        return place
    os.close(place)
    return None


def open_existing(path: str) -> int:
    """What the client made: a file or a device to write to; of a fifo only where it is (O_PATH), as it has two ends.
    NotOpened if there is nothing."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if look(place).is_fifo:
                return os.dup(place)
            flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
            return _at_end(os.open(f"/proc/self/fd/{place}", flags))
        finally:
            os.close(place)
    except OSError as error:
        raise NotOpened(path, error) from error


def open_log(path: str) -> int:
    """The log file of a ``file://`` request, made if missing (0644), its directories too (0755)."""
    verb = "mkdir"
    try:
        Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        verb = "open"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK, 0o644)
    except OSError as error:
        number = errno.ENOTDIR if error.errno == errno.EEXIST else error.errno or 0  # of the directory
        raise errors.Error(f"{verb} {error.filename or path}: {os.strerror(number).lower()}") from error
    return _at_end(fd)


async def open_elsewhere(fork: Fork, path: str, *, make: bool, deadline_s: float) -> int:
    """As `open_log`, or without `make` as `open_existing`, in a child; DeadlineExceeded if it does not answer."""
    opening = f"opening {'log file ' if make else ''}{path}"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            await fork({"path": path, "make": make}, {"answer": theirs.fileno()})
        readable = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(ours, readable.set)
        try:
            await asyncio.wait_for(readable.wait(), deadline_s)
        except TimeoutError:
            raise errors.DeadlineExceeded(f"{opening} took more than {deadline_s:g} s") from None
        finally:
            loop.remove_reader(ours)
        text, fds, _, _ = socket.recv_fds(ours, 4096, 1, socket.MSG_CMSG_CLOEXEC)
    if not fds and text == _OPENED:
        raise errors.Error(f"{opening}: too many open files")
    if text.startswith(_NOT_OPENED):
        number = int(text.removeprefix(_NOT_OPENED))
        raise NotOpened(path, OSError(number, os.strerror(number)))
    if not fds:
        raise errors.Error(os.fsdecode(text) or f"{opening}: the child died")
    return fds[0]


def send_opened(argument: Any, fds: Mapping[str, int]) -> int:
    """What the child of `open_elsewhere` runs: the descriptor, or the error, goes to the socket `answer`."""
    with socket.socket(fileno=fds["answer"]) as answer:
        try:
            fd = open_log(argument["path"]) if argument["make"] else open_existing(argument["path"])
        except NotOpened as error:
            answer.send(b"%s%d" % (_NOT_OPENED, error.number))
            return 1
        except errors.Error as error:
            answer.send(os.fsencode(str(error)[:4000]))
            return 1
        socket.send_fds(answer, [_OPENED], [fd])
    return 0


def _at_end(fd: int) -> int:
    try:
        os.lseek(fd, 0, os.SEEK_END)
    except OSError:  # a device without a position
        pass
    return fd
