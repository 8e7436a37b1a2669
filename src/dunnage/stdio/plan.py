"""What a request's three stdio strings mean, decided without touching anything.

The scheme is taken from stdout alone, as every containerd client expects: no scheme is a fifo (or a regular file at
that path), ``file://`` a log file for stdout and stderr both. ``binary://`` and ``binary-v2://`` are recognised and
refused.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import Enum

from dunnage import errors


class Kind(Enum):
    NULL = "null"
    FIFO = "fifo"
    TERMINAL = "terminal"
    FILE = "file"


@dataclass(frozen=True)
class Plan:
    """One process's stdio: absolute paths, decoded; an empty one means /dev/null for that stream.

    With `Kind.FILE` stdout (and stderr, where one was asked for) is the path of the log file. With `Kind.TERMINAL`
    there is no stderr. `io_uid` and `io_gid` own the pipes that the process gets.
    """

    kind: Kind
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False
    io_uid: int = 0
    io_gid: int = 0
    log_file: bool = False  # stdout is a path to create (file://), not one that the client has made


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):(//)?")
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")


def plan(stdin: str, stdout: str, stderr: str, *, terminal: bool, io_uid: int = 0, io_gid: int = 0) -> Plan:
    """Raise InvalidArgument for what cannot be meant, Unimplemented for log drivers, Error for an unknown scheme."""
    for stream, text in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)):
        if "\0" in text:
            raise errors.InvalidArgument(f"{stream} path {text!r} contains a zero byte")
    match = _SCHEME.match(stdout)
    scheme = match[1].lower() if match else ""
    if scheme in ("binary", "binary-v2"):
        raise errors.Unimplemented(f"logging through a program ({scheme}://) is not supported")
    if scheme not in ("", "fifo", "file"):
        raise errors.Error(f"unknown STDIO scheme {scheme}")
    if terminal and not stdout:
        raise errors.InvalidArgument("a terminal needs a stdout")
    if not (stdin or stdout or stderr):
        return Plan(Kind.NULL, io_uid=io_uid, io_gid=io_gid)
    log_file = scheme == "file"
    paths = {"stdin": stdin, "stdout": stdout, "stderr": "" if terminal else stderr}
    if scheme:
        paths["stdout"] = _url_path(stdout)
    if log_file and paths["stderr"]:
        paths["stderr"] = paths["stdout"]
    elif scheme == "fifo":
        paths = {stream: _url_path(path) if path.startswith("fifo:") else path for stream, path in paths.items()}
    for stream, path in paths.items():
        if path and not path.startswith("/"):
            raise errors.InvalidArgument(f"{stream} path {path} is not absolute")
    kind = Kind.TERMINAL if terminal else Kind.FILE if log_file else Kind.FIFO
    return Plan(kind, **paths, terminal=terminal, io_uid=io_uid, io_gid=io_gid, log_file=log_file)


def _url_path(url: str) -> str:
    """The decoded path of ``scheme:///path?query#fragment``."""
    rest = re.split(r"[?#]", url.partition(":")[2], maxsplit=1)[0]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host not in ("", "localhost"):
            raise errors.InvalidArgument(f"{url} names a host, {host}, where a path was expected")
        rest = slash + path
    decoded = os.fsdecode(_PERCENT.sub(lambda digits: bytes([int(digits[1], 16)]), os.fsencode(rest)))
    if not decoded:
        raise errors.InvalidArgument(f"{url} names no path")
    if "\0" in decoded:
        raise errors.InvalidArgument(f"{url} contains a zero byte")
    return decoded
