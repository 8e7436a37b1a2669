"""Log lines in logrus' text form, as containerd's own shims write them; no line ever waits for its reader.

A container's lines go to the fifo ``log`` of its bundle, which containerd copies to its own log (shim v2, §1.6); what
belongs to no container goes to the keeper's stderr, ``/run/dunnage/<key>/log``.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time

_LEVELS = {"WARNING": "warning", "CRITICAL": "fatal"}
_PLAIN = re.compile(r"[A-Za-z0-9\-._/@^+]+")


class LogrusFormatter(logging.Formatter):
    """``time="…" level=… msg="…" key=value``, times in UTC with nanoseconds; a traceback is one quoted field."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": _rfc3339(record.created),
            "level": _LEVELS.get(record.levelname, record.levelname.lower()),
            "msg": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            fields["error"] = repr(record.exc_info[1])
            fields["stack"] = self.formatException(record.exc_info)
        return " ".join(f"{key}={_quoted(value)}" for key, value in fields.items())


class FifoHandler(logging.Handler):
    """Writes each line to a fifo that exists and is read; otherwise the line goes on to the parent logger.

    The fifo is opened for one line and closed again: lines are rare, and a file descriptor a container is not.
    """

    def __init__(self, directory: int, name: str, fallback: logging.Logger) -> None:
        super().__init__()
        self._directory = directory
        self._name = name
        self._fallback = fallback
        self.setFormatter(LogrusFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        line = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
        try:
            fd = os.open(self._name, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._directory)
        except OSError:
            # ENXIO: containerd is away; ENOENT: there is no containerd
            self._fallback.handle(record)
            return
        try:
            os.write(fd, line[:4096])  # PIPE_BUF: a line is never mixed with another's
        except OSError:
            # EAGAIN: nobody takes the lines away; EPIPE: the reader went just now
            self._fallback.handle(record)
        finally:
            os.close(fd)


def container_logger(directory: int, namespace: str, container_id: str) -> logging.Logger:
    """A logger for one container, its lines in the fifo ``log`` of the bundle open at ``directory``."""
    node = logging.getLogger("dunnage")
    logger = logging.Logger(f"{namespace}/{container_id}", level=node.getEffectiveLevel())
    logger.addHandler(FifoHandler(directory, "log", node))
    return logger


def log_to_stderr(level: str) -> None:
    """Send every line that belongs to no container to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogrusFormatter())
    root = logging.getLogger("dunnage")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level.upper())


def _rfc3339(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1e9):09d}Z"


def _quoted(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
