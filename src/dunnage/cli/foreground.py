"""A process in the foreground: this terminal is its terminal, our signals are its signals, its exit status is ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator

import click

from dunnage import errors
from dunnage.cli.main import OWN_FAILURE, complain, say
from dunnage.cli.signals import INTERRUPTS_THAT_KILL, SIGNALLED, Signals
from dunnage.client import Process, RawTerminal, SizeWatch, Stdio, own_stdio, terminal_size

NOT_EXECUTABLE = 126
NOT_FOUND = 127

# what an orphan of the process still holds open is not waited for longer
_DRAIN_S = 2.0

# runc: `exec: "x": executable file not found in $PATH`, `exec: "/x": stat /x: no such file or directory`
# crun: "executable file `x` not found in $PATH", "open executable: No such file or directory"
_NOT_FOUND_TEXT = re.compile(
    r'exec: "[^"]*": (executable file not found|stat [^:]*: no such file)'
    r"|executable file [`'\"]?[^:]* not found|open executable: no such file|exec /[^:]+: no such file or directory",
    re.IGNORECASE,
)
_NOT_EXECUTABLE_TEXT = re.compile(
    r'exec: "[^"]*": (permission denied|is a directory|stat [^:]*: not a directory)'
    r"|(open executable|exec /[^:]+): (permission denied|operation not permitted|is a directory|exec format error)"
    r"|the path [`'\"][^`'\"]*[`'\"] is not a regular file",
    re.IGNORECASE,
)


async def run_in_foreground(process: Process, signals: Signals) -> int:
    """Start it, and wait until it has ended and its output is written; returns its exit status."""
    stdio = process.streams.stdio
    raw = RawTerminal(0) if stdio.terminal and stdio.stdin == 0 else contextlib.nullcontext()
    terminal = 0 if os.isatty(0) else 1
    resizing: set[asyncio.Task[None]] = set()

    def resize(columns: int, rows: int) -> None:
        resizing.add(asyncio.get_running_loop().create_task(_resize(process, columns, rows)))

    watch = SizeWatch(terminal, resize) if stdio.terminal else contextlib.nullcontext()
    with raw, watch:
        async with _started(process, signals):
            size = terminal_size(terminal) if stdio.terminal else None
            if size is not None and size != stdio.size:
                resize(*size)  # it changed while there was nobody to tell
            status = await _wait_for_end(process)
        await _drain(process, signals)
    for stream, failure in process.streams.failures.items():
        if not isinstance(failure, BrokenPipeError):
            say(f"{stream}: {(failure.strerror or str(failure)).lower()}")
            status = OWN_FAILURE
    return status


def own_streams(*, interactive: bool, terminal: bool) -> Stdio:
    """Our standard streams for a process in the foreground."""
    if interactive and terminal and not os.isatty(0):
        # its end would hang the terminal up, with what the process has not read yet (docker refuses it too)
        raise click.UsageError("standard input is no terminal: leave out -i or -t")
    return own_stdio(interactive=interactive, terminal=terminal)


@contextlib.contextmanager
def failing_as_docker_does(thing: str = "") -> Iterator[None]:
    """What fails inside ends the program with 125, or with 126 or 127 where it was the command's fault."""
    try:
        yield
    except errors.Error as error:
        complain(error, thing)
        sys.exit(status_of_failure(error))


def status_of_failure(error: errors.Error) -> int:
    """The exit status for a process that could not be started: 126, 127, or 125 where the command is not to blame."""
    text = str(error)
    if "unable to retrieve OCI runtime error" in text:
        return OWN_FAILURE  # it was the runtime that could not be run
    if _NOT_EXECUTABLE_TEXT.search(text):
        return NOT_EXECUTABLE
    if _NOT_FOUND_TEXT.search(text):
        return NOT_FOUND
    return OWN_FAILURE


async def _wait_for_end(process: Process) -> int:
    ended = asyncio.ensure_future(process.wait())
    broken = asyncio.ensure_future(process.streams.broken.wait())
    await asyncio.wait((ended, broken), return_when=asyncio.FIRST_COMPLETED)
    broken.cancel()
    if not ended.done():
        # our output is taken no more; a program of ours would have got SIGPIPE, and so has this one
        await _kill(process, signal.SIGKILL)
        await ended
        return SIGNALLED + signal.SIGPIPE
    return ended.result().status


@contextlib.asynccontextmanager
async def _started(process: Process, signals: Signals) -> AsyncIterator[None]:
    """Start it; our signals are its signals, those too that come while it is being started."""
    early: list[signal.Signals] = []
    sending: set[asyncio.Task[None]] = set()

    has_started = False

    def receive(number: signal.Signals, interrupts: int) -> None:
        if has_started:
            send(signal.SIGKILL if interrupts >= INTERRUPTS_THAT_KILL else number)
            return
        early.append(number)
        if interrupts >= INTERRUPTS_THAT_KILL:
            signals.cancel(number)

    def send(number: signal.Signals) -> None:
        sending.add(asyncio.get_running_loop().create_task(_kill(process, number)))

    # one for both times: a Ctrl-C while it is being started is the first of three as well
    with signals.going_to(receive):
        await process.start()
        has_started = True
        for number in early:
            send(number)
        yield


async def _drain(process: Process, signals: Signals) -> None:
    """Wait for our own readers; a signal to us ends it, since there is no process any more that it could be for."""
    drained = asyncio.ensure_future(process.streams.wait_drained(_DRAIN_S))
    with signals.going_to(lambda number, interrupts: drained.cancel()):
        await asyncio.wait((drained,))
    if drained.cancelled():
        process.streams.give_up()


async def _kill(process: Process, number: int) -> None:
    try:
        await process.kill(number)
    except (errors.NotFound, errors.FailedPrecondition):
        pass  # it has ended, or not begun: a signal has nobody to go to


async def _resize(process: Process, columns: int, rows: int) -> None:
    try:
        await process.resize(columns, rows)
    except errors.Error:
        pass  # it has ended in the meantime
