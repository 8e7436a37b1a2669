"""The shim's command line, parsed exactly as Go's ``flag`` package does it; pure.

``-x v``, ``-x=v`` and ``--x`` are the same; parsing stops at the first argument that is no flag, which is the action,
or after ``--``. A flag given twice counts the last time. What Go refuses is refused in its words, with its exit status.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from dunnage.errors import InvalidArgument

RUNTIME_NAME = "io.containerd.dunnage.v2"
_PROGRAM = re.compile(r"containerd-shim-([^.-]+)-(v[0-9]+)")

_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})

_BOOLS = {
    "debug": "log at debug level",
    "info": "print what this runtime is and can do, and exit",
    "v": "print the version and exit",
    "version": "print the version and exit",
}
_STRINGS = {
    "address": "containerd's gRPC socket",
    "bundle": "the bundle's path (with delete)",
    "debug-socket": "the debug socket's path",
    "id": "the task's id",
    "namespace": "the namespace that owns the task",
    "publish-binary": "containerd's path (events do not need it)",
    "socket": "the socket's path",
}


class Flags(NamedTuple):
    """What the command line said; an action that is neither ``start`` nor ``delete`` means *serve*."""

    namespace: str = ""
    id: str = ""
    address: str = ""
    publish_binary: str = ""
    bundle: str = ""
    socket: str = ""
    debug: bool = False
    debug_socket: str = ""
    info: bool = False
    version: bool = False
    action: str = ""


class FlagError(InvalidArgument):
    """A command line that Go would refuse: the exit status, and all that belongs on stderr."""

    def __init__(self, message: str, *, status: int, stderr: str) -> None:
        super().__init__(message)
        self.status = status
        self.stderr = stderr


def parse(argv: Sequence[str]) -> Flags:
    """Parse a whole argv, argv[0] included; raises FlagError.

    A request for help is a FlagError of status 0, as the usage text goes to stderr.
    """
    program = argv[0] if argv else RUNTIME_NAME
    values: dict[str, str] = {}
    switches: dict[str, bool] = {}
    at = 1
    while at < len(argv):
        word = argv[at]
        if len(word) < 2 or word[0] != "-":
            break
        at += 1
        if word == "--":
            break
        name, has_value, value = _split(program, word)
        if name in _BOOLS:
            switches[name] = _boolean(program, name, value) if has_value else True
            continue
        if name not in _STRINGS:
            if name in ("help", "h"):
                raise FlagError("help requested", status=0, stderr=usage(program))
            raise _refusal(program, f"flag provided but not defined: -{name}")
        if not has_value:
            if at == len(argv):
                raise _refusal(program, f"flag needs an argument: -{name}")
            value = argv[at]
            at += 1
        values[name] = value
    return Flags(
        namespace=values.get("namespace", ""),
        id=values.get("id", ""),
        address=values.get("address", ""),
        publish_binary=values.get("publish-binary", ""),
        bundle=values.get("bundle", ""),
        socket=values.get("socket", ""),
        debug=switches.get("debug", False),
        debug_socket=values.get("debug-socket", ""),
        info=switches.get("info", False),
        version=switches.get("v", False) or switches.get("version", False),
        action=argv[at] if at < len(argv) else "",
    )


def require_namespace(flags: Flags) -> None:
    """Refuse an empty namespace; asked for every action but ``-v`` and ``-info``, which need none."""
    if not flags.namespace:
        message = "shim namespace cannot be empty"
        raise FlagError(message, status=1, stderr=f"{RUNTIME_NAME}: {message}")


def runtime_name(program: str) -> str:
    """What containerd calls the runtime whose shim is called so (shim v2, §1.11): a drop-in answers as what it is put
    in for."""
    found = _PROGRAM.fullmatch(os.path.basename(program))
    return RUNTIME_NAME if found is None else f"io.containerd.{found[1]}.{found[2]}"


def usage(program: str) -> str:
    """The usage text, laid out as Go lays it out."""
    lines = [f"Usage of {program}:"]
    for name, text in sorted({**_BOOLS, **_STRINGS}.items()):
        lead = f"  -{name}" if name in _BOOLS else f"  -{name} string"
        lines.append(f"{lead}\t{text}" if len(lead) <= 4 else f"{lead}\n    \t{text}")
    return "\n".join(lines) + "\n"


def _split(program: str, word: str) -> tuple[str, bool, str]:
    name = word[2:] if word.startswith("--") else word[1:]
    if name[0] in "-=":
        raise _refusal(program, f"bad flag syntax: {word}")
    name, equals, value = name.partition("=")
    return name, bool(equals), value


def _boolean(program: str, name: str, value: str) -> bool:
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise _refusal(program, f"invalid boolean value {_quoted(value)} for -{name}: parse error")


def _refusal(program: str, message: str) -> FlagError:
    return FlagError(message, status=2, stderr=f"{message}\n{usage(program)}")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    escaped = escaped.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return f'"{escaped}"'
