"""A process's standard streams, seen from the client: fifos in the bundle, and who copies between them.

`Streams.prepare` makes the fifos and opens the client's ends, so that the worker never waits for a reader; after the
worker has opened its own, `begin` lets the bytes run. A stream is a file descriptor of ours (copied by a thread of its
own, so that a slow reader of ours blocks nobody), PIPE (an asyncio stream), or nothing. A log file needs no client.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import os
import select
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dunnage import errors

_BLOCK = 65536


class Pipe(enum.Enum):
    """The stream is handed over as an asyncio stream: `Process.stdin`, `Process.stdout`, `Process.stderr`."""

    PIPE = "pipe"


PIPE: Final = Pipe.PIPE


class Keep(enum.Enum):
    """The stream is a fifo that waits for whoever attaches; a full one blocks the process."""

    OPEN = "open"


OPEN: Final = Keep.OPEN

Source = None | int | Pipe | Keep
"""Where stdin comes from: nothing, a file descriptor, a stream, or whoever attaches later."""

Sink = None | int | Pipe | Keep | Path
"""Where output goes: nowhere, a file descriptor, a stream, whoever attaches later, or a log file."""


@dataclass(frozen=True)
class Stdio:
    """The three streams of a process; file descriptors stay their owner's. A terminal has no stderr of its own, and
    begins with `size`, (columns, rows).

    A log file must be the sink of both stdout and stderr: that is all the shim protocol can say.
    """

    stdin: Source = None
    stdout: Sink = None
    stderr: Sink = None
    terminal: bool = False
    size: tuple[int, int] | None = None

    def apply(self, process: dict[str, Any]) -> None:
        """Say in an OCI process what these streams ask of it."""
        process["terminal"] = self.terminal
        process.pop("consoleSize", None)
        if self.terminal and self.size is not None:
            columns, rows = self.size
            process["consoleSize"] = {"height": rows, "width": columns}

    def check(self) -> None:
        """InvalidArgument for a combination that the shim protocol cannot carry."""
        if self.terminal and (self.stdout is None or isinstance(self.stdout, Path)):
            raise errors.InvalidArgument("a terminal needs a reader: it can go neither to a file nor nowhere")
        logs = [sink for sink in (self.stdout, self.stderr) if isinstance(sink, Path)]
        if logs and (self.stdout != self.stderr or not logs[0].is_absolute()):
            raise errors.InvalidArgument("a log file must be one absolute path for stdout and stderr")


class Streams:
    """The client's ends of one process's streams. `close` is idempotent and safe at any point of the way."""

    def __init__(self, stdio: Stdio, directory: Path, prefix: str) -> None:
        stdio.check()
        self.stdio = stdio
        self.uris = ("", "", "")
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        self.broken = asyncio.Event()
        """Set when output is taken no more: a file descriptor of ours has no reader or no space, or we gave it up."""
        self.failures: dict[str, OSError] = {}
        """What went wrong with a file descriptor of ours, by the name of the stream: stdin, stdout or stderr."""
        self._paths = tuple(directory / f"{prefix}{end}" for end in ("stdin", "stdout", "stderr"))
        self._made: list[Path] = []
        self._fds: dict[str, int] = {}
        self._copies: list[Copy] = []
        self._ends: list[asyncio.Future[None]] = []
        self._transports: list[asyncio.BaseTransport] = []

    def prepare(self) -> None:
        """Make the fifos and open our ends of them; `uris` is what Create or Exec must say."""
        stdin, stdout, stderr = self._paths
        if isinstance(self.stdio.stdout, Path):
            log = f"file://{self.stdio.stdout}"
            self.uris = (self._fifo(stdin) if self.stdio.stdin is not None else "", log, log)
        else:
            self.uris = (
                self._fifo(stdin) if self.stdio.stdin is not None else "",
                self._fifo(stdout) if self.stdio.stdout is not None else "",
                self._fifo(stderr) if self.stdio.stderr is not None and not self.stdio.terminal else "",
            )
        self._open_ends(*self.uris)

    def attach(self, uris: tuple[str, str, str]) -> None:
        """Open our ends of fifos that are there already, for those streams that we want."""
        self.uris = uris
        wanted = (self.stdio.stdin, self.stdio.stdout, None if self.stdio.terminal else self.stdio.stderr)
        for uri, stream in zip(uris, wanted, strict=True):
            if stream is not None and not uri.startswith("/"):
                raise errors.FailedPrecondition(f"a stream that goes to {uri or 'nothing'} cannot be attached to")
        stdin, stdout, stderr = (uri if stream is not None else "" for uri, stream in zip(uris, wanted, strict=True))
        self._open_ends(stdin, stdout, stderr)

    async def begin(self) -> None:
        """Let output run, and give a PIPE of stdin its writer."""
        loop = asyncio.get_running_loop()
        if "stdin" in self._fds and not isinstance(self.stdio.stdin, int):
            file = os.fdopen(self._fds.pop("stdin"), "wb", buffering=0)
            transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, file)
            self._transports.append(transport)
            self.stdin = asyncio.StreamWriter(transport, protocol, None, loop)
        self.stdout = await self._begin_output(loop, "stdout", self.stdio.stdout)
        if not self.stdio.terminal:
            self.stderr = await self._begin_output(loop, "stderr", self.stdio.stderr)

    def begin_stdin(self, on_end: Callable[[], None]) -> None:
        """Let a descriptor of ours run into stdin, which the worker reads by now (an exec's from its Start on).

        `on_end` is called in the loop when it has ended and our writer is closed.
        """
        self._close_fd("stdin.hold")
        if isinstance(self.stdio.stdin, int) and "stdin" in self._fds:

            def ended() -> None:
                if copy.source_failure is not None:
                    self.failures["stdin"] = copy.source_failure
                on_end()

            told = _in_loop(asyncio.get_running_loop(), ended)
            copy = Copy(self.stdio.stdin, self._fds.pop("stdin"), owns_sink=True, on_end=told)
            self._copies.append(copy)

    async def wait_drained(self, timeout_s: float) -> bool:
        """Wait until every copied output is at its end; False when nothing came for `timeout_s`.

        A reader of ours that is slow is waited for as long as it takes.
        """
        while pending := [end for end in self._ends if not end.done()]:
            before = [copy.moved_bytes for copy in self._copies]
            await asyncio.wait(pending, timeout=timeout_s)
            has_moved = before != [copy.moved_bytes for copy in self._copies]
            is_waiting = not all(end.done() for end in pending)
            if is_waiting and not has_moved and not any(copy.is_writing for copy in self._copies):
                return False
        return True

    def give_up(self) -> None:
        """Wait for no reader of ours any more; what is not written yet is lost."""
        self.broken.set()
        self.close()

    def close(self) -> None:
        """Stop copying, and close our ends."""
        for copy in self._copies:
            copy.stop()
        self._copies.clear()
        for end in self._ends:
            if not end.done():
                end.set_result(None)
        for transport in self._transports:
            if not isinstance(transport, asyncio.WriteTransport):
                transport.close()
            elif not transport.is_closing() or transport.get_write_buffer_size():
                transport.abort()  # twice would fail (CPython 3.11 to 3.13: its loop is gone after the first)
        self._transports.clear()
        for name in list(self._fds):
            self._close_fd(name)

    def unlink(self) -> None:
        """Remove the fifos that we made: after this nobody can attach."""
        for path in self._made:
            path.unlink(missing_ok=True)
        self._made.clear()

    def _fifo(self, path: Path) -> str:
        try:
            os.mkfifo(path, 0o600)
        except FileExistsError:
            raise errors.AlreadyExists(f"stream {path.name} already exists") from None
        self._made.append(path)
        return str(path)

    def _open_ends(self, stdin: str, stdout: str, stderr: str) -> None:
        if stdin and self.stdio.stdin is not OPEN:
            # a writer can be opened without waiting only while there is a reader: `hold` is that until the worker's
            self._fds["stdin.hold"] = os.open(stdin, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            self._fds["stdin"] = os.open(stdin, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        for name, path, sink in (("stdout", stdout, self.stdio.stdout), ("stderr", stderr, self.stdio.stderr)):
            if path and sink is not OPEN and not isinstance(sink, Path):
                self._fds[name] = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    async def _begin_output(
        self, loop: asyncio.AbstractEventLoop, name: str, sink: Sink
    ) -> asyncio.StreamReader | None:
        if name not in self._fds:
            return None
        fifo = self._fds.pop(name)
        if isinstance(sink, int):
            end = loop.create_future()
            self._ends.append(end)

            def ended() -> None:
                if copy.sink_failure is not None:
                    self.failures[name] = copy.sink_failure
                    self.broken.set()
                if not end.done():
                    end.set_result(None)

            copy = Copy(fifo, sink, owns_source=True, on_end=_in_loop(loop, ended))
            self._copies.append(copy)
            return None
        reader = asyncio.StreamReader(loop=loop)
        file = os.fdopen(fifo, "rb", buffering=0)
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader, loop=loop), file)
        self._transports.append(transport)
        return reader

    def _close_fd(self, name: str) -> None:
        fd = self._fds.pop(name, None)
        if fd is not None:
            os.close(fd)


class Copy:
    """One direction of one stream, on a daemon thread: reads until the source ends, writes all of it.

    A descriptor that it owns is closed when the copy ends; another's is left alone, blocking or not. `on_end` is called
    from the thread. What cannot be read or written ends the copy: `source_failure`, `sink_failure`.
    """

    def __init__(
        self,
        source: int,
        sink: int,
        *,
        owns_source: bool = False,
        owns_sink: bool = False,
        on_end: Callable[[], None],
    ) -> None:
        self._source, self._sink = source, sink
        self._owned = [fd for fd, owned in ((source, owns_source), (sink, owns_sink)) if owned]
        self._on_end = on_end
        self._stopped = False
        self._wake, self._waker = os.pipe()
        self._lock = threading.Lock()
        self.moved_bytes = 0
        self.is_writing = False
        """Whether bytes wait for the sink to take them."""
        self.source_failure: OSError | None = None
        self.sink_failure: OSError | None = None
        threading.Thread(target=self._run, name="dunnage-copy", daemon=True).start()

    def stop(self) -> None:
        """End the copy soon, without an `on_end`."""
        with self._lock:
            self._stopped = True
            if self._waker >= 0:
                os.close(self._waker)
                self._waker = -1

    def _run(self) -> None:
        try:
            while self._wait(self._source, select.POLLIN):
                try:
                    block = os.read(self._source, _BLOCK)
                except BlockingIOError:
                    continue
                except OSError as error:
                    if error.errno != errno.EIO:  # a terminal of ours that was hung up reads as its end
                        self.source_failure = error
                    block = b""
                self.is_writing = True
                if not block or not self._write(block):
                    break
                self.is_writing = False
        finally:
            self.is_writing = False
            self._finish()

    def _write(self, block: bytes) -> bool:
        rest = memoryview(block)
        while rest:
            if not self._wait(self._sink, select.POLLOUT):
                return False
            try:
                written = os.write(self._sink, rest)
            except BlockingIOError:
                continue
            except OSError as error:
                self.sink_failure = error
                return False
            rest = rest[written:]
            self.moved_bytes += written
        return True

    def _wait(self, fd: int, events: int) -> bool:
        poll = select.poll()
        poll.register(fd, events)
        poll.register(self._wake, select.POLLIN)
        ready = dict(poll.poll())
        return self._wake not in ready

    def _finish(self) -> None:
        for fd in self._owned:
            os.close(fd)
        with self._lock:
            os.close(self._wake)
            if self._waker >= 0:
                os.close(self._waker)
                self._waker = -1
            stopped = self._stopped
        if not stopped:
            self._on_end()


@contextlib.contextmanager
def discarding(*uris: str) -> Iterator[None]:
    """Read fifos and throw away what comes: a worker's Delete waits for output that nobody reads any more."""
    with contextlib.ExitStack() as stack:
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        stack.callback(os.close, nowhere)
        for uri in uris:
            if not uri.startswith("/"):
                continue
            try:
                fifo = os.open(uri, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # whoever made it has removed it
            stack.callback(Copy(fifo, nowhere, owns_source=True, on_end=lambda: None).stop)
        yield


def _in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> Callable[[], None]:
    def from_thread() -> None:
        try:
            loop.call_soon_threadsafe(call)
        except RuntimeError:
            pass  # the loop is closed: nobody is left to be told

    return from_thread
