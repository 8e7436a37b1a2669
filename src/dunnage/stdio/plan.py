"""What a request's three stdio strings mean, decided without touching anything.

The scheme is taken from stdout alone, as every containerd client expects: no scheme is a fifo (or a regular file at
that path), ``file://`` a log file for stdout and stderr both, ``binary://`` and ``binary-v2://`` a log driver: a
program that reads them both. A terminal goes to a path or to a driver, and to nothing else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from dunnage import errors


class Kind(Enum):
    NULL = "null"
    FIFO = "fifo"
    TERMINAL = "terminal"
    FILE = "file"
    DRIVER = "driver"


class Driver(NamedTuple):
    """A log driver: ``program`` is an absolute path. One that must say that it is ready, and ends instead, has
    failed."""

    program: str
    arguments: tuple[str, ...]
    must_say_ready: bool


@dataclass(frozen=True)
class Plan:
    """One process's stdio: absolute paths, decoded; an empty one means /dev/null for that stream.

    With `Kind.FILE` stdout (and stderr, where one was asked for) is the path of the log file. With `Kind.TERMINAL`
    there is no stderr. `Kind.DRIVER` has no paths: what the process writes goes to `driver`, and so does what a
    terminal shows where there is one. `io_uid` and `io_gid` own the pipes that the process gets.
    """

    kind: Kind
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False
    io_uid: int = 0
    io_gid: int = 0
    log_file: bool = False  # stdout is a path to create (file://), not one that the client has made
    driver: Driver | None = None


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):(//)?")
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


def plan(stdin: str, stdout: str, stderr: str, *, terminal: bool, io_uid: int = 0, io_gid: int = 0) -> Plan:
    """Raise InvalidArgument for what cannot be meant, Error for an unknown scheme."""
    for stream, text in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)):
        if "\0" in text:
            raise errors.InvalidArgument(f"{stream} path {text!r} contains a zero byte")
    match = _SCHEME.match(stdout)
    scheme = match[1].lower() if match else ""
    if terminal and (scheme not in ("", "binary", "binary-v2") or not stdout):
        # containerd's shim takes whatever else it is for a path, and clients know its words
        raise errors.Error(f"stat {stdout}: no such file or directory")
    if scheme not in ("", "fifo", "file", "binary", "binary-v2"):
        raise errors.Error(f"unknown STDIO scheme {scheme}")
    if not (stdin or stdout or stderr):
        return Plan(Kind.NULL, io_uid=io_uid, io_gid=io_gid)
    if scheme.startswith("binary"):
        return _driver_plan(stdin, stdout, scheme, terminal=terminal, io_uid=io_uid, io_gid=io_gid)
    log_file = scheme == "file"
    paths = {"stdin": stdin, "stdout": stdout, "stderr": "" if terminal else stderr}
    if scheme:
        paths["stdout"] = _url_path(stdout)
    if log_file and paths["stderr"]:
        paths["stderr"] = paths["stdout"]
    elif scheme == "fifo":
        paths = {stream: _url_path(path) if path.startswith("fifo:") else path for stream, path in paths.items()}
    _check_absolute(paths)
    kind = Kind.TERMINAL if terminal else Kind.FILE if log_file else Kind.FIFO
    return Plan(
        kind,
        paths["stdin"],
        paths["stdout"],
        paths["stderr"],
        terminal=terminal,
        io_uid=io_uid,
        io_gid=io_gid,
        log_file=log_file,
    )


def _driver_plan(stdin: str, url: str, scheme: str, *, terminal: bool, io_uid: int, io_gid: int) -> Plan:
    """Its stdin is /dev/null, unless it has a terminal."""
    driver = Driver(_url_path(url), _arguments(url), must_say_ready=scheme == "binary-v2")
    stdin = stdin if terminal else ""
    _check_absolute({"stdin": stdin, "stdout": driver.program})
    kind = Kind.TERMINAL if terminal else Kind.DRIVER
    return Plan(kind, stdin, terminal=terminal, io_uid=io_uid, io_gid=io_gid, driver=driver)


def _check_absolute(paths: Mapping[str, str]) -> None:
    for stream, path in paths.items():
        if path and not path.startswith("/"):
            raise errors.InvalidArgument(f"{stream} path {path} is not absolute")


def _arguments(url: str) -> tuple[str, ...]:
    """Two of each key of the query: the key and its first value. In the order of the keys, which containerd's shim
    leaves to chance; what Go's url.ParseQuery does not take (bad escapes, semicolons) is left out as there."""
    query = url.partition("#")[0].partition("?")[2]
    values: dict[str, str] = {}
    for pair in query.split("&"):
        if pair and ";" not in pair and not _BAD_PERCENT.search(pair):
            key, _, value = (_unquoted(word) for word in pair.partition("="))
            values.setdefault(key, value)
    arguments = tuple(word for pair in values.items() for word in pair)
    if any("\0" in word for word in arguments):
        raise errors.InvalidArgument(f"{url} contains a zero byte")
    return arguments


def _unquoted(word: str) -> str:
    return os.fsdecode(unquote_to_bytes(os.fsencode(word.replace("+", " "))))


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
