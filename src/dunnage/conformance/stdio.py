"""The client's ends of a process's fifos."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from dunnage.conformance.check import Failed, limit

READ_BYTES: Final = 64 << 10


class Reader:
    """Everything that comes out of a fifo, until its last writer is gone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.got = bytearray()
        self.ended = False
        self._changed = asyncio.Event()
        os.mkfifo(path, 0o700)
        self._fd = -1
        self.open()

    def open(self) -> None:
        self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    async def wait_for(self, part: bytes) -> None:
        """Until `part` has come."""
        await self._wait(lambda: part in self.got, f"{part!r}")

    async def read_all(self) -> bytes:
        await self._wait(lambda: self.ended, "its end")
        return bytes(self.got)

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    async def _wait(self, holds: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(limit()):
                while not holds():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise Failed(f"{self.path.name} gives {bytes(self.got[-500:])!r}, and not {what}") from None

    def _read(self) -> None:
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        self.got += data
        if not data:
            self.ended = True
            self.close()
        self._changed.set()


class Fifos:
    """stdin, stdout and stderr of one process; for a terminal there is no stderr."""

    def __init__(self, directory: Path, name: str, *, stdin: bool, terminal: bool) -> None:
        self.terminal = terminal
        self.stdin_fd = -1
        self.stdin = ""
        if stdin:
            path = directory / f"{name}-stdin"
            os.mkfifo(path, 0o700)
            self.stdin = os.fspath(path)
            self.stdin_fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # a reader too, so that it can be opened first
        self.out = Reader(directory / f"{name}-stdout")
        self.err = None if terminal else Reader(directory / f"{name}-stderr")

    @property
    def fields(self) -> dict[str, Any]:
        """As a request of Create or Exec has them."""
        stderr = "" if self.err is None else os.fspath(self.err.path)
        return {
            "stdin": self.stdin,
            "stdout": os.fspath(self.out.path),
            "stderr": stderr,
            "terminal": self.terminal,
        }

    def write(self, data: bytes) -> None:
        os.write(self.stdin_fd, data)

    def close_stdin(self) -> None:
        if self.stdin_fd >= 0:
            os.close(self.stdin_fd)
            self.stdin_fd = -1

    def close(self) -> None:
        self.close_stdin()
        self.out.close()
        if self.err is not None:
            self.err.close()
