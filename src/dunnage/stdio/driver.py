"""A log driver: a program that reads what a process writes (``binary://``; shim v2, §5.6), from its start to its end.

It has the read ends of stdout and stderr at 3 and 4, and says at 5 that it is ready. The shim's write ends stay open
until the process is deleted: only then does the driver see the end. Its process is another's child and outlives the
worker (``Drivers``); where one of the same process is left, none is started before that one has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from dunnage import errors
from dunnage.stdio import plan
from dunnage.stdio.fifo import readable_bytes

STDOUT, STDERR, READY = 3, 4, 5
"""What the driver has at these descriptors; 0, 1 and 2 are /dev/null."""

_KILLED_S = 1.0  # how long the end of a driver that was killed is waited for


class Limits(NamedTuple):
    """``ready_s``: for being ready; containerd's own for the setting up of stdio (§5.9), which for this has none.
    ``stall_s``: one that saw the end, and has read nothing for so long, is told to stop; ``read_s``: so is one that
    still reads, after that. ``stop_s``: then it is killed, as containerd does."""

    ready_s: float = 30.0
    stall_s: float = 2.0
    read_s: float = 10.0
    stop_s: float = 12.0


LIMITS = Limits()


class DriverProcess(Protocol):
    @property
    def pid(self) -> int: ...

    def signal(self, number: int) -> None:
        """Raises ProcessLookupError when it has ended."""

    async def wait(self) -> int:
        """Its status: the exit code, or 128 + signal."""


class Drivers(Protocol):
    """Where the log driver of one process is run. Its environment is containerd's for drivers, and nothing else."""

    async def spawn(self, argv: Sequence[str], *, fds: Mapping[int, int]) -> DriverProcess:
        """``fds``: its number -> ours. Raises OSError; cancelled, it leaves nothing that runs."""

    def running(self) -> Sequence[DriverProcess]:
        """Those of this process that were started before, the last one last."""


class LogDriver:
    def __init__(self, process: DriverProcess, called: str, *, log: logging.Logger, limits: Limits = LIMITS) -> None:
        """``called``: in the log."""
        self._process = process
        self._called = f"{called} (process {process.pid})"
        self._log = log
        self._limits = limits
        self._ended = asyncio.get_running_loop().create_task(process.wait())
        self._ended.add_done_callback(self._note_end)
        self._stopping: asyncio.Task[None] | None = None
        self._is_expected_to_end = False

    @classmethod
    async def start(
        cls,
        driver: plan.Driver,
        drivers: Drivers,
        *,
        stdout: int,
        stderr: int,
        called: str,
        kind: str,
        log: logging.Logger,
        limits: Limits = LIMITS,
    ) -> LogDriver:
        """Returns when it is ready. ``stdout`` and ``stderr`` are the read ends, and stay the caller's. Raises Error,
        which may say that a process of this ``kind`` was not started; then nothing runs."""
        for left in drivers.running():
            await cls(left, called, log=log, limits=limits).wait_stopped()
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                async with asyncio.timeout(limits.ready_s):
                    fds = {STDOUT: stdout, STDERR: stderr, READY: writing}
                    process = await drivers.spawn([driver.program, *driver.arguments], fds=fds)
            finally:
                os.close(writing)
            started = cls(process, called, log=log, limits=limits)
            try:
                async with asyncio.timeout(limits.ready_s):
                    said = await _read_byte(reading)
                if driver.must_say_ready and not said:
                    raise errors.Error("logging binary did not call ready (it may have crashed or exited prematurely)")
            except BaseException:
                await started.kill()
                raise
        except TimeoutError as error:
            limit = f"within {limits.ready_s:g} s"
            raise errors.DeadlineExceeded(f"logging binary {driver.program} was not ready {limit}") from error
        except OSError as error:
            raise errors.Error(f"failed to start {kind} process: {error.strerror}") from error
        finally:
            os.close(reading)
        return started

    def expect_end(self) -> None:
        """The process is over, and the driver has seen the end: it may go."""
        self._is_expected_to_end = True

    def stop(self, pipes: Sequence[int] = ()) -> None:
        """Have it end, now that it has seen the end of what it reads; idempotent. ``pipes`` are read ends of what it
        reads, and belong to this from now on."""
        self._is_expected_to_end = True
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop(pipes))
        else:
            _close_all(pipes)

    async def wait_stopped(self) -> None:
        """Until it has ended, or was killed; it is stopped if it was not before."""
        self.stop()
        assert self._stopping is not None
        await asyncio.wait((self._stopping,))  # it goes on even if nobody waits any longer

    async def kill(self) -> None:
        self._is_expected_to_end = True
        self._signal(signal.SIGKILL)
        await asyncio.wait((self._ended,), timeout=_KILLED_S)

    async def _stop(self, pipes: Sequence[int]) -> None:
        try:
            if await self._ends_by_itself(pipes):
                return
        finally:
            _close_all(pipes)
        self._signal(signal.SIGTERM)
        if not await self._ends_within(self._limits.stop_s):
            self._log.warning("%s did not end within %g s of SIGTERM: it is killed", self._called, self._limits.stop_s)
            await self.kill()

    async def _ends_by_itself(self, pipes: Sequence[int]) -> bool:
        """False as soon as it has read nothing for a while: there is nothing, or it does not read."""
        deadline = asyncio.get_running_loop().time() + self._limits.read_s
        before, left = 0, sum(map(readable_bytes, pipes))
        while not await self._ends_within(self._limits.stall_s):
            before, left = left, sum(map(readable_bytes, pipes))
            if left >= before or asyncio.get_running_loop().time() >= deadline:
                return False
        return True

    async def _ends_within(self, limit_s: float) -> bool:
        return bool((await asyncio.wait((self._ended,), timeout=limit_s))[0])

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            self._process.signal(number)

    def _note_end(self, ended: asyncio.Task[int]) -> None:
        if ended.cancelled():
            return
        status = ended.result()
        if self._is_expected_to_end:
            by_us = status in (0, 128 + signal.SIGTERM, 128 + signal.SIGKILL)
            level = logging.DEBUG if by_us else logging.WARNING
            self._log.log(level, "%s ended with status %d", self._called, status)
        else:
            self._log.error("%s ended with status %d before the process it reads from", self._called, status)


async def _read_byte(fd: int) -> bytes:
    """b"" is the end."""
    os.set_blocking(fd, False)
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(fd)
    return os.read(fd, 1)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
