"""One process's three streams: opened, pumped, drained, closed; rebuilt after the worker's death from what was kept.

Every descriptor that must outlive the worker is in the keeper's store under ``<name>:<end>`` from the moment it is open
until it is closed: the ends of the shim only, never the container's, else nothing would ever end. The ends are:

    stdout.pipe, stderr.pipe    what the process writes             stdin.fifo     the client's stdin, to read
    stdout.sink, stderr.sink    where it goes: a fifo or a file     stdin.writer   the extra writer, until CloseIO
    stdout.driver, stderr.driver    what a log driver reads         stdin.pipe     what the process reads
    stdout.awaited, stderr.awaited  their sinks again, while no     terminal       the pty master
                                    client has come

They are stored sink first and released source first, so that whatever is missing after a death says how far things
were.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Protocol

from dunnage import errors
from dunnage.linux.cached import look
from dunnage.stdio import fifo, file
from dunnage.stdio.budget import DEFAULT_BYTES, PipeBudget
from dunnage.stdio.driver import LIMITS, Drivers, Limits, LogDriver
from dunnage.stdio.fifo import OutputFifo
from dunnage.stdio.plan import Driver, Kind, Plan
from dunnage.stdio.pump import Pump
from dunnage.stdio.terminal import Terminal

OUTPUTS = ("stdout", "stderr")
CLIENT_ENDS = ("stdout.sink", "stderr.sink", "stdin.fifo", "stdin.writer")
"""The ends at the client's fifos. Where a start is tried again they stay in the store until it has stored its own: a
client that saw them all closed would take that for the end."""
_LOOK_AGAIN_S = (0.01, 0.5)  # for a client that has not come yet when everything is over: first, and at most


class Keep(Protocol):
    """The keeper's store: `store` takes a copy of `fd`, both are ordered, neither answers."""

    def store(self, name: str, fd: int) -> None: ...
    def release(self, name: str) -> None: ...


class ProcessIO:
    def __init__(self, plan: Plan, *, keep: Keep, name: str, log: logging.Logger, budget: PipeBudget | None) -> None:
        """Use `open` or `recover`. Without a `budget` shared by all streams of a node the quota is not kept to."""
        self.plan = plan
        self.runtime_fds: tuple[int | None, int | None, int | None] = (None, None, None)
        self._keep = keep
        self._name = name
        self._log = log
        self._budget = budget if budget is not None else PipeBudget()
        self._fds: dict[str, int] = {}
        self._fifos: dict[str, OutputFifo] = {}
        self._pumps: dict[str, Pump] = {}
        self._looking: dict[str, asyncio.TimerHandle] = {}
        self._terminal: Terminal | None = None
        self._driver: LogDriver | None = None
        self._drivers_ends: list[int] = []  # the read ends, until the process has its own
        self._unread: list[int] = []  # read ends again, to see what the driver has not read
        self._drained = asyncio.Event()
        self._exited = False
        self._started = False
        self._closed = False

    @classmethod
    async def open(
        cls,
        plan: Plan,
        *,
        keep: Keep,
        name: str,
        log: logging.Logger,
        budget: PipeBudget | None = None,
        open_elsewhere: Callable[[str, bool], Awaitable[int]] | None = None,
        drivers: Drivers | None = None,
        driver_limits: Limits = LIMITS,
    ) -> ProcessIO:
        """Open everything that the plan names, make the process's pipes and start its log driver; Error says what could
        not be opened or started.

        `open_elsewhere` opens a path where it may sleep (`file.open_elsewhere`: path and `make`); without one it is
        opened here. A plan with a driver needs `drivers`.
        """
        io = cls(plan, keep=keep, name=name, log=log, budget=budget)
        try:
            await io._open_sinks(open_elsewhere)
            await io._open_stdin(open_elsewhere)
            if plan.kind in (Kind.FIFO, Kind.FILE):
                io._make_pipes()
            if plan.driver is not None:
                if drivers is None:
                    raise errors.Unimplemented("no logging binary can be run here")
                await io._start_driver(plan.driver, drivers, driver_limits)
        except OSError as error:
            io.close()
            raise errors.Error(f"opening stdio: {os.strerror(error.errno or 0).lower()}") from error
        except BaseException:
            io.close()
            raise
        return io

    @classmethod
    def recover(
        cls,
        plan: Plan,
        fds: Mapping[str, int],
        *,
        keep: Keep,
        name: str,
        log: logging.Logger,
        started: bool,
        budget: PipeBudget | None = None,
        drivers: Drivers | None = None,
        driver_limits: Limits = LIMITS,
    ) -> ProcessIO:
        """Go on with what a dead worker kept: `fds` by end (the part after ``<name>:``), which this object now owns.

        With `started` (the runtime had made the process) the pumps run at once. Without, the caller goes on as after
        `open`, with `start` if the runtime was called; else it closes this and opens anew, for the ends that a runtime
        would be given died with the worker. A sink that is missing is opened by its path; a source that is missing has
        ended.
        """
        io = cls(plan, keep=keep, name=name, log=log, budget=budget)
        awaited = {end for end in fds if end.endswith(".awaited")}
        for end, fd in fds.items():
            if end in awaited:
                os.close(fd)  # the store's is for the next worker
            else:
                io._take(end, fd)
        try:
            io._reattach(awaited)
            if plan.driver is not None and drivers is not None:
                io._take_driver(plan.driver, drivers, driver_limits)
            if started:
                io._exited = plan.kind is Kind.TERMINAL and "terminal" not in io._fds
                io.start()
        except BaseException:
            io.close()
            raise
        return io

    # around the runtime's call

    def runtime_started(self) -> None:
        """Close the container's ends, which the runtime has inherited; idempotent."""
        fds, self.runtime_fds = self.runtime_fds, (None, None, None)
        for fd in fds:
            if fd is not None:
                os.close(fd)

    def attach_terminal(self, master: int) -> None:
        """Take the terminal that the runtime sent; `master` is this object's from here on, also when it raises."""
        self._own("terminal", master)
        self._terminal = Terminal(master, log=self._log)

    def start(self) -> None:
        """Let the bytes flow; idempotent."""
        if self._started or self._closed:
            return
        if self.plan.kind is Kind.TERMINAL and "terminal" not in self._fds and not self._exited:
            raise errors.Internal(f"the terminal of {self._name} was not attached")
        self._started = True
        self._close_drivers_ends()
        for end, output in self._fifos.items():
            if output.look_for_client():
                self._keep.release(self._awaited(end))
        if self.plan.kind is not Kind.DRIVER:  # the process itself writes what its driver reads
            for stream in OUTPUTS:
                self._start_output(stream)
        self._start_stdin()
        self._note_drained()

    # while it runs

    async def close_stdin(self) -> None:
        """Give up the extra writer: the process's input ends when the clients have closed theirs too; idempotent."""
        self._drop("stdin.writer")

    def resize(self, width: int, height: int) -> None:
        """Columns and rows. FailedPrecondition where there is no terminal (any more)."""
        if self._terminal is None:
            raise errors.FailedPrecondition("process has no terminal")
        self._terminal.resize(width, height)

    def exited(self) -> None:
        """The process is over: its terminal ends with the last byte in it. Pipes end by themselves. Idempotent."""
        self._exited = True
        if self._terminal is not None:
            self._terminal.let_end()
            stdin = self._pumps.get("stdin")
            if stdin is not None:
                stdin.discard()  # to wait for room in a terminal that is hung up would never sleep
        pump = self._pumps.get("stdout")
        if pump is not None:
            pump.let_end()

    async def wait_drained(self, timeout_s: float) -> bool:
        """Whether all that the process wrote was handed over within `timeout_s`. To be asked after its exit.

        A fifo that no client has opened yet counts as handed over when one has, or when this object is closed. A log
        driver then sees the end, and has a time of its own to write the rest and to end.
        """
        self.exited()
        if not self._started:
            return True
        try:
            await asyncio.wait_for(self._drained.wait(), timeout_s)
            is_drained = True
        except TimeoutError:
            is_drained = False
        if self._driver is not None:
            self._stop_driver(self._driver)
            await self._driver.wait_stopped()
        return is_drained

    def describe(self) -> list[str]:
        """What is open, and how far each stream is, a line for each."""
        ends = " ".join(sorted(self._fds)) or "nothing"
        over = [f"{stream}: over, but no client has come for it" for stream in self._looking]
        return [f"{self.plan.kind.name.lower()} io, open: {ends}", *map(str, self._pumps.values()), *over]

    def close(self) -> None:
        """Close everything and release every name, whatever is still under way; idempotent. A log driver is told to
        stop, and goes on for as long as it may (`wait_driver_stopped`)."""
        self._closed = True
        for pump in self._pumps.values():
            pump.stop()
        for timer in self._looking.values():
            timer.cancel()
        self._pumps.clear()
        self._looking.clear()
        self.runtime_started()
        self._close_drivers_ends()
        self._close_terminal()
        if self._driver is not None:
            self._stop_driver(self._driver)
        for end in sorted(self._fds, key=_release_order):
            self._drop(end)
        self._drained.set()

    async def wait_driver_stopped(self) -> None:
        """After `close`: until the log driver, if there is one, has ended or was killed."""
        if self._driver is not None:
            await self._driver.wait_stopped()

    # descriptors

    def _take(self, end: str, fd: int) -> None:
        self._fds[end] = fd
        if end != "stdin.writer":  # the same fifo as stdin.fifo
            self._budget.adopt(fd)
        if end.endswith(".driver"):
            self._budget.grow(fd, DEFAULT_BYTES)  # no pump will, where the process itself writes

    def _own(self, end: str, fd: int) -> None:
        self._take(end, fd)
        self._keep.store(f"{self._name}:{end}", fd)

    def _drop(self, end: str) -> None:
        fd = self._fds.pop(end, None)
        if fd is None:
            return
        output = self._fifos.pop(end, None)
        if output is not None:
            output.close_reader()
            self._keep.release(self._awaited(end))
        self._budget.forget(fd)
        self._keep.release(f"{self._name}:{end}")
        os.close(fd)

    async def _open_stdin(self, open_elsewhere: Callable[[str, bool], Awaitable[int]] | None) -> None:
        path = self.plan.stdin
        if not path:
            return
        place = await _open_path(path, False, open_elsewhere)
        try:
            if not look(place).is_fifo:
                raise errors.InvalidArgument(f"stdin {path} is not a fifo")
            self._fds["stdin.fifo"], self._fds["stdin.writer"] = fifo.open_stdin(place)
        finally:
            os.close(place)
        for end in ("stdin.writer", "stdin.fifo"):
            self._own(end, self._fds[end])

    async def _open_sinks(self, open_elsewhere: Callable[[str, bool], Awaitable[int]] | None) -> None:
        opened: dict[str, str] = {}
        for stream in OUTPUTS:
            path = self._path(stream)
            if not path:
                continue
            if path in opened:  # one description for one file
                self._own(f"{stream}.sink", os.dup(self._fds[f"{opened[path]}.sink"]))
            else:
                self._own_sink(f"{stream}.sink", await _open_path(path, self.plan.log_file, open_elsewhere))
            if f"{stream}.sink" not in self._fifos:
                opened[path] = stream

    def _own_sink(self, end: str, opened: int) -> None:
        """`opened` is a file, or where a fifo is (`file.open_existing`)."""
        if self.plan.log_file or not look(opened).is_fifo:
            self._own(end, opened)
            return
        try:
            beside = next((other for other in self._fifos.values() if other.is_at(opened)), None)
            self._own_fifo(end, OutputFifo.open(opened) if beside is None else beside.share(os.dup(beside.writer)))
        finally:
            os.close(opened)

    def _own_fifo(self, end: str, output: OutputFifo) -> None:
        self._fifos[end] = output
        self._own(end, output.writer)
        if not output.client_came:
            self._keep.store(self._awaited(end), output.writer)

    def _awaited(self, end: str) -> str:
        return f"{self._name}:{end.removesuffix('.sink')}.awaited"

    def _make_pipes(self) -> None:
        runtime: list[int | None] = [None, None, None]
        for number, stream in enumerate(("stdin", *OUTPUTS)):
            if not self._path(stream):
                continue
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            ours, theirs = (write_end, read_end) if stream == "stdin" else (read_end, write_end)
            runtime[number] = theirs
            self.runtime_fds = (runtime[0], runtime[1], runtime[2])
            os.set_blocking(ours, False)
            self._own(f"{stream}.pipe", ours)
            os.fchown(theirs, self.plan.io_uid, self.plan.io_gid)

    def _called(self, stream: str) -> str:
        return f"{stream} of {self._name.removeprefix('io:')}"

    def _path(self, stream: str) -> str:
        path: str = getattr(self.plan, stream)
        return path

    # the streams

    def _start_output(self, stream: str) -> None:
        source = self._fds.get(self._source(stream))
        if source is None:
            self._finish_sink(stream)
            return
        sink = self._fds.get(self._sink(stream))
        if sink is None or (self.plan.kind is Kind.TERMINAL and stream == "stderr"):
            return
        self._pumps[stream] = pump = Pump(
            self._called(stream),
            source,
            sink,
            log=self._log,
            budget=self._budget,
            on_end=lambda: self._output_ended(stream),
        )
        if self._exited:
            pump.let_end()
        pump.start()

    def _source(self, stream: str) -> str:
        return "terminal" if self.plan.kind is Kind.TERMINAL else f"{stream}.pipe"

    def _sink(self, stream: str) -> str:
        return f"{stream}.sink" if self.plan.driver is None else f"{stream}.driver"

    def _output_ended(self, stream: str) -> None:
        if self.plan.kind is Kind.TERMINAL:
            stdin = self._pumps.get("stdin")
            if stdin is not None:
                stdin.discard()
            self._close_terminal()
        self._drop(self._source(stream))
        self._finish_sink(stream)

    def _finish_sink(self, stream: str, look_again_s: float = _LOOK_AGAIN_S[0]) -> None:
        """The stream is over: tell the reader so, once there is or was one."""
        self._looking.pop(stream, None)
        output = self._fifos.get(f"{stream}.sink")
        pump = self._pumps.get(stream)
        handed_bytes = 0 if pump is None else pump.moved_bytes
        if output is not None and not output.look_for_client(handed_bytes=handed_bytes):
            # The kernel has no event for a reader that comes; this ends with the client, or with `close`.
            again_s = min(look_again_s * 2, _LOOK_AGAIN_S[1])
            self._looking[stream] = asyncio.get_running_loop().call_later(
                look_again_s, self._finish_sink, stream, again_s
            )
            return
        if self.plan.driver is not None:
            self._end_drivers_input()
        self._drop(f"{stream}.sink")
        self._pumps.pop(stream, None)
        self._note_drained()

    def _note_drained(self) -> None:
        is_pumped = self.plan.kind is not Kind.DRIVER
        if self._started and not (is_pumped and any(self._sink(stream) in self._fds for stream in OUTPUTS)):
            self._drained.set()

    def _start_stdin(self) -> None:
        source = self._fds.get("stdin.fifo")
        if source is None:
            return
        sink = self._fds.get("terminal" if self.plan.kind is Kind.TERMINAL else "stdin.pipe")
        if sink is None:
            self._end_stdin()
            return
        self._pumps["stdin"] = pump = Pump(
            self._called("stdin"), source, sink, log=self._log, budget=self._budget, on_end=self._end_stdin
        )
        pump.start()

    def _end_stdin(self) -> None:
        """No writer is left: the process reads its end, a terminal is hung up unless it is over anyhow."""
        self._drop("stdin.pipe")
        self._drop("stdin.fifo")
        self._drop("stdin.writer")
        self._pumps.pop("stdin", None)
        if "terminal" not in self._fds or self._exited:
            return
        output = self._pumps.get("stdout")
        if output is not None:
            output.turn()  # what it has written so far is still its client's
        if "terminal" in self._fds:
            if output is not None:
                output.stop()
            self._output_ended("stdout")

    def _close_terminal(self) -> None:
        if self._terminal is not None:
            self._terminal.let_end()
            self._terminal = None

    # a log driver

    async def _start_driver(self, driver: Driver, drivers: Drivers, limits: Limits) -> None:
        runtime: list[int | None] = [None, None, None]
        for number, stream in enumerate(OUTPUTS, start=1):
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            self._drivers_ends.append(read_end)
            self._own(f"{stream}.driver", write_end)
            if self.plan.kind is Kind.TERMINAL:
                os.set_blocking(write_end, False)
                continue
            os.fchown(write_end, self.plan.io_uid, self.plan.io_gid)
            runtime[number] = os.dup(write_end)
            self.runtime_fds = (runtime[0], runtime[1], runtime[2])
        stdout, stderr = self._drivers_ends
        kind = "logging binary" if self.plan.terminal else "binary"  # containerd's words
        self._driver = await LogDriver.start(
            driver,
            drivers,
            stdout=stdout,
            stderr=stderr,
            called=self._driver_called(driver),
            kind=kind,
            log=self._log,
            limits=limits,
        )

    def _take_driver(self, driver: Driver, drivers: Drivers, limits: Limits) -> None:
        for process in drivers.running():
            if self._driver is not None:
                self._driver.stop()  # the last one is it
            self._driver = LogDriver(process, self._driver_called(driver), log=self._log, limits=limits)

    def _driver_called(self, driver: Driver) -> str:
        return f"logging binary {driver.program} of {self._name.removeprefix('io:')}"

    def _close_drivers_ends(self) -> None:
        """The runtime has been called: from now on a process whose driver is gone is told so (EPIPE)."""
        while self._drivers_ends:
            os.close(self._drivers_ends.pop())

    def _end_drivers_input(self) -> None:
        for stream in OUTPUTS:
            writer = self._fds.get(f"{stream}.driver")
            if writer is None:
                continue
            try:
                if self._driver is not None:
                    self._unread.append(fifo.open_reader_of(writer))
            except OSError as error:
                self._log.warning("what the driver of %s has not read is not seen: %s", self._called(stream), error)
            pump = self._pumps.get(stream)
            if pump is not None:
                pump.discard()  # a terminal that somebody holds open: its descriptor's number may be another's next
            self._drop(f"{stream}.driver")
        if self._driver is not None:
            self._driver.expect_end()

    def _stop_driver(self, driver: LogDriver) -> None:
        self._end_drivers_input()
        unread, self._unread = self._unread, []
        driver.stop(unread)

    # after a death

    def _reattach(self, awaited: Collection[str]) -> None:
        for stream in OUTPUTS:
            end = f"{stream}.sink"
            path = self._path(stream)
            writer = self._fds.get(end)
            if writer is not None and look(writer).is_fifo:
                beside = next((other for other in self._fifos.values() if other.is_at(writer)), None)
                if beside is None:
                    self._fifos[end] = OutputFifo.adopt(writer, client_came=f"{stream}.awaited" not in awaited)
                else:
                    self._fifos[end] = beside.share(writer)
            elif writer is None and path and self._source(stream) in self._fds:
                self._reopen_sink(stream, path)
        if "terminal" in self._fds:
            self._terminal = Terminal(self._fds["terminal"], log=self._log)

    def _reopen_sink(self, stream: str, path: str) -> None:
        try:
            self._own_sink(f"{stream}.sink", _open_here(path, self.plan.log_file))
        except errors.Error as error:
            self._log.error("%s is lost: %s", self._called(stream), error)
            self._own(f"{stream}.sink", os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC))


async def _open_path(path: str, make: bool, open_elsewhere: Callable[[str, bool], Awaitable[int]] | None) -> int:
    place = None if make else file.find_fifo(path)
    if place is not None:
        return place
    return _open_here(path, make) if open_elsewhere is None else await open_elsewhere(path, make)


def _open_here(path: str, make: bool) -> int:
    return file.open_log(path) if make else file.open_existing(path)


def _release_order(end: str) -> int:
    return 1 if end.endswith((".sink", ".driver")) else 0
