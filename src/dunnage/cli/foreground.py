"""A process in the foreground: this terminal is its terminal, our signals are its signals, its exit status is ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator

import click

from dunnage import errors
from dunnage.cli.main import OWN_FAILURE, complain
from dunnage.client import Process, RawTerminal, SizeWatch, Stdio, own_stdio

NOT_EXECUTABLE = 126
NOT_FOUND = 127
SIGNALLED = 128

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
# an init without a handler never sees SIGINT (pid_namespaces(7)): whoever presses Ctrl-C this often wants it to end
_INTERRUPTS_THAT_KILL = 3

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


async def run_in_foreground(process: Process) -> int:
    """Start it, and wait until it has ended; returns its exit status. Its last output comes with its deletion."""
    stdio = process.streams.stdio
    raw = RawTerminal(0) if stdio.terminal and stdio.stdin == 0 else contextlib.nullcontext()
    resizing: set[asyncio.Task[None]] = set()

    def resize(columns: int, rows: int) -> None:
        resizing.add(asyncio.get_running_loop().create_task(_resize(process, columns, rows)))

    watch = SizeWatch(0, resize) if stdio.terminal else contextlib.nullcontext()
    with raw, watch, _signals_forwarded(process):
        await process.start()
        return await _wait_for_end(process)


def own_streams(*, interactive: bool, terminal: bool) -> Stdio:
    """Our standard streams for a process in the foreground."""
    if interactive and terminal and not os.isatty(0):
        # its end would hang the terminal up, with what the process has not read yet (docker refuses it too)
        raise click.UsageError("standard input is no terminal: leave out -i or -t")
    return own_stdio(interactive=interactive, terminal=terminal)


@contextlib.contextmanager
def failing_as_docker_does() -> Iterator[None]:
    """What fails inside ends the program with 125, or with 126 or 127 where it was the command's fault."""
    try:
        yield
    except errors.Error as error:
        complain(error)
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
        # nobody reads our output any more; a program of ours would have got SIGPIPE, and so has this one
        await _kill(process, signal.SIGKILL)
        await ended
        return SIGNALLED + signal.SIGPIPE
    return ended.result().status


@contextlib.contextmanager
def _signals_forwarded(process: Process) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    sending: set[asyncio.Task[None]] = set()
    interrupts = 0

    def forward(number: signal.Signals) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        sent = signal.SIGKILL if interrupts >= _INTERRUPTS_THAT_KILL else number
        sending.add(loop.create_task(_kill(process, sent)))

    for number in _FORWARDED:
        loop.add_signal_handler(number, forward, number)
    try:
        yield
    finally:
        for number in _FORWARDED:
            loop.remove_signal_handler(number)


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
