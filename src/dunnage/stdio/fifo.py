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
import stat
import struct
import termios

from dunnage import errors

_COMMON = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def is_fifo(path: str) -> bool:
    """Raise Error if there is nothing at `path`."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError as error:
        raise errors.Error(f"opening {path}: {os.strerror(error.errno or 0).lower()}") from error


class OutputFifo:
    """Writer and extra reader of a fifo that a client reads.

    Only the writer is worth keeping elsewhere: the extra reader can be had again from it, and while it lives the unread
    bytes live. `client_came` is True once a client is known to have had the fifo open for reading. Until then the
    writer must not be closed: a client that opens it later would find neither the bytes nor the end.
    """

    def __init__(self, writer: int, reader: int, *, client_came: bool) -> None:
        self.writer = writer
        self.client_came = client_came
        self._reader: int | None = reader

    @classmethod
    def open(cls, path: str) -> OutputFifo:
        """Never waits for a client."""
        try:
            writer = os.open(path, os.O_WRONLY | _COMMON)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise errors.Error(f"opening {path}: {os.strerror(error.errno or 0).lower()}") from error
            reader = os.open(path, os.O_RDONLY | _COMMON)  # no client yet: be the reader, then a writer is let in
            try:
                return cls(_reopen(reader, os.O_WRONLY), reader, client_came=False)
            except BaseException:
                os.close(reader)
                raise
        try:
            return cls(writer, _reopen(writer, os.O_RDONLY), client_came=True)
        except BaseException:
            os.close(writer)
            raise

    @classmethod
    def adopt(cls, writer: int) -> OutputFifo:
        """From a writer that was kept. Where no client is seen now, it came and went before."""
        return cls(writer, _reopen(writer, os.O_RDONLY), client_came=True)

    def look_for_client(self, *, handed_bytes: int = 0) -> bool:
        """Whether a client has, or ever had, the fifo open; one that still sleeps in open(2) counts.

        Of `handed_bytes` put in, less lying there now means that somebody read. Else the kernel says only whether there
        is any reader, so the shim's own steps aside for the question.
        """
        self.client_came = self.client_came or readable_bytes(self.writer) < handed_bytes
        if not self.client_came and self._reader is not None:
            os.close(self._reader)
            self._reader = None
            poll = select.poll()
            poll.register(self.writer, 0)
            self.client_came = not poll.poll(0)  # POLLERR: no reader at all
            self._reader = _reopen(self.writer, os.O_RDONLY)
        return self.client_came

    def close_reader(self) -> None:
        """Idempotent; the writer is closed by whoever closes the descriptors of a stream."""
        if self._reader is not None:
            os.close(self._reader)
            self._reader = None


def open_stdin(path: str) -> tuple[int, int]:
    """Reader and extra writer of the client's stdin fifo; neither waits for a client."""
    if not is_fifo(path):
        raise errors.InvalidArgument(f"stdin {path} is not a fifo")
    reader = os.open(path, os.O_RDONLY | _COMMON)
    try:
        return reader, _reopen(reader, os.O_WRONLY)
    except BaseException:
        os.close(reader)
        raise


def readable_bytes(fd: int) -> int:
    """FIONREAD: what lies in a pipe (asked of either end) or a terminal."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0])


def _reopen(fd: int, mode: int) -> int:
    """The other end of the very same fifo, even when its path is gone."""
    return os.open(f"/proc/self/fd/{fd}", mode | _COMMON)
