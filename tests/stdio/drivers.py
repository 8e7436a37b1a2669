"""Log drivers as children of the test: shell scripts that read descriptors 3 and 4 and say at 5 that they are ready."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

FILES = 'exec 5>&-; cat <&3 >"$0.out" & cat <&4 >"$0.err" & wait'
"""The body of one that writes what it reads to files beside itself, and ends at the end."""


def write_driver(path: Path, body: str = FILES) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


class LocalDriver:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None
        self._pidfd = os.pidfd_open(pid)
        self._over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._dead)

    def signal(self, number: int) -> None:
        if self.status is not None:
            raise ProcessLookupError(self.pid)
        signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self) -> int:
        await self._over.wait()
        assert self.status is not None
        return self.status

    def _dead(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.status = code if code >= 0 else 128 - code
        self._over.set()


class LocalDrivers:
    """``stdio.Drivers`` of one process; ``all`` were ever started, and how many of them lived then."""

    def __init__(self) -> None:
        self.all: list[LocalDriver] = []
        self.lived: list[int] = []

    async def spawn(self, argv: Sequence[str], *, fds: Mapping[int, int]) -> LocalDriver:
        self.lived.append(len(self.running()))
        lifted = {target: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for target, fd in fds.items()}
        actions = [(os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0) for number in (0, 1, 2)]
        try:
            pid = os.posix_spawn(  # noqa: ASYNC221 - starts it
                argv[0],
                list(argv),
                {"PATH": os.defpath},
                file_actions=[*actions, *((os.POSIX_SPAWN_DUP2, fd, target) for target, fd in lifted.items())],
            )
        finally:
            for fd in lifted.values():
                os.close(fd)
        self.all.append(LocalDriver(pid))
        return self.all[-1]

    def running(self) -> list[LocalDriver]:
        return [driver for driver in self.all if driver.status is None]
