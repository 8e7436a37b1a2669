"""The socket over which a runtime hands out the master end of a terminal.

Whoever opens a ``ConsoleSocket`` owns it and its directory, and both are gone after the ``async with``. The master that
``receive`` returns is the caller's. A later process may take over where this one ended (``adopt``), if it holds the
listener.
"""

from __future__ import annotations

import array
import asyncio
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from dunnage import errors

NAME_BYTES = 4096
"""At most as much of the terminal's name is read as go-console reads."""
PATH_BYTES = 107
"""sun_path, less its terminating zero (unix(7)): the runtime connects by the path it is given."""
RECEIVE_S = 30.0


class ConsoleSocket:
    """Listens at ``path``, in a directory ``pty*`` of its own.

    That is in XDG_RUNTIME_DIR, else TMPDIR, else /tmp, else /run: the first that is there and short enough.
    """

    def __init__(self, path: str, listener: socket.socket) -> None:
        self.path = path
        self.listener = listener

    @classmethod
    def open(cls, env: Mapping[str, str]) -> ConsoleSocket:
        """Raise OSError where no directory or no socket can be had; nothing is left then."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        directory = None
        try:
            directory = _make_directory(env)
            path = os.path.join(directory, "pty.sock")
            listener.bind(path)
            listener.listen(1)
        except OSError:
            listener.close()
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)
            raise
        return cls(path, listener)

    @classmethod
    def adopt(cls, path: str, fd: int) -> ConsoleSocket:
        """Take over a listener that another process opened; ``fd`` is owned from now on."""
        listener = socket.socket(fileno=fd)
        listener.setblocking(False)
        return cls(path, listener)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent: close the listener, remove the socket and its directory."""
        self.listener.close()
        shutil.rmtree(os.path.dirname(self.path), ignore_errors=True)

    async def receive(self, timeout_s: float = RECEIVE_S) -> int:
        """Accept one connection and return the master it carries; DeadlineExceeded when none came in time."""
        try:
            async with asyncio.timeout(timeout_s):
                connection, _ = await asyncio.get_running_loop().sock_accept(self.listener)
                with connection:
                    connection.setblocking(False)
                    await _wait_readable(connection)
                    return _receive_master(connection)
        except TimeoutError as reason:
            raise errors.DeadlineExceeded(f"no terminal came from the runtime within {timeout_s:g} s") from reason


def _make_directory(env: Mapping[str, str]) -> str:
    runtime_directory = env.get("XDG_RUNTIME_DIR")
    refused: OSError | None = None
    for parent in (runtime_directory, env.get("TMPDIR"), "/tmp", "/run"):
        # mkdtemp adds eight letters to the prefix
        if not parent or len(os.fsencode(os.path.join(parent, "pty________", "pty.sock"))) > PATH_BYTES:
            continue
        try:
            directory = tempfile.mkdtemp(prefix="pty", dir=parent)
        except OSError as error:
            refused = error  # a user's runtime directory, say, of whom nobody is logged in any more
            continue
        if parent == runtime_directory:
            # else what cleans XDG_RUNTIME_DIR up may take it away: the sticky bit says that it is in use
            os.chmod(directory, 0o755 | stat.S_ISVTX)
        return directory
    assert refused is not None, "/tmp is short enough"
    raise refused


async def _wait_readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connection, wake)
    try:
        await ready
    finally:
        loop.remove_reader(connection)


def _receive_master(connection: socket.socket) -> int:
    fd_size = array.array("i").itemsize
    _, ancillary, flags, _ = connection.recvmsg(NAME_BYTES, socket.CMSG_SPACE(fd_size), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fd_size])
    if not fds and flags & socket.MSG_CTRUNC:
        raise errors.Error("the terminal that the runtime sent cannot be had: too many open files")
    if len(fds) != 1:
        for fd in fds:
            os.close(fd)
        raise errors.Error(f"the runtime sent {len(fds)} file descriptors where one terminal is expected")
    master = fds[0]
    if not os.isatty(master):
        os.close(master)
        raise errors.Error("what the runtime sent is not a terminal")
    return master
