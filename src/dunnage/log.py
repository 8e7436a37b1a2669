"""Log lines in logrus' text form, as containerd's own shims write them; no line ever waits for its reader.

A container's lines go to the fifo ``log`` of its bundle, which containerd copies to its own log (shim v2, §1.6); what
belongs to no container goes to the keeper's stderr, ``/run/dunnage/<key>/log``.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import time
from collections.abc import Callable

CONTAINER = "container"
"""The attribute of a record, and the field of a line, that says whose it is."""

_LEVELS = {"WARNING": "warning", "CRITICAL": "fatal"}
_PLAIN = re.compile(r"[A-Za-z0-9\-._/@^+]+")
_PIPE_BUF = 4096  # a line that is not longer is written whole or not at all (pipe(7))
_NODE_LOG_BYTES = 1 << 20  # the node's log lies in memory: one that has become longer keeps
_NODE_LOG_KEPT_BYTES = 256 << 10  # only so much of its end


class LogrusFormatter(logging.Formatter):
    """``time="…" level=… msg="…" key=value``, times in UTC with nanoseconds; a traceback is one quoted field.

    ``names_container`` is for where the lines of many containers meet.
    """

    def __init__(self, *, names_container: bool = True) -> None:
        super().__init__()
        self._names_container = names_container

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": _rfc3339(record.created),
            "level": _LEVELS.get(record.levelname, record.levelname.lower()),
            "msg": record.getMessage(),
        }
        if self._names_container and isinstance(container := getattr(record, CONTAINER, None), str):
            fields[CONTAINER] = container
        if record.exc_info and record.exc_info[0] is not None:
            fields["error"] = repr(record.exc_info[1])
            fields["stack"] = self.formatException(record.exc_info)
        return " ".join(f"{key}={_quoted(value)}" for key, value in fields.items())


class FifoHandler(logging.Handler):
    """Writes each line to a fifo that exists and is read; otherwise the line goes on to the parent logger.

    The fifo is opened for one line and closed again: lines are rare, and a file descriptor a container is not.
    ``directory`` is asked each time, since it may be closed, and its number another's, while lines still come.
    """

    def __init__(self, directory: Callable[[], int], name: str, fallback: logging.Logger) -> None:
        super().__init__()
        self._directory = directory
        self._name = name
        self._fallback = fallback
        self.setFormatter(LogrusFormatter(names_container=False))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
        except Exception:  # noqa: BLE001 - a line that is wrong stops nobody who logs
            self.handleError(record)
            return
        if not self._write(line if len(line) <= _PIPE_BUF else line[: _PIPE_BUF - 1] + b"\n"):
            self._fallback.handle(record)
        elif len(line) > _PIPE_BUF:
            self._fallback.handle(record)  # there it is whole

    def _write(self, line: bytes) -> bool:
        directory = self._directory()
        if directory < 0:
            return False
        try:
            fd = os.open(self._name, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        except OSError:
            return False  # ENXIO: containerd is away; ENOENT: there is no containerd
        try:
            if not stat.S_ISFIFO(os.fstat(fd).st_mode):
                return False
            os.write(fd, line)
        except OSError:
            return False  # EAGAIN: nobody takes the lines away; EPIPE: the reader went just now
        finally:
            os.close(fd)
        return True


def container_logger(directory: Callable[[], int], namespace: str, container_id: str) -> logging.Logger:
    """A logger for one container, its lines in the fifo ``log`` of the bundle open at ``directory()`` (-1: closed)."""
    node = logging.getLogger("dunnage")
    name = f"{namespace}/{container_id}"
    logger = logging.Logger(name, level=node.getEffectiveLevel())

    def mark(record: logging.LogRecord) -> bool:
        setattr(record, CONTAINER, name)
        return True

    logger.addFilter(mark)
    logger.addHandler(FifoHandler(directory, "log", node))
    return logger


class StderrHandler(logging.Handler):
    """Writes each line to stderr, at once and in one piece where that is a file."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(LogrusFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + "\n"
        except Exception:  # noqa: BLE001 - as above
            self.handleError(record)
            return
        write_to_stderr(line)


def write_to_stderr(text: str) -> None:
    """Also for a signal's handler, as it uses nothing that the code it interrupts may be in the middle of."""
    data = text.encode("utf-8", "backslashreplace")
    try:
        _shorten(2)
        while data:
            data = data[os.write(2, data) :]
    except OSError:
        pass  # a full /run: there is nowhere to say so


def _shorten(fd: int) -> None:
    """Throw away the older part of a file that has become long. What keeper or another worker write to it in the same
    moment may be lost."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size <= _NODE_LOG_BYTES:
        return
    reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        end = os.pread(reader, _NODE_LOG_KEPT_BYTES, status.st_size - _NODE_LOG_KEPT_BYTES)
    finally:
        os.close(reader)
    os.ftruncate(fd, 0)
    os.write(fd, end[end.find(b"\n") + 1 :])


def log_to_stderr(level: str) -> None:
    """Send every line that belongs to no container to stderr."""
    handler = StderrHandler()
    root = logging.getLogger("dunnage")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level.upper())


def _rfc3339(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1e9):09d}Z"


def _quoted(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
