"""The user's own terminal while a container has it: raw, followed in its size, and always put back."""

from __future__ import annotations

import asyncio
import os
import signal
import termios
import tty
from collections.abc import Callable
from types import TracebackType
from typing import Self


class RawTerminal:
    """A context manager that makes a terminal raw; on anything that is no terminal it does nothing."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[int | list[bytes | int]] | None = None

    def __enter__(self) -> Self:
        if os.isatty(self._fd):
            self._saved = termios.tcgetattr(self._fd)
            tty.setraw(self._fd, termios.TCSADRAIN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._saved is not None:
            try:
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)
            except (OSError, termios.error):
                pass  # the terminal was hung up: there is nothing left to put back
            self._saved = None


class SizeWatch:
    """Calls back with (columns, rows) at every change of a terminal's size, in the running loop, from enter to exit."""

    def __init__(self, fd: int, on_size: Callable[[int, int], None]) -> None:
        self._fd = fd
        self._on_size = on_size
        self._watching = False

    def __enter__(self) -> Self:
        if os.isatty(self._fd):
            asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, self._tell)
            self._watching = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watching:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGWINCH)
            self._watching = False

    def _tell(self) -> None:
        size = terminal_size(self._fd)
        if size is not None:
            self._on_size(*size)


def terminal_size(fd: int) -> tuple[int, int] | None:
    """(columns, rows) of the terminal behind `fd`; None where there is none, or where it does not know."""
    try:
        size = os.get_terminal_size(fd)
    except OSError:
        return None
    return (size.columns, size.lines) if size.columns and size.lines else None
