"""One pump: bytes from any source to any sink, moved by the kernel, in order, none lost and none held here.

`splice(2)` where the two allow it; where they do not (neither is a pipe, or an old kernel's terminal: EINVAL), a copy
of as much as the sink takes at once, so that nothing lies in this process but between one read and its write, and what
a terminal that was fuller than it looked did not take.

A pump owns neither descriptor. It sleeps on one side at a time: the source, or, when the sink is full, the sink
alone; so a source that was hung up while its reader stalls wakes nobody. A sink that fails (EPIPE, ENOSPC) is logged,
and the pump goes on into /dev/null for the rest of its life: a process must not block for a log that is broken.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import select
import stat
from collections.abc import Callable
from typing import Protocol

from dunnage.stdio.budget import BUSY_BYTES, DEFAULT_BYTES, PipeBudget
from dunnage.stdio.fifo import readable_bytes

TURN_BYTES = 1024 * 1024  # then it is another pump's turn
NARROW_AFTER_S = 1.0  # a widened pipe that moved little for so long is cut again
PAUSE_S = 0.1  # when the kernel has no memory for a transfer, or no descriptor for /dev/null
BUSY_TRANSFERS = 8  # so many large transfers in a row make a stream busy
_COPY_FILE_BYTES = 64 * 1024
_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Splice(Protocol):
    def __call__(self, src: int, dst: int, count: int, *, flags: int) -> int: ...


class _SourceEnded(Exception):
    pass


class _SinkFailed(Exception):
    """Its cause is the OSError."""


class _Scarce(Exception):
    """The kernel has no memory, or no descriptor, for it: perhaps only this moment."""


class Pump:
    def __init__(
        self,
        name: str,
        source: int,
        sink: int,
        *,
        log: logging.Logger,
        budget: PipeBudget,
        on_end: Callable[[], None],
        splice: Splice = os.splice,
    ) -> None:
        """`on_end` is called once, when the source has ended and its last byte is in the sink; never after `stop`.

        Both descriptors must be non-blocking. A terminal as the source does not end (EIO: nobody has it open) before
        `let_end` was called.
        """
        self.name = name
        self.moved_bytes = 0
        self._source = source
        self._sink = sink
        self._log = log
        self._budget = budget
        self._on_end = on_end
        self._splice = splice
        self._source_is_terminal = os.isatty(source)
        self._appends = stat.S_ISREG(os.fstat(sink).st_mode)
        self._copies = False
        self._in_hand = b""
        self._discards = False
        self._null: int | None = None
        self._watched: int | None = None
        self._may_end = not self._source_is_terminal
        self._running = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._large_transfers = 0
        self._narrowing: asyncio.TimerHandle | None = None
        self._pausing: asyncio.TimerHandle | None = None
        self._moved_when_armed = 0

    def __str__(self) -> str:
        """What it has done and what it waits for, in words."""
        if not self._running:
            waits = "does not run"
        elif self._watched is None:
            waits = "pauses" if self._pausing is not None else "waits for the process to end"
        else:
            waits = "waits for bytes" if self._watched == self._source else "waits for its reader"
        return f"{self.name}: {self.moved_bytes} bytes {'discarded' if self._discards else 'moved'}, {waits}"

    def start(self) -> None:
        """Idempotent."""
        if self._running:
            return
        self._running = True
        self._loop = asyncio.get_running_loop()
        self._wait_for_source()

    def stop(self) -> None:
        """Let go of both descriptors, wherever the bytes are; idempotent."""
        self._unwatch()
        self._running = False
        for timer in (self._narrowing, self._pausing):
            if timer is not None:
                timer.cancel()
        self._narrowing = self._pausing = None
        if self._null is not None:
            os.close(self._null)
            self._null = None
        self._in_hand = b""

    def let_end(self) -> None:
        """The process is over: a terminal that nobody has open any more ends, after its last byte."""
        self._may_end = True
        if self._running and self._watched is None:
            self._wait_for_source()

    def discard(self) -> None:
        """From now on the bytes go to /dev/null; the sink is no longer touched."""
        if self._discards:
            return
        was_watching = self._watched is not None
        self._unwatch()
        self._discards = True
        self._appends = False
        self._sink = -1  # /dev/null is opened by the turn that has something for it
        self._in_hand = b""
        self._copies = False
        if self._running and was_watching:
            self._wait_for_source()

    def turn(self) -> None:
        """Move what can be moved now, at most `TURN_BYTES`."""
        left = TURN_BYTES
        while left > 0 and self._running:
            try:
                if self._discards and self._null is None:
                    self._open_null()
                moved = self._copy() if self._copies else self._move(left)
            except BlockingIOError:
                self._rest()
                return
            except _SinkFailed as failure:
                self._report(failure.__cause__)
                self.discard()
                continue
            except _Scarce:
                self._pause()
                return
            except _SourceEnded:
                self._end()
                return
            left -= moved
            self._count(moved)
        if self._running:
            self._wait_for_source()

    # one transfer

    def _open_null(self) -> None:
        try:
            self._sink = self._null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _Scarce from error

    def _seek_end(self) -> None:
        """What O_APPEND would do, which splice refuses: others write to a log file too, or cut it short."""
        if self._appends:
            os.lseek(self._sink, 0, os.SEEK_END)

    def _move(self, limit_bytes: int) -> int:
        try:
            self._seek_end()
            moved = self._splice(self._source, self._sink, limit_bytes, flags=_FLAGS)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno == errno.EINVAL:
                self._copies = True
                return 0
            if error.errno == errno.ENOMEM:
                raise _Scarce from error
            if error.errno == errno.EIO and self._source_is_terminal:
                raise _SourceEnded from error
            if self._discards:  # /dev/null takes all there is: it was the source that failed
                self._log.error("error reading %s: %s", self.name, error)
                raise _SourceEnded from error
            raise _SinkFailed from error
        if moved == 0:
            raise _SourceEnded
        return moved

    def _copy(self) -> int:
        """As `_move`; what the sink did not take of the last read goes first."""
        if not self._in_hand:
            # A full sink is asked for nothing, unless the source has nothing either: then this read tells its end.
            if not _has_room(self._sink) and readable_bytes(self._source):
                raise BlockingIOError
            self._in_hand = self._read()
        try:
            self._seek_end()
            written = os.write(self._sink, self._in_hand)
        except BlockingIOError:
            raise
        except OSError as error:
            raise _SinkFailed from error
        self._in_hand = self._in_hand[written:]
        return written

    def _read(self) -> bytes:
        # PIPE_BUF: a pipe that has room at all takes so much at once
        size = _COPY_FILE_BYTES if stat.S_ISREG(os.fstat(self._sink).st_mode) else select.PIPE_BUF
        try:
            got = os.read(self._source, size)
        except BlockingIOError:
            raise
        except OSError as error:
            if not (error.errno == errno.EIO and self._source_is_terminal):
                self._log.error("error reading %s: %s", self.name, error)
            raise _SourceEnded from error
        if not got:
            raise _SourceEnded
        return got

    def _report(self, error: BaseException | None) -> None:
        # A process that leaves before its input does is nothing out of the ordinary.
        gone = isinstance(error, OSError) and (
            error.errno == errno.EPIPE or (error.errno == errno.EIO and os.isatty(self._sink))
        )
        level = logging.DEBUG if gone else logging.ERROR
        self._log.log(level, "error copying %s: %s; the rest of it is discarded", self.name, error)

    def _end(self) -> None:
        if not self._may_end:
            # Nobody has the terminal open, and may have it again: epoll would report the hang-up for ever.
            self._unwatch()
            return
        self.stop()
        self._on_end()

    # waiting

    def _rest(self) -> None:
        """EAGAIN does not say which side is meant; bytes left in the source say it was the sink."""
        if self._in_hand or readable_bytes(self._source):
            for fd in (self._source, self._sink):
                if self._budget.grow(fd, DEFAULT_BYTES):
                    self._arm_narrowing()
            self._wait_for_sink()
        elif _has_hung_up(self._source):
            self._end()  # splice asks for room in the sink first; to wait for this source would never sleep
        else:
            self._wait_for_source()

    def _pause(self) -> None:
        self._unwatch()
        if self._pausing is not None:
            self._pausing.cancel()
        if self._loop is not None:
            self._pausing = self._loop.call_later(PAUSE_S, self._wait_for_source)

    def _wait_for_source(self) -> None:
        if self._watched != self._source:
            self._unwatch()
            assert self._loop is not None
            self._loop.add_reader(self._source, self.turn)
            self._watched = self._source

    def _wait_for_sink(self) -> None:
        if self._watched != self._sink:
            self._unwatch()
            assert self._loop is not None
            try:
                self._loop.add_writer(self._sink, self.turn)
            except PermissionError:  # epoll refuses what always has room, as regular files
                self._wait_for_source()
                return
            self._watched = self._sink

    def _unwatch(self) -> None:
        if self._loop is not None and self._watched is not None:
            if self._watched == self._source:
                self._loop.remove_reader(self._source)
            else:
                self._loop.remove_writer(self._sink)
        self._watched = None

    # width

    def _count(self, moved: int) -> None:
        self.moved_bytes += moved
        held = self._budget.size_bytes(self._source) or self._budget.size_bytes(self._sink)
        self._large_transfers = self._large_transfers + 1 if moved * 2 >= held else 0
        if self._large_transfers == BUSY_TRANSFERS:
            for fd in (self._source, self._sink):
                self._budget.grow(fd, BUSY_BYTES)
        self._arm_narrowing()

    def _arm_narrowing(self) -> None:
        if self._narrowing is None and self._loop is not None and self._is_grown():
            self._moved_when_armed = self.moved_bytes
            self._narrowing = self._loop.call_later(NARROW_AFTER_S, self._narrow)

    def _narrow(self) -> None:
        self._narrowing = None
        if self.moved_bytes - self._moved_when_armed >= TURN_BYTES:
            self._arm_narrowing()
            return
        self._large_transfers = 0
        for fd in (self._source, self._sink):
            # One that is too full stays as it is, without a timer, until bytes move again (`_count`).
            self._budget.shrink(fd)

    def _is_grown(self) -> bool:
        return self._budget.is_grown(self._source) or self._budget.is_grown(self._sink)


def _has_room(fd: int) -> bool:
    """True also for a broken sink: the write says how."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


def _has_hung_up(fd: int) -> bool:
    """Whether nobody can write to it any more, and nothing is left in it."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return any(event & select.POLLHUP and not event & select.POLLIN for _, event in poll.poll(0))
