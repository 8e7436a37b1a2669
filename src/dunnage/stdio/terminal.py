"""The master of a process's terminal, as a source and a sink.

The shim keeps a slave of its own open until the process is over: a process may close its terminal and open it again (an
init that takes /dev/console when it needs it), and the moments between would read as a hang-up.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
import termios

from dunnage import errors

_TIOCGPTPEER = 0x5441  # asm-generic/ioctls.h: _IO('T', 0x41), Linux 4.13


class Terminal:
    """Borrows `master`; owns the slave."""

    def __init__(self, master: int, *, log: logging.Logger) -> None:
        if not os.isatty(master):
            raise errors.Error("the runtime sent a descriptor that is not a terminal")
        os.set_blocking(master, False)
        self.master = master
        self._slave: int | None = None
        try:
            self._slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            # An old kernel, or a devpts that is gone: the terminal is then over when the process leaves it.
            log.debug("no slave of the terminal: %s", error)

    def resize(self, width: int, height: int) -> None:
        """Columns and rows; a terminal that was hung up has no size to change."""
        try:
            fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        except OSError as error:
            if error.errno != errno.EIO:
                raise errors.Error(f"resizing the terminal: {os.strerror(error.errno or 0).lower()}") from error

    def let_end(self) -> None:
        """Give up the slave; idempotent."""
        if self._slave is not None:
            os.close(self._slave)
            self._slave = None
