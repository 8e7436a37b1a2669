"""What a runtime's failure means and how it is said. Pure: log and output come in as text.

The sentences are containerd's, since its clients and Docker match on them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from dunnage import errors

FINISHED = "process already finished"
NO_CONTAINER = "no such container"


class Call(NamedTuple):
    """One run of the runtime: what was run, and how it ended (an exit code, or 128 + a signal's number; None: it could
    not be run, or did not end)."""

    verb: str = ""
    argv: tuple[str, ...] = ()
    status: int | None = None


class CommandFailed(errors.Error):
    """The runtime could not be run, or ended with a status other than 0: the raw error, without a prefix.

    ``output`` is what it wrote where that was collected, ``reason`` its own sentence: from the log, else the output;
    ``log`` is what it logged. ``killed``: a signal ended it, so it has taken back nothing of what it had begun.
    """

    def __init__(
        self,
        text: str,
        *,
        output: str = "",
        reason: str = "",
        killed: bool = False,
        call: Call = Call(),  # noqa: B008 - a value
        log: str = "",
    ) -> None:
        super().__init__(text)
        self.killed = killed
        self.output = output
        self.reason = reason or output.strip() or text
        self.call = call
        self.log = log


class Log(NamedTuple):
    """What one call logged; ``unreadable`` says why there is nothing to read."""

    text: str = ""
    unreadable: str = ""


def is_killed(code: int | None) -> bool:
    """Whether an exit code (None: there is none) says that a signal ended the runtime, or what a wrapper of it ran: a
    shell that sees its command killed by SIGKILL exits with 137. No runtime refuses with that."""
    return code is None or code == 128 + 9


def describe_status(command: str, status: int, output: str = "") -> str:
    """``status`` is an exit code, or 128 + a signal's number."""
    text = f"{command} did not terminate successfully: exit status {status}"
    return f"{text}: {output}" if output else text


def describe_missing(command: str, reason: OSError | None = None) -> str:
    """Why ``command`` could not even be run, as Go's os/exec says it."""
    if "/" not in command and reason is None:
        return f'exec: "{command}": executable file not found in $PATH'
    return f"fork/exec {command}: {_strerror(reason)}"


class Record(NamedTuple):
    level: str
    message: str


def records(log: str) -> list[Record]:
    """Every record, whatever its level, in order; a line that is none is one without a level."""
    found = []
    for line in log.splitlines():
        try:
            values = list(_records(line))
        except ValueError:
            values = [line.strip("\0 ")]
        for value in values:
            if isinstance(value, dict):
                found.append(Record(str(value.get("level", "")), str(value.get("msg", "")).strip()))
            else:
                found.append(Record("", str(value)))
    return [record for record in found if record.message]


def last_error(log: str) -> str | None:
    """The ``msg`` of the last record with level "error"; ValueError where the text is no stream of JSON objects.

    A record that a dying runtime left half-written doesn't hide the ones before it.
    """
    found: str | None = None
    try:
        for record in _records(log):
            if isinstance(record, dict) and record.get("level") == "error":
                found = str(record.get("msg", "")).strip()
    except ValueError:
        if found is None:
            raise
    return found


def prefixed(prefix: str, failure: CommandFailed, log: Log) -> errors.Error:
    """The error that a client sees of create, start, exec, restore, pause, resume and delete."""
    if log.unreadable:
        return errors.Error(f"{prefix}: unable to retrieve OCI runtime error ({log.unreadable}): {failure}")
    try:
        message = last_error(log.text)
    except ValueError as reason:
        return errors.Error(f"{prefix}: unable to retrieve OCI runtime error ({reason}): {failure}")
    return errors.Error(f"{prefix}: {message or failure}")


def kill_error(failure: CommandFailed, container: str) -> errors.Error:
    """A process that has ended and a container that is gone are NotFound; all else is told as it is."""
    text = f"{failure}\n{failure.reason}"
    if says_finished(text):
        return errors.NotFound(FINISHED)
    if says_no_container(text, container):
        return errors.NotFound(NO_CONTAINER)
    return errors.Error(f"unknown error after kill: {failure}")


def says_finished(text: str) -> bool:
    lower = text.lower()
    return (
        "os: process already finished" in text
        or "container not running" in text
        or "no such process" in lower  # crun: "open pidfd: No such process"
    )


def says_no_container(text: str, container: str) -> bool:
    """crun has no sentence for it: it names the file of its state that is missing."""
    if "does not exist" in text:
        return True
    name = re.escape(container)
    return re.search(rf"/{name}(/status)?[`']: No such file or directory", text) is not None


def _records(text: str) -> Iterator[object]:
    decoder = json.JSONDecoder()
    position, end = 0, len(text)
    while True:
        while position < end and text[position] in " \t\r\n\0":
            position += 1
        if position == end:
            return
        record, position = decoder.raw_decode(text, position)
        yield record


def _strerror(reason: OSError | None) -> str:
    """As Go spells it: lowercase."""
    text = (reason.strerror if reason is not None else None) or "no such file or directory"
    return text[:1].lower() + text[1:]
