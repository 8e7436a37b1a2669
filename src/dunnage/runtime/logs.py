"""The runtime's log of one bundle, for calls that may overlap: each gets what it logged itself, and the file gets all.

A call that is alone logs to the file itself, as under every shim: a runtime may keep it open and write to it later
(crun's containers do, until they have executed their command). One that begins while another is under way there gets a
file of its own, which is added when the first has ended, so that neither quotes the other's error. What a worker that
dies leaves of those is added by the next one (``gather``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from dunnage.runtime.failures import Log

OWN = "dunnage-call-"
"""What the names of calls' own files begin with."""

LIMIT_BYTES = 1 << 20
"""As much of what a call has logged counts, from its end."""

_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Logs:
    """``path`` is the log for all; calls' own are beside it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._in_use = False
        self._own: list[str] = []

    @contextmanager
    def of_call(self) -> Iterator[CallLog]:
        """For as long as a call runs, where it is to log."""
        if not self._in_use:
            self._in_use = True
            try:
                yield CallLog(self.path, _size(self.path), self.path)
            finally:
                self._in_use = False
                self._add_own()
            return
        own = os.path.join(os.path.dirname(self.path), f"{OWN}{os.urandom(8).hex()}")
        try:
            yield CallLog(own, 0, self.path)
        finally:
            self._own.append(own)
            if not self._in_use:
                self._add_own()

    def _add_own(self) -> None:
        own, self._own = self._own, []
        for path in own:
            _add(path, self.path)


class CallLog(NamedTuple):
    """The log of one call: from ``start`` on in the file ``path``."""

    path: str
    start: int
    of_all: str

    def read(self) -> Log:
        try:
            return Log(_read(self.path, self.start))
        except FileNotFoundError as error:
            # there is a log, and the call has not come to its own
            return Log() if os.path.exists(self.of_all) else _unreadable(self.of_all, error)
        except OSError as error:
            return _unreadable(self.path, error)


def gather(path: str) -> None:
    """Add to the log at ``path`` what calls of a former worker have left beside it; none may be under way. A death in
    the middle adds a line twice rather than never."""
    directory = os.path.dirname(path)
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return  # all of it is gone
    for name in names:
        if name.startswith(OWN):
            _add(os.path.join(directory, name), path)


def _add(path: str, to: str) -> None:
    """Move one call's log to the end of another; it stays where that cannot be written."""
    try:
        with open(os.open(path, os.O_RDONLY | _FLAGS), "rb") as source:
            text = source.read()
        if text and not text.endswith(b"\n"):
            text += b"\n"  # of a runtime that died in the middle of a line
        with open(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _FLAGS, 0o644), "ab") as log:
            log.write(text)
        os.unlink(path)
    except OSError:
        pass  # it was never made, or the disk is full: then it is found in its own file


def _read(path: str, start: int) -> str:
    with open(os.open(path, os.O_RDONLY | _FLAGS), "rb") as log:
        size = os.fstat(log.fileno()).st_size
        # smaller than before: it is another file now
        start = start if start <= size else 0
        log.seek(max(start, size - LIMIT_BYTES))
        added = log.read(LIMIT_BYTES)
    if size - start > LIMIT_BYTES:
        added = added.partition(b"\n")[2]
    return added.decode(errors="replace")


def _unreadable(path: str, error: OSError) -> Log:
    return Log(unreadable=f"open {path}: {(error.strerror or '').lower()}")


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
