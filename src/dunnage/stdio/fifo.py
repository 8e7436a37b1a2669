"""The shim's ends of a client's fifos, so held that a client may come, go and come back unnoticed by the process.

On an output fifo the shim has the writer and an extra reader of its own: without one, a write while no client is there
fails with EPIPE. On a stdin fifo it has the reader and an extra writer: without one, a client that detaches would be
the end of the process's input.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import termios

from dunnage import errors
from dunnage.linux.cached import look

_COMMON = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class NotOpened(errors.Error):
    """What the client should have made is not there, or cannot be had."""

    def __init__(self, path: str, error: OSError) -> None:
        self.path = path
        self.number = error.errno or 0
        self.reason = os.strerror(self.number).lower()
        super().__init__(f"open {path}: {self.reason}")


class OutputFifo:
    """Writer and extra reader of a fifo that a client reads; where two streams go to one fifo, they share the reader.

    Only the writer is worth keeping elsewhere: the extra reader can be had again from it, and while it lives the unread
    bytes live. `client_came` is True once a client is known to have had the fifo open for reading. Until then the
    writer must not be closed: a client that opens it later would find neither the bytes nor the end.
    """

    def __init__(self, writer: int, reader: _Reader) -> None:
        self.writer = writer
        self._reader: _Reader | None = reader
        self._shared = reader
        reader.users += 1

    @classmethod
    def open(cls, place: int) -> OutputFifo:
        """`place` is where it is (O_PATH), and stays the caller's. Never waits for a client."""
        try:
            writer = _reopen(place, os.O_WRONLY)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            reader = _reopen(place, os.O_RDONLY)  # no client yet: be the reader, then a writer is let in
            try:
                return cls(_reopen(reader, os.O_WRONLY), _Reader(reader, client_came=False))
            except BaseException:
                os.close(reader)
                raise
        try:
            return cls.adopt(writer, client_came=True)
        except BaseException:
            os.close(writer)
            raise

    @classmethod
    def adopt(cls, writer: int, *, client_came: bool) -> OutputFifo:
        """From a writer that was kept. Where a client came before, none need be there now: it has gone again."""
        return cls(writer, _Reader(open_reader_of(writer), client_came=client_came))

    def share(self, writer: int) -> OutputFifo:
        """For another stream: `writer` is one of the same fifo."""
        return OutputFifo(writer, self._shared)

    @property
    def client_came(self) -> bool:
        return self._shared.client_came

    def is_at(self, place: int) -> bool:
        """Whether the descriptor `place` (O_PATH too) is of this fifo."""
        return look(place).identity == look(self.writer).identity

    def look_for_client(self, *, handed_bytes: int = 0) -> bool:
        """Whether a client has, or ever had, the fifo open; one that still sleeps in open(2) counts.

        Of `handed_bytes` put in, less lying there now means that somebody read. Else the kernel says only whether there
        is any reader, so the shim's own steps aside for the question.
        """
        shared = self._shared
        shared.client_came = shared.client_came or readable_bytes(self.writer) < handed_bytes
        if not shared.client_came and shared.fd is not None:
            os.close(shared.fd)
            shared.fd = None
            poll = select.poll()
            poll.register(self.writer, 0)
            shared.client_came = not poll.poll(0)  # POLLERR: no reader at all
            shared.fd = open_reader_of(self.writer)
        return shared.client_came

    def close_reader(self) -> None:
        """Idempotent; the writer is closed by whoever closes the descriptors of a stream."""
        if self._reader is None:
            return
        self._reader.users -= 1
        if not self._reader.users and self._reader.fd is not None:
            os.close(self._reader.fd)
            self._reader.fd = None
        self._reader = None


class _Reader:
    """The shim's own; `users` are the streams that need it."""

    def __init__(self, fd: int, *, client_came: bool) -> None:
        self.fd: int | None = fd
        self.client_came = client_came
        self.users = 0


def open_stdin(place: int) -> tuple[int, int]:
    """Reader and extra writer of the client's stdin fifo, which is there (O_PATH); neither waits for a client."""
    reader = _reopen(place, os.O_RDONLY)
    try:
        return reader, _reopen(reader, os.O_WRONLY)
    except BaseException:
        os.close(reader)
        raise


def open_reader_of(writer: int) -> int:
    """The other end of a pipe or fifo; not blocking."""
    return _reopen(writer, os.O_RDONLY)


def readable_bytes(fd: int) -> int:
    """FIONREAD: what lies in a pipe (asked of either end) or a terminal."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0])


def _reopen(fd: int, mode: int) -> int:
    """The other end of the very same fifo, even when its path is gone."""
    return os.open(f"/proc/self/fd/{fd}", mode | _COMMON)
