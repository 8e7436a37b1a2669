"""Log files as sinks.

Without O_APPEND, which splice(2) refuses: whoever writes looks for the end first (`pump`). An open may sleep in the
kernel (a network file system that hangs): `open_elsewhere` has it done by a child with a deadline, `open_log` does it
in place.
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
from dunnage.stdio.fifo import NotOpened

Fork = Callable[[str, Mapping[str, int]], Awaitable[object]]
"""Runs `send_opened(path, {"answer": fd})` in a child; returns when it was started."""

_OPENED = b"+"


def open_existing(path: str) -> int:
    """A file, or a device, that the client made; NotOpened if it is not there."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        raise NotOpened(path, error) from error
    return _at_end(fd)


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


async def open_elsewhere(fork: Fork, path: str, *, deadline_s: float) -> int:
    """As `open_log`, in a child; DeadlineExceeded if it does not answer, and the child is left to its fate."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            await fork(path, {"answer": theirs.fileno()})
        readable = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(ours, readable.set)
        try:
            await asyncio.wait_for(readable.wait(), deadline_s)
        except TimeoutError:
            raise errors.DeadlineExceeded(f"opening log file {path} took more than {deadline_s:g} s") from None
        finally:
            loop.remove_reader(ours)
        text, fds, _, _ = socket.recv_fds(ours, 4096, 1, socket.MSG_CMSG_CLOEXEC)
    if not fds and text == _OPENED:
        raise errors.Error(f"opening log file {path}: too many open files")
    if not fds:
        raise errors.Error(os.fsdecode(text) or f"opening log file {path}: the child died")
    return fds[0]


def send_opened(argument: Any, fds: Mapping[str, int]) -> int:
    """What the child of `open_elsewhere` runs: the descriptor, or the error's text, goes to the socket `answer`."""
    with socket.socket(fileno=fds["answer"]) as answer:
        try:
            fd = open_log(argument)
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
